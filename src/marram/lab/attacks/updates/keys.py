"""Documents signed with the wrong keys, too few of them, or none; keys that were replaced."""

from __future__ import annotations

from tuf.api.metadata import Root

from marram.lab.attacks.publisher import Publisher
from marram.lab.attacks.updates.scene import DOCUMENTS, Attack, Scene, Suite
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, ROLES, ROOT, TARGETS, TIMESTAMP, metadata_name
from marram.trust import signers

SUITE = Suite()


def _wrong_key(role: str) -> Attack:
    def attack(scene: Scene) -> None:
        scene.meet()
        scene.forge(lambda document: None, role, signer=signers.new_signer())
        scene.meet()

    return attack


def _unsigned(role: str) -> Attack:
    def attack(scene: Scene) -> None:
        scene.meet()
        document = scene.newest(role)
        document.signed.version += 1
        document.signatures.clear()
        replaced = {"timestamp.json" if role == TIMESTAMP else metadata_name(role, document.signed.version): document}
        upward = scene.upward(role, document) if role not in (ROOT, TIMESTAMP) else {}
        scene.serve({name: each.to_bytes() for name, each in replaced.items()} | upward)
        scene.meet()

    return attack


def _changed(role: str) -> Attack:
    """A document changed after it was signed: the signature names the right key."""

    def attack(scene: Scene) -> None:
        scene.meet()
        document = scene.newest(role)
        document.signed.version += 1
        upward = scene.upward(role, document) if role not in (ROOT, TIMESTAMP) else {}
        name = "timestamp.json" if role == TIMESTAMP else metadata_name(role, document.signed.version)
        scene.serve({name: document.to_bytes()} | upward)
        scene.meet()

    return attack


for _role in ROLES:
    SUITE.attack(f"{_role} signed with a key of the attacker's", Threat.WRONG_KEY)(_wrong_key(_role))
    SUITE.attack(f"{_role} without a signature", Threat.UNSIGNED)(_unsigned(_role))
    SUITE.attack(f"{_role} changed after it was signed", Threat.TAMPERED)(_changed(_role))


@SUITE.attack("a whole cloud of the attacker's, with its own root", Threat.WRONG_KEY)
def _other_cloud(scene: Scene) -> None:
    scene.meet()
    other = Publisher(now_s=lambda: scene.now_s + 60)
    other.repository.publish(DOCUMENTS)
    scene.fetch = other.serve
    scene.device()


@SUITE.attack("a whole cloud of the attacker's, and a second root that its own first root signs", Threat.WRONG_KEY)
def _other_root(scene: Scene) -> None:
    scene.meet()
    other = Scene(scene.folder / "other", now_s=scene.now_s + 60)
    second = other.rotate(lambda root: None)
    other.cloud.repository.replace(second, None)
    scene.fetch = other.fetch
    scene.device()


def _short_root(scene: Scene, keys: int) -> None:
    scene.meet()
    scene.serve({"2.root.json": scene.rotate(lambda root: None, scene.cloud.root_keys[:keys]).to_bytes()})
    scene.meet()


@SUITE.attack("a root signed by one key where two are needed", Threat.WRONG_KEY, root_keys=3, threshold=2)
def _root_threshold(scene: Scene) -> None:
    _short_root(scene, 1)


@SUITE.attack(
    "a root with one key's signature twice where two keys are needed", Threat.TAMPERED, root_keys=3, threshold=2
)
def _root_twice(scene: Scene) -> None:
    scene.meet()
    document = scene.rotate(lambda root: None, scene.cloud.root_keys[:1])
    first, second = (key.public_key.keyid for key in scene.cloud.root_keys[:2])
    copied = document.signatures[first].to_dict() | {"keyid": second}
    document.signatures[second] = type(document.signatures[first]).from_dict(copied)
    scene.serve({"2.root.json": document.to_bytes()})
    scene.meet()


@SUITE.attack("a root that its new keys have signed, and the old ones have not", Threat.WRONG_KEY)
def _root_new_alone(scene: Scene) -> None:
    scene.meet()
    new = signers.new_signer()

    def exchange(root: Root) -> None:
        root.revoke_key(scene.cloud.root_keys[0].public_key.keyid, ROOT)
        root.add_key(new.public_key, ROOT)

    scene.serve({"2.root.json": scene.rotate(exchange, [new]).to_bytes()})
    scene.meet()


@SUITE.attack("a root that its old keys have signed, and the new ones have not", Threat.WRONG_KEY)
def _root_old_alone(scene: Scene) -> None:
    scene.meet()

    def exchange(root: Root) -> None:
        root.revoke_key(scene.cloud.root_keys[0].public_key.keyid, ROOT)
        root.add_key(signers.new_signer().public_key, ROOT)

    scene.serve({"2.root.json": scene.rotate(exchange).to_bytes()})
    scene.meet()


def _after_rotation(role: str) -> Attack:
    """The key of `role` was stolen and replaced: what the thief signs with it counts no longer."""

    def attack(scene: Scene) -> None:
        scene.meet()
        stolen, new = scene.key(role), signers.new_signer()
        scene.pass_s(60)

        def exchange(root: Root) -> None:
            root.revoke_key(stolen.public_key.keyid, role)
            root.add_key(new.public_key, role)

        if role == PROJECT:
            targets = scene.newest(TARGETS)
            targets.signed.version += 1
            targets.signed.revoke_key(stolen.public_key.keyid, PROJECT)
            targets.signed.add_key(new.public_key, PROJECT)
            targets.sign(scene.key(TARGETS))
            scene.cloud.online[PROJECT] = new
            scene.cloud.repository.replace(None, targets)
        elif role == TARGETS:
            root, targets = scene.rotate(exchange), scene.newest(TARGETS)
            targets.signed.version += 1
            targets.sign(new)
            scene.cloud.targets_key = new
            scene.cloud.repository.replace(root, targets)
        elif role == ROOT:
            root = scene.rotate(exchange)
            root.sign(new, append=True)
            scene.cloud.root_keys = [new]
            scene.cloud.repository.replace(root, None)
        else:
            scene.cloud.online[role] = new
            scene.cloud.repository.replace(scene.rotate(exchange), None)
        scene.meet()  # the rotation is honoured
        if role == ROOT:
            scene.serve({"3.root.json": scene.rotate(lambda root: None, [stolen]).to_bytes()})  # type: ignore[list-item]
        else:
            scene.forge(lambda document: None, role, signer=stolen)
        scene.meet()

    return attack


for _role in ROLES:
    SUITE.attack(f"{_role} signed with its old key after a rotation", Threat.WRONG_KEY)(_after_rotation(_role))
