"""A cloud that shows nothing new: documents that are over, and clocks that do not say so."""

from __future__ import annotations

from marram.lab.attacks.updates.scene import DOCUMENTS, OLD, YEAR_S, Attack, Scene, Suite
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from marram.trust.repository import DAY_S, LIFE_S, date

SUITE = Suite()


def _frozen(role: str) -> Attack:
    def attack(scene: Scene) -> None:
        scene.meet()
        served = {name: scene.fetch(name, 0) for name in scene.names()}
        scene.serve(served | {"2.root.json": None})
        scene.pass_s(LIFE_S[role] + 1)
        # Whoever freezes one role may have the keys of the roles that expire sooner.
        for sooner in (each for each in (TIMESTAMP, SNAPSHOT, PROJECT) if LIFE_S[each] < LIFE_S[role]):
            scene.forge(lambda document, r=sooner: date(document, r, scene.now_s), sooner)  # type: ignore[misc]
        scene.meet()

    return attack


for _role in (TIMESTAMP, SNAPSHOT, PROJECT, TARGETS, ROOT):
    SUITE.attack(f"freeze of {_role}", Threat.FREEZE)(_frozen(_role))


@SUITE.attack("freeze, with the device's clock turned back by a year", Threat.FREEZE)
def _frozen_back(scene: Scene) -> None:
    scene.meet()
    held = {"timestamp.json": scene.fetch("timestamp.json", 0)}
    scene.serve(held)
    scene.pass_s(2 * DAY_S)
    scene.skew_s = -YEAR_S
    scene.meet()


@SUITE.attack("freeze, on a device that wakes up in 1970 and was never there before", Threat.FREEZE)
def _frozen_new(scene: Scene) -> None:
    held = {name: scene.fetch(name, 0) for name in scene.names()}
    scene.pass_s(YEAR_S + DAY_S)
    # It is given today's root when it joins, and served last year's documents under it.
    root = scene.rotate(lambda root: None)
    scene.cloud.repository.replace(root, None)
    scene.serve(held)
    scene.skew_s = -scene.now_s + 1000
    scene.device({OLD: DOCUMENTS[OLD]}, root.to_bytes())


@SUITE.attack("a clock twenty years ahead refuses, and says that it is the clock", Threat.FREEZE)
def _ahead(scene: Scene) -> None:
    scene.meet()
    scene.skew_s = 20 * YEAR_S
    scene.meet()
