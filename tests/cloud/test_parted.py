"""A model parted between device and cloud, all of it real: the front in the pipeline, the back at a replica, the bus
between them; as people deploy it, and where the two do not fit each other."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.pipeline.conftest import Seen
from tests.pipeline.scripted import Chooser
from tests.runtime.cutting import bundle, funnel, picture, with_cut

from marram.cloud.server import Cloud
from marram.lab.stage import Stage
from marram.pipeline.build import Around, Pipeline
from marram.runtime.build.cut import EVERY_CLASS, Inputs
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.model import Model
from marram.schema.agreement import given_up
from marram.schema.api import DeployAsk
from marram.schema.app import parse_app
from marram.schema.event import EventKind
from marram.schema.model import Cut
from marram.schema.result import Place, Result

# ---------------------------------------------------------------- deployed as people do

WIDE = 256
PHOTOS = [picture(seed, WIDE, WIDE) for seed in range(12)]
GATE = """
app: gate
source: {images: photos, every: 50 ms, repeat: true}
steps: [{classify: ../tiny, cloud: ../big, place: cloud}]
raw: allowed
"""


def test_a_deployed_cut_answers_as_the_whole_model_and_says_so(tmp_path: Path) -> None:
    """Of a quantised model nothing is lost at a cut, so each answer is the whole model's own."""
    big, cut = with_cut(
        bundle(tmp_path / "big", model="big", int8=True, net=funnel(WIDE), side=WIDE), "pooled", images=PHOTOS
    )
    assert cut.loss == 0.0
    bundle(tmp_path / "tiny", model="tiny")
    place = tmp_path / "gate"
    (place / "photos").mkdir(parents=True)
    names = [f"photos/{number}.png" for number in range(4)]
    for name, photo in zip(names, PHOTOS, strict=False):
        Pillow.fromarray(photo).save(place / name)
    (place / "gate.yaml").write_text(GATE + f"files: [{', '.join(names)}]\n")
    with Stage(tmp_path / "stage") as stage:
        stage.cloud()
        stage.device("pi")
        stage.run("deploy", place / "gate.yaml", "--to", "all", "--no-wait")

        def parted() -> list[dict[str, Any]]:
            with stage.api() as api:
                results = api.events(device="pi", kinds=(EventKind.RESULT,), limit=500)
            return [event.data for event in results if event.data["place"] == "split"]

        def told_of(device: str) -> dict[str, Any]:
            with stage.api() as api:
                now = api.device(device).reported
            return next((app.stats for app in (now.apps if now else ())), {})

        stage.until("every photo is answered in two parts", lambda: len({data["name"] for data in parted()}) == 4)
        answers = parted()
        stage.until("the device says so", lambda: "cuts" in told_of("pi"))
        assert told_of("pi")["cuts"] == "big@1 is parted at pooled where that is soonest"
    whole = Model.load(big)
    right = {Path(name).name: whole.predict(photo) for name, photo in zip(names, PHOTOS, strict=False)}
    whole.close()
    for data in answers:
        assert data["model"] == "big@1" and not data["fallback"]
        assert [label for label, _ in data["top"]] == [label for label, _ in right[data["name"]].top]
        np.testing.assert_allclose(
            [share for _, share in data["top"]], [share for _, share in right[data["name"]].top], rtol=1e-5
        )
        # Where, at which cut, why, and how little of a picture of 196,608 bytes was sent.
        chosen = data["why"]["ways"][0]
        assert (chosen["place"], chosen["codec"], data["reason"]) == ("split", "cut:pooled", "always the cloud")
        assert 0 < data["sent_bytes"] < 300 and data["predicted_ms"] > 0


# ---------------------------------------------------------------- the two do not fit each other


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model with a cut that can win by its card, judged by the very pictures that are asked about."""
    made, cut = with_cut(bundle(tmp_path_factory.mktemp("there") / "small"), "pooled", images=ALL)
    return told(made, cut)


ALL = [picture(seed) for seed in range(16)]
ASKED = Inputs.of(ALL).judging


def told(made: Bundle, cut: Cut, **card: Any) -> Bundle:
    """`made` with this one cut, which by its card is worth parting it at."""
    cut = cut.model_copy(update={"front_ms": 5.0, "back_ms": 5.0, "bytes": 10})
    (made.folder / CARD).write_text(dump_card(made.card.model_copy(update={"cuts": [cut], **card})))
    return Bundle.open(made.folder)


Ask = Callable[[Bundle], Awaitable[tuple[Seen, dict[str, Any]]]]


@pytest.fixture
async def ask(cloud: Cloud, device: Any, worker_side: Any, until: Any, tmp_path: Path, small: Bundle) -> Ask:
    """Runs an app on a device that has a bundle as its own and its cloud's, where replicas serve `small`.

    A reply that never came would be waited for until the test fails: no time limit helps.
    """
    for number, image in enumerate(ASKED):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Pillow.fromarray(image).save(tmp_path / "photos" / f"{number:02}.png")
    await asyncio.to_thread(cloud.state.registry.add_folder, small.folder)
    text = "app: gate\nsource: {images: photos}\nraw: allowed\nsteps: [{classify: small, cloud: small, top: 3}]\n"
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=text))
    bus = await device(cloud, "pi")
    remote = await worker_side(bus, ("small", 1), ("small", 2))
    assert cloud.replicas is not None
    await until(lambda: [one.state.value for one in cloud.replicas.status()] == ["ready"], 60)

    async def run(here: Bundle) -> tuple[Seen, dict[str, Any]]:
        seen = Seen()
        around = Around(
            outlet=seen, sinks=(seen,), remote=remote, cloud_cards={"small": here.card}, fronts={"small": here},
            policy=Chooser([Place.SPLIT], timeout_s=600, replica=None), resolve=lambda reference, base: here,
        )  # fmt: skip
        pipeline = Pipeline.build(parse_app(text), tmp_path, around)
        async with asyncio.timeout(60):
            await asyncio.to_thread(pipeline.run)
        return seen, pipeline.stats()

    return run


async def test_a_cut_of_real_numbers_loses_no_more_than_its_card_says(ask: Ask, small: Bundle) -> None:
    seen, stats = await ask(small)
    whole = Model.load(small)
    losses = [
        given_up(Result.from_dict(frame.result.to_dict()), whole.predict(image, None, EVERY_CLASS))
        for frame, image in zip(seen.frames, ASKED, strict=True)
    ]
    whole.close()
    assert statistics.fmean(losses) <= small.card.cuts[0].loss + 1e-4  # it is rounded there
    assert {frame.placed.place for frame in seen.frames} == {Place.SPLIT}
    assert (stats["split"], stats["edge"], stats["errors"]) == (len(ASKED), 0, 0)


def other_version(small: Bundle, folder: Path) -> Bundle:
    made, cut = with_cut(bundle(folder), "pooled", images=ALL)
    return told(made, cut, version=2)


def other_shape(small: Bundle, folder: Path) -> Bundle:
    made, cut = with_cut(bundle(folder), "mixed", name="pooled", images=ALL)
    assert cut.shape != small.card.cuts[0].shape
    return told(made, cut)


def other_scale(small: Bundle, folder: Path) -> Bundle:
    made, cut = with_cut(bundle(folder), "pooled", images=ALL)
    return told(made, cut.model_copy(update={"scale": 2 * cut.scale}))


def other_cut(small: Bundle, folder: Path) -> Bundle:
    made, cut = with_cut(bundle(folder), "pooled", name="elsewhere", images=ALL)
    return told(made, cut)


async def test_where_the_parts_do_not_fit_the_whole_model_answers_at_once(
    ask: Ask, small: Bundle, tmp_path: Path
) -> None:
    for other in (other_version, other_cut):
        await answered_here(ask, other(small, tmp_path / other.__name__))
    # No replica has loaded the back yet, which it does when it is first asked for.
    (back,) = (tmp_path / "cloud").rglob(small.card.cuts[0].back)
    away = back.rename(tmp_path / "away")
    await answered_here(ask, small)
    away.rename(back)
    async with asyncio.timeout(60):
        while (await ask(small))[1]["split"] < len(ASKED):  # it is tried again after a pause
            await asyncio.sleep(0.1)
    for other in (other_shape, other_scale):
        await answered_here(ask, other(small, tmp_path / other.__name__))


async def answered_here(ask: Ask, mine: Bundle) -> None:
    """Each picture is answered by the whole model of the device: refused there, not given up for its time."""
    seen, stats = await ask(mine)
    placed = {(frame.placed.place, frame.placed.fallback) for frame in seen.frames if frame.placed is not None}
    assert placed == {(Place.EDGE, True)}, mine.folder.name
    whole = Model.load(mine)
    assert seen.labels == [whole.predict(image).label for image in ASKED]
    whole.close()
    assert (stats["edge"], stats["split"], stats["dropped"], stats["timeouts"]) == (len(ASKED), 0, 0, 0)
