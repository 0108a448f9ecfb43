"""Every attack on signed updates is refused, and for its own reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from marram.edge.bundles import Bundles
from marram.lab.attacks import bundles, streams, updates
from marram.lab.attacks.outcome import attempt
from marram.lab.attacks.updates import damage, freeze
from marram.lab.attacks.updates.scene import APP, DOCUMENTS, OLD, YEAR_S, Scene
from marram.trust.clock import Clock


@pytest.mark.parametrize(
    ("suite", "name"), [(kind, name) for kind, suite in updates.SUITES.items() for name in suite.names()]
)
def test_an_attack_is_refused_by_its_name(suite: str, name: str, tmp_path: Path) -> None:
    outcome = updates.SUITES[suite].play(name, tmp_path)
    assert outcome.refused, outcome


def test_a_device_that_ignores_when_what_is_signed_expires_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "now_s", lambda clock: 0.0)
    freezes = updates.SUITES["freeze"]
    outcomes = [freezes.play(name, tmp_path / str(n)) for n, name in enumerate(freezes.names())]
    assert sum(not each.refused for each in outcomes) >= 5


def test_a_device_that_takes_files_in_without_their_digest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundles, "accept", lambda bundles, file: None)
    accepted = [each for each in bundles.flipped(tmp_path, 40) if not each.refused]
    assert accepted and all("desired state" not in each.name for each in accepted)


def test_without_an_attacker_the_same_device_takes_the_same_version(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.meet()
    scene.publish()
    scene.device(DOCUMENTS)
    scene.device({APP: DOCUMENTS[APP], OLD: DOCUMENTS[OLD]})


def test_signed_documents_with_a_byte_changed(tmp_path: Path) -> None:
    outcomes = list(damage.flipped(tmp_path, 150))
    assert len(outcomes) == 150 and not [each for each in outcomes if not each.refused]


def test_garbage_instead_of_signed_documents(tmp_path: Path) -> None:
    outcomes = list(damage.garbage(tmp_path, 100))
    assert len(outcomes) == 100 and not [each for each in outcomes if not each.refused]


def test_every_byte_of_a_version_on_its_way(tmp_path: Path) -> None:
    outcomes = list(bundles.flipped(tmp_path, 2000))
    assert len(outcomes) == 2000 and not [each for each in outcomes if not each.refused]
    assert {each.name.split(":")[0] for each in outcomes} == {
        "desired state", "app.yaml", "functions/count.py", "model.yaml", "faces.tflite"
    }  # fmt: skip


def test_paths_that_lead_out_of_a_bundle() -> None:
    outcomes = list(bundles.traversals())
    assert len(outcomes) == 3 * len(bundles.BAD_PATHS) and not [each for each in outcomes if not each.refused]


def test_a_wrong_clock_is_said_to_be_one(tmp_path: Path) -> None:
    outcome = freeze.SUITE.play("a clock twenty years ahead refuses, and says that it is the clock", tmp_path)
    assert "this device's clock says 2047-" in outcome.words and "days after the newest moment" in outcome.words


@pytest.mark.parametrize("years", [-20, -1, 0])
def test_a_clock_that_is_behind_takes_what_is_good(tmp_path: Path, years: int) -> None:
    scene = Scene(tmp_path, skew_s=years * YEAR_S)
    scene.meet()
    scene.publish()
    scene.device()


def test_a_clock_that_was_ahead_once_leaves_nothing_behind(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.meet()
    scene.skew_s = 20 * YEAR_S
    assert not attempt("ahead", frozenset(), scene.meet).refused
    scene.skew_s = 0
    scene.meet()


def test_clouds_that_never_come_to_an_end(tmp_path: Path) -> None:
    outcomes = list(streams.mount_all(tmp_path))
    assert len(outcomes) == 2 * len(streams.STREAMS) and not [each for each in outcomes if not each.refused]
