"""A cloud and a device that it updates, and the attacks that are played on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Root

from marram.lab.attacks.outcome import Outcome, attempt
from marram.lab.attacks.publisher import Publisher
from marram.schema.errors import Threat
from marram.schema.signed import PROJECT, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, metadata_name
from marram.trust.clock import Clock, Sources
from marram.trust.repository import DAY_S, date
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
            changed |= self.upward(role, document)
        self.serve(changed)

    def names(self) -> list[str]:
        """What a device that has seen nothing yet asks for, after the root."""
        listed = (metadata_name(role, self.newest(role).signed.version) for role in (SNAPSHOT, TARGETS, PROJECT))
        return ["timestamp.json", *listed]

    def upward(self, role: str, document: Metadata[Any]) -> dict[str, bytes]:
        """What stands on `document` made to fit, by name: snapshot and timestamp, signed with their own keys."""
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


class Suite:
    """Attacks by name, each on a scene of its own."""

    def __init__(self) -> None:
        self._attacks: dict[str, tuple[frozenset[Threat], Attack, dict[str, Any]]] = {}

    def attack(self, name: str, *threats: Threat, **scene: Any) -> Callable[[Attack], Attack]:
        """The function below is one, to be refused for one of `threats`. `scene`: fields of `Scene`."""
        assert name not in self._attacks, name

        def added(attack: Attack) -> Attack:
            self._attacks[name] = frozenset(threats), attack, scene
            return attack

        return added

    def names(self) -> list[str]:
        return list(self._attacks)

    def play(self, name: str, folder: Path) -> Outcome:
        """One of them, with a device in `folder` (new, or empty)."""
        threats, attack, options = self._attacks[name]
        return attempt(name, threats, lambda: attack(Scene(folder, **options)))

    def mount(self, folder: Path) -> Iterator[Outcome]:
        """One after the other, each with a device of its own below `folder`."""
        for number, name in enumerate(self._attacks):
            yield self.play(name, folder / str(number))
