"""What nobody signed, or somebody who may not."""

from __future__ import annotations

from tuf.api.metadata import Metadata, TargetFile, Targets

from marram.lab.attacks.updates.scene import DOCUMENTS, OLD, Scene, Suite
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, TARGETS
from marram.trust import signers

SUITE = Suite()


@SUITE.attack("a version that nobody signed", Threat.UNSIGNED)
def _unsigned_target(scene: Scene) -> None:
    scene.device()


@SUITE.attack("a version that is no longer signed", Threat.UNSIGNED)
def _retired(scene: Scene) -> None:
    scene.meet()
    scene.pass_s(60)
    scene.cloud.repository.retire([OLD])
    scene.meet()


@SUITE.attack("a document with one letter changed", Threat.TAMPERED)
def _changed_document(scene: Scene) -> None:
    scene.device({OLD: DOCUMENTS[OLD].replace(b"gate", b"gatf")})


@SUITE.attack("the project's key signs what is not the project's", Threat.UNSIGNED)
def _delegation(scene: Scene) -> None:
    path = "apps/other/gate/1.json"

    def abuse(document: Metadata[Targets]) -> None:
        document.signed.targets[path] = TargetFile.from_data(path, b"other", ["sha256"])

    scene.forge(abuse, PROJECT)
    scene.device({path: b"other"})


@SUITE.attack("the project's key signs a path that climbs out of the project's", Threat.UNSIGNED)
def _delegation_climbs(scene: Scene) -> None:
    path = "apps/main/../../gate/1.json"

    def abuse(document: Metadata[Targets]) -> None:
        document.signed.targets[path] = TargetFile.from_data(path, b"other", ["sha256"])

    scene.forge(abuse, PROJECT)
    scene.device({path: b"other"})


@SUITE.attack("the project's key delegates to a key of the attacker's", Threat.UNSIGNED)
def _delegates_on(scene: Scene) -> None:
    thief = signers.new_signer()
    path = "apps/other/gate/1.json"

    def abuse(document: Metadata[Targets]) -> None:
        given = scene.newest(TARGETS).signed
        given.delegations.roles[PROJECT].paths = ["apps/*/*/*"]
        given.add_key(thief.public_key, PROJECT)
        document.signed.delegations = given.delegations

    scene.forge(abuse, PROJECT)
    scene.device({path: b"other"})
