"""Documents of one time, role or name served as those of another."""

from __future__ import annotations

from marram.lab.attacks.updates.scene import APP, DOCUMENTS, MODEL, OLD, Scene, Suite
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, SNAPSHOT, TARGETS, metadata_name

SUITE = Suite()


@SUITE.attack("an old snapshot with a new timestamp", Threat.MIX_AND_MATCH)
def _mixed_snapshot(scene: Scene) -> None:
    scene.meet()
    old = scene.newest(SNAPSHOT)
    scene.publish()
    scene.serve({metadata_name(SNAPSHOT, scene.newest(SNAPSHOT).signed.version): old.to_bytes()})
    scene.device()


@SUITE.attack("an old list with a new snapshot", Threat.MIX_AND_MATCH)
def _mixed_project(scene: Scene) -> None:
    scene.meet()
    old = scene.newest(PROJECT)
    scene.publish()
    scene.serve({metadata_name(PROJECT, scene.newest(PROJECT).signed.version): old.to_bytes()})
    scene.device()


@SUITE.attack("targets of another time with a new snapshot", Threat.MIX_AND_MATCH)
def _mixed_targets(scene: Scene) -> None:
    other = scene.newest(TARGETS)
    other.signed.version += 1
    other.sign(scene.key(TARGETS))
    scene.serve({metadata_name(TARGETS, other.signed.version - 1): other.to_bytes()})
    scene.meet()


@SUITE.attack("the timestamp served as the snapshot", Threat.MIX_AND_MATCH, Threat.TAMPERED)
def _mixed_roles(scene: Scene) -> None:
    name = metadata_name(SNAPSHOT, scene.newest(SNAPSHOT).signed.version)
    scene.serve({name: scene.fetch("timestamp.json", 0)})
    scene.meet()


@SUITE.attack("the root served as the timestamp", Threat.MIX_AND_MATCH)
def _mixed_root(scene: Scene) -> None:
    scene.serve({"timestamp.json": scene.root})
    scene.meet()


@SUITE.attack("one version's document under another version's name", Threat.MIX_AND_MATCH)
def _swapped_versions(scene: Scene) -> None:
    scene.publish()
    scene.device({APP: DOCUMENTS[OLD]})


@SUITE.attack("an app's document under a model's name", Threat.MIX_AND_MATCH)
def _swapped_kinds(scene: Scene) -> None:
    scene.device({MODEL: DOCUMENTS[OLD]})
