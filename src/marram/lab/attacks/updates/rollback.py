"""A cloud that goes back: documents served again that were replaced, or left out."""

from __future__ import annotations

from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from marram.lab.attacks.updates.scene import Scene, Suite
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

SUITE = Suite()


@SUITE.attack("rollback of the timestamp", Threat.ROLLBACK)
def _rollback_timestamp(scene: Scene) -> None:
    old = scene.cloud.serve("timestamp.json", 0)
    scene.publish()
    scene.device()
    scene.serve({"timestamp.json": old})
    scene.meet()


@SUITE.attack("rollback of the timestamp, after the device lost power and starts again", Threat.ROLLBACK)
def _rollback_restarted(scene: Scene) -> None:
    scene.meet()
    old = scene.cloud.serve("timestamp.json", 0)
    scene.publish()
    scene.device()
    for leftover in ("root.json",):
        (scene.folder / "trust" / leftover).unlink(missing_ok=True)
    scene.serve({"timestamp.json": old})
    scene.device()


@SUITE.attack("rollback of the snapshot, with the timestamp's key stolen", Threat.ROLLBACK)
def _rollback_snapshot(scene: Scene) -> None:
    scene.meet()
    old = scene.newest(SNAPSHOT)
    scene.publish()
    scene.device()

    def back(document: Metadata[Timestamp]) -> None:
        document.signed.snapshot_meta = MetaFile.from_data(old.signed.version, old.to_bytes(), ["sha256"])

    scene.forge(back, TIMESTAMP)
    scene.meet()


def _rollback_listed(scene: Scene, role: str) -> None:
    scene.meet()
    scene.publish()
    scene.device()

    def back(document: Metadata[Snapshot]) -> None:
        document.signed.meta[f"{role}.json"].version -= 1

    scene.forge(back, SNAPSHOT)
    scene.meet()


@SUITE.attack("rollback of the project's list, with the keys of snapshot and timestamp stolen", Threat.ROLLBACK)
def _rollback_project(scene: Scene) -> None:
    _rollback_listed(scene, PROJECT)


@SUITE.attack("rollback of targets, with the keys of snapshot and timestamp stolen", Threat.ROLLBACK)
def _rollback_targets(scene: Scene) -> None:
    _rollback_listed(scene, TARGETS)


@SUITE.attack("a list taken out of the snapshot, with its key stolen", Threat.ROLLBACK)
def _left_out(scene: Scene) -> None:
    scene.meet()
    scene.forge(lambda document: document.signed.meta.pop(f"{PROJECT}.json") and None, SNAPSHOT)
    scene.meet()


@SUITE.attack("rollback of root: the second served as the third", Threat.ROLLBACK)
def _rollback_root(scene: Scene) -> None:
    scene.pass_s(60)
    second = scene.rotate(lambda root: None)
    scene.cloud.repository.replace(second, None)
    scene.meet()
    scene.serve({"3.root.json": second.to_bytes()})
    scene.meet()


@SUITE.attack("a root that skips a version", Threat.ROLLBACK)
def _root_skips(scene: Scene) -> None:
    document = scene.newest(ROOT)
    document.signed.version = 7
    document.sign(scene.key(ROOT))
    scene.serve({"2.root.json": document.to_bytes()})
    scene.meet()
