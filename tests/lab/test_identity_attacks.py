"""Every attack on who is who is refused for its own reason, and the victim is as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from marram.lab.attacks.identities import SUITES
from marram.lab.attacks.scene import Scene
from marram.lab.scratch import quiet

EACH = [pytest.param(suite, name, id=f"{suite}: {name}") for suite, each in SUITES.items() for name in each.names()]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with quiet(), Scene(tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.mark.parametrize(("suite", "name"), EACH)
def test_an_attack_is_refused_for_its_own_reason(suite: str, name: str, scene: Scene) -> None:
    outcome = SUITES[suite].play(name, scene)
    assert outcome.refused, outcome


def test_harm_to_the_victim_counts_whatever_the_attack_was_told(scene: Scene) -> None:
    suite = next(iter(SUITES.values()))
    name = next(name for name in suite.names() if name.endswith("made up"))
    assert suite.play(name, scene).refused
    scene.cut_victim()
    assert suite.play(name, scene).words == "the victim lost its connection"
    assert suite.play(name, scene).refused
