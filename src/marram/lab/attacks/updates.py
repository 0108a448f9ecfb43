"""Attacks on signed updates: a malicious cloud, or one whose online keys were stolen, and a device that meets it.

Each is mounted with the real repository and the real verifier: the cloud is `Publisher`, honest until the attack
changes what it serves or takes its keys. What TUF promises for each role and key is in its specification (section
1.5.2), and python-tuf's client is tested for it upstream; here it is shown of a device: its files, its clock, the name
it has for each.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from marram.lab.attacks.outcome import Outcome, attempt
from marram.lab.attacks.publisher import Publisher
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, metadata_name
from marram.trust import signers
from marram.trust.clock import Clock, Sources
from marram.trust.repository import DAY_S, LIFE_S, date
from marram.trust.verifier import Fetch, Limits, Verifier

APP, OLD = "apps/main/gate/2.json", "apps/main/gate/1.json"
MODEL = "models/main/faces/1.json"
DOCUMENTS = {
    OLD: b'{"files":{"files":[]},"name":"gate","version":1}',
    APP: b'{"files":{"files":[]},"name":"gate","version":2}',
    MODEL: b'{"manifest":{"files":[]},"name":"faces","version":1}',
}
START_S = 1_800_000_000.0
YEAR_S = 365 * DAY_S


@dataclass
class Scene:
    """A cloud, a device that has met it once, and a time that only moves when it is told to."""

    folder: Path
    now_s: float = START_S
    # What the device's own clock is off by.
    skew_s: float = 0.0
    root_keys: int = 1
    threshold: int = 1
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.cloud = Publisher(root_keys=self.root_keys, threshold=self.threshold, now_s=lambda: self.now_s)
        self.cloud.repository.publish({OLD: DOCUMENTS[OLD], MODEL: DOCUMENTS[MODEL]})
        self.root = self.cloud.root
        self.fetch: Fetch = self.cloud.serve

    def pass_s(self, seconds: float) -> None:
        """Time goes on, for cloud and device alike."""
        self.now_s += seconds

    def device(self, documents: Mapping[str, bytes] | None = None, root: bytes | None = None) -> None:
        """The device, restarted, is told to run `documents` (by default the new version). Raises as the verifier."""
        sources = Sources(lambda: self.now_s + self.skew_s, lambda: self.now_s - START_S + 100, lambda: "one")
        clock = Clock(self.folder / "trust" / "clock.json", sources)
        verifier = Verifier(self.folder / "trust", root or self.root, clock, self.limits)
        verifier.verify({APP: DOCUMENTS[APP]} if documents is None else documents, lambda n, m: self.fetch(n, m))

    def meet(self) -> None:
        """The device runs the old version, and knows what the cloud has signed so far."""
        self.device({OLD: DOCUMENTS[OLD]})

    def publish(self) -> None:
        """The cloud signs the new version, a minute later."""
        self.pass_s(60)
        self.cloud.repository.publish({APP: DOCUMENTS[APP]})

    def serve(self, replaced: Mapping[str, bytes | None]) -> None:
        """From now on the cloud answers `replaced` under these names; None: no such file."""
        honest = self.fetch

        def fetch(name: str, most_bytes: int) -> bytes | None:
            return replaced[name] if name in replaced else honest(name, most_bytes)

        self.fetch = fetch

    def newest(self, role: str) -> Metadata[Any]:
        """The newest document of `role`, to be changed."""
        document = self.cloud.shelf.newest(role)
        assert document is not None
        return Metadata.from_bytes(document.content)

    def key(self, role: str) -> Signer:
        """The key of `role`: for attacks by whoever has stolen it."""
        return {ROOT: self.cloud.root_keys[0], TARGETS: self.cloud.targets_key, **self.cloud.online}[role]

    def forge(
        self,
        change: Callable[[Metadata[Any]], None],
        role: str,
        *,
        signer: Signer | None = None,
        upward: bool = True,
    ) -> None:
        """Change a document of `role` and sign it with `signer` (default: its own key, stolen).

        `upward`: make what stands on it fit, with the online keys, stolen too.
        """
        document = self.newest(role)
        document.signed.version += 1
        change(document)
        document.sign(signer or self.key(role))
        changed = {metadata_name(role, document.signed.version): document.to_bytes()}
        changed["timestamp.json" if role == TIMESTAMP else ""] = document.to_bytes()
        if upward and role not in (ROOT, TIMESTAMP):
            changed |= self._upward(role, document)
        self.serve(changed)

    def _upward(self, role: str, document: Metadata[Any]) -> dict[str, bytes]:
        snapshot, changed = self.newest(SNAPSHOT), dict[str, bytes]()
        if role != SNAPSHOT:
            meta = MetaFile.from_data(document.signed.version, document.to_bytes(), ["sha256"])
            snapshot.signed.meta[f"{role}.json"] = meta
            snapshot.signed.version += 1
            snapshot.sign(self.key(SNAPSHOT))
            changed[metadata_name(SNAPSHOT, snapshot.signed.version)] = snapshot.to_bytes()
        else:
            snapshot = document
        timestamp = self.newest(TIMESTAMP)
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
        timestamp.sign(self.key(TIMESTAMP))
        return changed | {"timestamp.json": timestamp.to_bytes()}

    def rotate(self, change: Callable[[Root], None], keys: list[CryptoSigner] | None = None) -> Metadata[Root]:
        """The next root, with `change` made to it, signed by all root keys (or by `keys`)."""
        document = self.newest(ROOT)
        document.signed.version += 1
        change(document.signed)
        date(document, ROOT, self.now_s)
        document.signatures.clear()
        for signer in self.cloud.root_keys if keys is None else keys:
            document.sign(signer, append=True)
        return document


Attack = Callable[[Scene], None]
_ALL: dict[str, tuple[frozenset[Threat], Attack, dict[str, Any]]] = {}


def _attack(name: str, *threats: Threat, **scene: Any) -> Callable[[Attack], Attack]:
    def taken(attack: Attack) -> Attack:
        _ALL[name] = (frozenset(threats), attack, scene)
        return attack

    return taken


def names() -> list[str]:
    """Every attack here, by name."""
    return list(_ALL)


def mount(name: str, folder: Path) -> Outcome:
    """Play one, with a device in `folder` (new, or empty)."""
    threats, attack, options = _ALL[name]
    return attempt(name, threats, lambda: attack(Scene(folder, **options)))


def mount_all(folder: Path) -> Iterator[Outcome]:
    """Play all, each with a device of its own below `folder`."""
    for number, name in enumerate(_ALL):
        yield mount(name, folder / str(number))


# ---------------------------------------------------------------- rollback


@_attack("rollback of the timestamp", Threat.ROLLBACK)
def _rollback_timestamp(scene: Scene) -> None:
    old = scene.cloud.serve("timestamp.json", 0)
    scene.publish()
    scene.device()
    scene.serve({"timestamp.json": old})
    scene.meet()


@_attack("rollback of the timestamp, after the device lost power and starts again", Threat.ROLLBACK)
def _rollback_restarted(scene: Scene) -> None:
    scene.meet()
    old = scene.cloud.serve("timestamp.json", 0)
    scene.publish()
    scene.device()
    for leftover in ("root.json",):
        (scene.folder / "trust" / leftover).unlink(missing_ok=True)
    scene.serve({"timestamp.json": old})
    scene.device()


@_attack("rollback of the snapshot, with the timestamp's key stolen", Threat.ROLLBACK)
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


@_attack("rollback of the project's list, with the keys of snapshot and timestamp stolen", Threat.ROLLBACK)
def _rollback_project(scene: Scene) -> None:
    _rollback_listed(scene, PROJECT)


@_attack("rollback of targets, with the keys of snapshot and timestamp stolen", Threat.ROLLBACK)
def _rollback_targets(scene: Scene) -> None:
    _rollback_listed(scene, TARGETS)


@_attack("a list taken out of the snapshot, with its key stolen", Threat.ROLLBACK)
def _left_out(scene: Scene) -> None:
    scene.meet()
    scene.forge(lambda document: document.signed.meta.pop(f"{PROJECT}.json") and None, SNAPSHOT)
    scene.meet()


@_attack("rollback of root: the second served as the third", Threat.ROLLBACK)
def _rollback_root(scene: Scene) -> None:
    scene.pass_s(60)
    second = scene.rotate(lambda root: None)
    scene.cloud.repository.replace(second, None)
    scene.meet()
    scene.serve({"3.root.json": second.to_bytes()})
    scene.meet()


@_attack("a root that skips a version", Threat.ROLLBACK)
def _root_skips(scene: Scene) -> None:
    document = scene.newest(ROOT)
    document.signed.version = 7
    document.sign(scene.key(ROOT))
    scene.serve({"2.root.json": document.to_bytes()})
    scene.meet()


# ---------------------------------------------------------------- freeze


def _frozen(role: str) -> Attack:
    def attack(scene: Scene) -> None:
        scene.meet()
        served = {name: scene.fetch(name, 0) for name in _all_names(scene)}
        scene.serve(served | {"2.root.json": None})
        scene.pass_s(LIFE_S[role] + 1)
        # Whoever freezes one role may have the keys of the roles that expire sooner.
        for sooner in (each for each in (TIMESTAMP, SNAPSHOT, PROJECT) if LIFE_S[each] < LIFE_S[role]):
            scene.forge(lambda document, r=sooner: date(document, r, scene.now_s), sooner)  # type: ignore[misc]
        scene.meet()

    return attack


for _role in (TIMESTAMP, SNAPSHOT, PROJECT, TARGETS, ROOT):
    _attack(f"freeze of {_role}", Threat.FREEZE)(_frozen(_role))


@_attack("freeze, with the device's clock turned back by a year", Threat.FREEZE)
def _frozen_back(scene: Scene) -> None:
    scene.meet()
    held = {"timestamp.json": scene.fetch("timestamp.json", 0)}
    scene.serve(held)
    scene.pass_s(2 * DAY_S)
    scene.skew_s = -YEAR_S
    scene.meet()


@_attack("freeze, on a device that wakes up in 1970 and was never there before", Threat.FREEZE)
def _frozen_new(scene: Scene) -> None:
    held = {name: scene.fetch(name, 0) for name in _all_names(scene)}
    scene.pass_s(YEAR_S + DAY_S)
    # It is given today's root when it joins, and served last year's documents under it.
    root = scene.rotate(lambda root: None)
    scene.cloud.repository.replace(root, None)
    scene.serve(held)
    scene.skew_s = -scene.now_s + 1000
    scene.device({OLD: DOCUMENTS[OLD]}, root.to_bytes())


@_attack("a clock twenty years ahead refuses, and says that it is the clock", Threat.FREEZE)
def _ahead(scene: Scene) -> None:
    scene.meet()
    scene.skew_s = 20 * YEAR_S
    scene.meet()


# ---------------------------------------------------------------- mix and match


@_attack("an old snapshot with a new timestamp", Threat.MIX_AND_MATCH)
def _mixed_snapshot(scene: Scene) -> None:
    scene.meet()
    old = scene.newest(SNAPSHOT)
    scene.publish()
    scene.serve({metadata_name(SNAPSHOT, scene.newest(SNAPSHOT).signed.version): old.to_bytes()})
    scene.device()


@_attack("an old list with a new snapshot", Threat.MIX_AND_MATCH)
def _mixed_project(scene: Scene) -> None:
    scene.meet()
    old = scene.newest(PROJECT)
    scene.publish()
    scene.serve({metadata_name(PROJECT, scene.newest(PROJECT).signed.version): old.to_bytes()})
    scene.device()


@_attack("targets of another time with a new snapshot", Threat.MIX_AND_MATCH)
def _mixed_targets(scene: Scene) -> None:
    other = scene.newest(TARGETS)
    other.signed.version += 1
    other.sign(scene.key(TARGETS))
    scene.serve({metadata_name(TARGETS, other.signed.version - 1): other.to_bytes()})
    scene.meet()


@_attack("the timestamp served as the snapshot", Threat.MIX_AND_MATCH, Threat.TAMPERED)
def _mixed_roles(scene: Scene) -> None:
    name = metadata_name(SNAPSHOT, scene.newest(SNAPSHOT).signed.version)
    scene.serve({name: scene.fetch("timestamp.json", 0)})
    scene.meet()


@_attack("the root served as the timestamp", Threat.MIX_AND_MATCH)
def _mixed_root(scene: Scene) -> None:
    scene.serve({"timestamp.json": scene.root})
    scene.meet()


@_attack("one version's document under another version's name", Threat.MIX_AND_MATCH)
def _swapped_versions(scene: Scene) -> None:
    scene.publish()
    scene.device({APP: DOCUMENTS[OLD]})


@_attack("an app's document under a model's name", Threat.MIX_AND_MATCH)
def _swapped_kinds(scene: Scene) -> None:
    scene.device({MODEL: DOCUMENTS[OLD]})


# ---------------------------------------------------------------- endless and slow


def _all_names(scene: Scene) -> list[str]:
    return [
        "timestamp.json",
        *(metadata_name(role, scene.newest(role).signed.version) for role in (SNAPSHOT, TARGETS, PROJECT)),
    ]


def _endless(role: str) -> Attack:
    def attack(scene: Scene) -> None:
        scene.limits = Limits(targets_bytes=100_000)
        version = 2 if role == ROOT else None if role == TIMESTAMP else scene.newest(role).signed.version
        honest = scene.fetch

        def fetch(name: str, most_bytes: int) -> bytes | None:
            # A carrier that lets through what it was told not to: the verifier must not rely on it.
            return bytes(most_bytes + 1) if name == metadata_name(role, version) else honest(name, most_bytes)

        scene.fetch = fetch
        scene.meet()

    return attack


for _role in ROLES:
    _attack(f"endless {_role}", Threat.ENDLESS)(_endless(_role))


@_attack("more than a whole refresh may have, in files that each are within bounds", Threat.ENDLESS)
def _endless_sum(scene: Scene) -> None:
    scene.limits = Limits(total_bytes=1500)
    scene.meet()


# ---------------------------------------------------------------- wrong keys, too few, none


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
        upward = scene._upward(role, document) if role not in (ROOT, TIMESTAMP) else {}
        scene.serve({name: each.to_bytes() for name, each in replaced.items()} | upward)
        scene.meet()

    return attack


def _changed(role: str) -> Attack:
    """A document changed after it was signed: the signature names the right key."""

    def attack(scene: Scene) -> None:
        scene.meet()
        document = scene.newest(role)
        document.signed.version += 1
        upward = scene._upward(role, document) if role not in (ROOT, TIMESTAMP) else {}
        name = "timestamp.json" if role == TIMESTAMP else metadata_name(role, document.signed.version)
        scene.serve({name: document.to_bytes()} | upward)
        scene.meet()

    return attack


for _role in ROLES:
    _attack(f"{_role} signed with a key of the attacker's", Threat.WRONG_KEY)(_wrong_key(_role))
    _attack(f"{_role} without a signature", Threat.UNSIGNED)(_unsigned(_role))
    _attack(f"{_role} changed after it was signed", Threat.TAMPERED)(_changed(_role))


@_attack("a whole cloud of the attacker's, with its own root", Threat.WRONG_KEY)
def _other_cloud(scene: Scene) -> None:
    scene.meet()
    other = Publisher(now_s=lambda: scene.now_s + 60)
    other.repository.publish(DOCUMENTS)
    scene.fetch = other.serve
    scene.device()


@_attack("a whole cloud of the attacker's, and a second root that its own first root signs", Threat.WRONG_KEY)
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


@_attack("a root signed by one key where two are needed", Threat.WRONG_KEY, root_keys=3, threshold=2)
def _root_threshold(scene: Scene) -> None:
    _short_root(scene, 1)


@_attack("a root with one key's signature twice where two keys are needed", Threat.TAMPERED, root_keys=3, threshold=2)
def _root_twice(scene: Scene) -> None:
    scene.meet()
    document = scene.rotate(lambda root: None, scene.cloud.root_keys[:1])
    first, second = (key.public_key.keyid for key in scene.cloud.root_keys[:2])
    copied = document.signatures[first].to_dict() | {"keyid": second}
    document.signatures[second] = type(document.signatures[first]).from_dict(copied)
    scene.serve({"2.root.json": document.to_bytes()})
    scene.meet()


@_attack("a root that its new keys have signed, and the old ones have not", Threat.WRONG_KEY)
def _root_new_alone(scene: Scene) -> None:
    scene.meet()
    new = signers.new_signer()

    def exchange(root: Root) -> None:
        root.revoke_key(scene.cloud.root_keys[0].public_key.keyid, ROOT)
        root.add_key(new.public_key, ROOT)

    scene.serve({"2.root.json": scene.rotate(exchange, [new]).to_bytes()})
    scene.meet()


@_attack("a root that its old keys have signed, and the new ones have not", Threat.WRONG_KEY)
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
    _attack(f"{_role} signed with its old key after a rotation", Threat.WRONG_KEY)(_after_rotation(_role))


# ---------------------------------------------------------------- what is not signed


@_attack("a version that nobody signed", Threat.UNSIGNED)
def _unsigned_target(scene: Scene) -> None:
    scene.device()


@_attack("a version that is no longer signed", Threat.UNSIGNED)
def _retired(scene: Scene) -> None:
    scene.meet()
    scene.pass_s(60)
    scene.cloud.repository.retire([OLD])
    scene.meet()


@_attack("a document with one letter changed", Threat.TAMPERED)
def _changed_document(scene: Scene) -> None:
    scene.device({OLD: DOCUMENTS[OLD].replace(b"gate", b"gatf")})


@_attack("the project's key signs what is not the project's", Threat.UNSIGNED)
def _delegation(scene: Scene) -> None:
    path = "apps/other/gate/1.json"

    def abuse(document: Metadata[Targets]) -> None:
        document.signed.targets[path] = TargetFile.from_data(path, b"other", ["sha256"])

    scene.forge(abuse, PROJECT)
    scene.device({path: b"other"})


@_attack("the project's key signs a path that climbs out of the project's", Threat.UNSIGNED)
def _delegation_climbs(scene: Scene) -> None:
    path = "apps/main/../../gate/1.json"

    def abuse(document: Metadata[Targets]) -> None:
        document.signed.targets[path] = TargetFile.from_data(path, b"other", ["sha256"])

    scene.forge(abuse, PROJECT)
    scene.device({path: b"other"})


@_attack("the project's key delegates to a key of the attacker's", Threat.UNSIGNED)
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


# ---------------------------------------------------------------- bytes at random


_SIGNATURE = re.compile(rb'"sig":("[0-9a-f]+")')


def flipped(folder: Path, count: int, seed: int = 1) -> Iterator[Outcome]:
    """`count` bytes (by `seed`) of the documents a device is served, each changed: one attack each."""
    chance = random.Random(seed)
    scene = Scene(folder)
    scene.publish()
    pristine = {name: scene.fetch(name, 0) or b"" for name in _all_names(scene)}
    signatures = {name: [m.span(1) for m in _SIGNATURE.finditer(content)] for name, content in pristine.items()}
    every = [(name, place) for name, content in pristine.items() for place in range(len(content))]
    signed = frozenset({Threat.TAMPERED, Threat.WRONG_KEY, Threat.MIX_AND_MATCH, Threat.UNSIGNED})
    for number, (name, place) in enumerate(chance.choices(every, k=count)):
        content = bytearray(pristine[name])
        mask = chance.choice((1, 4, 32, 64, 128, 255))
        if mask == 32 and any(start < place < end for start, end in signatures[name]):
            mask = 16  # a hexadecimal digit in capitals is the same digit: nothing would have changed
        content[place] ^= mask
        victim = Scene.__new__(Scene)
        victim.__dict__ |= scene.__dict__ | {"folder": folder / f"victim-{number}"}
        victim.serve({name: bytes(content)})
        yield attempt(f"{name}: byte {place}", signed, victim.device)


def garbage(folder: Path, count: int, seed: int = 1) -> Iterator[Outcome]:
    """`count` files (by `seed`) that are nothing, cut short, nested without end, or JSON of the wrong shape."""
    chance = random.Random(seed)
    scene = Scene(folder)
    scene.publish()
    names = _all_names(scene)
    for number in range(count):
        name = chance.choice([*names, "2.root.json"])
        pristine = scene.fetch(name, 0) or scene.root
        kinds: list[bytes] = [
            chance.randbytes(chance.randrange(0, 2000)),
            pristine[: chance.randrange(len(pristine))],
            b"[" * 100_000,
            b'{"signed":' * 5000,
            b"{}",
            b"null",
            b'{"signatures":[],"signed":{"_type":"timestamp"}}',
            b'{"signatures":[{"keyid":1,"sig":null}],"signed":7}',
            pristine.replace(b'"version":', b'"version":-', 1),
            pristine.replace(b'"version":', b'"version":1e999,"v":', 1),
            pristine.replace(b'"spec_version":"1.', b'"spec_version":"9.', 1),
            pristine.replace(b'"_type":"', b'"_type":"x', 1),
            pristine + pristine,
            b"\xff\xfe" + pristine,
        ]
        kind = chance.randrange(len(kinds))
        victim = Scene.__new__(Scene)
        victim.__dict__ |= scene.__dict__ | {"folder": folder / f"victim-{number}"}
        victim.serve({name: kinds[kind]})
        reasons = frozenset({Threat.TAMPERED, Threat.MIX_AND_MATCH, Threat.UNSIGNED, Threat.ENDLESS, Threat.WRONG_KEY})
        yield attempt(f"{name}: garbage of kind {kind}, {number}", reasons, victim.device)
