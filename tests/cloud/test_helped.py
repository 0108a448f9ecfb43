"""A slow device is helped by its neighbour: a real cloud, real agents and workers, told what to do by commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marram.lab.stage import Stage
from marram.runtime.image import encode_jpeg
from marram.schema.event import EventKind

APP = """
app: gate
source: {images: photos, every: 100 ms, repeat: true}
steps: [{classify: colours}]
raw: allowed
peers: yes
files: [photos/red.jpg]
"""
SLOW, QUICK = "slow", ("quick", "swift")


class Neighbours(Stage):
    """One of its devices is a thousand times slower than this machine."""

    def _environment(self, who: str) -> dict[str, str]:
        return super()._environment(who) | ({"MARRAM_SLOWDOWN": "1000"} if who == SLOW else {})


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Neighbours]:
    with Neighbours(tmp_path / "stage") as made:
        made.cloud()
        yield made


def test_a_slow_device_is_helped_and_answers_itself_once_nobody_does(
    stage: Neighbours, colours: Path, picture: Callable[[str], Any]
) -> None:
    stage.run("model", "add", colours)
    for name in (SLOW, *QUICK):
        stage.device(name, site="here")
    place = stage.folder / "gate"
    (place / "photos").mkdir(parents=True)
    (place / "photos/red.jpg").write_bytes(encode_jpeg(picture("red"), 95))
    (place / "gate.yaml").write_text(APP)
    stage.run("deploy", place / "gate.yaml", "--to", "site=here", "--no-wait")

    def stats(device: str) -> dict[str, Any]:
        with stage.api() as api:
            now = api.device(device).reported
        return next((app.stats for app in (now.apps if now else ()) if app.name == "gate"), {})

    stage.until("its neighbours answer for it", lambda: stats(SLOW).get("peers", 0) > 10)
    with stage.api() as api:
        results = [event.data for event in api.events(device=SLOW, kinds=(EventKind.RESULT,), limit=500)]
    helped = [data for data in results if data["place"] == "peer"]
    assert helped and all(data["label"] == "red" for data in results)
    # Whom it knows by then it asks by name.
    assert {data["why"].get("replica") for data in helped} & {*QUICK}
    # And they are none the worse for it.
    for name in QUICK:
        stage.until(f"{name} works", lambda name=name: stats(name).get("frames", 0) > 0)
        own = stats(name)
        assert (own["errors"], own["dropped"]) == (0, 0)

    # It may keep to the one that it knows; where that one is gone the other takes over.
    gone, stays = sorted(QUICK, key=lambda name: stats(name).get("guests", 0), reverse=True)
    stage.children.pop(gone).kill()
    before = stats(stays).get("guests", 0)
    stage.until("the other one goes on", lambda: stats(stays).get("guests", 0) > before + 5)
    stage.children.pop(stays).kill()
    before = stats(SLOW)
    stage.until("it answers itself", lambda: stats(SLOW)["edge"] > before["edge"] + 3)
    after = stats(SLOW)
    assert (after["errors"], after["dropped"]) == (0, 0)
