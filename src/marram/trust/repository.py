"""What the cloud signs, so that a device need not trust the cloud: TUF's roles, their documents, their order.

`targets` (offline key) delegates the project's names to a role of that name, whose key signs while the cloud runs;
`snapshot` says which versions of the two belong together, `timestamp` which snapshot is the newest. What is signed are
documents of a few hundred bytes (`DesiredApp.signed()`), which list files by digest and size: no file is read here.

Every change is one `add` of the store, all or nothing, and of two processes that change at once one wins and the other
goes on from there. It must never sign what nobody asked it to sign, and never write a version twice.
The format and the rules: TUF specification 1.0, theupdateframework.github.io/specification.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signer,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from marram.schema.errors import Conflict, Invalid, Missing, Permanent, Retryable
from marram.schema.signed import ISSUED, ONLINE, PROJECT, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, SignedDocument
from marram.trust.clock import DAY_S as DAY_S

LIFE_S = {ROOT: 365 * DAY_S, TARGETS: 365 * DAY_S, PROJECT: 90 * DAY_S, SNAPSHOT: 7 * DAY_S, TIMESTAMP: DAY_S}
# With so much of its life left (or less), an online role is signed anew.
_RENEW_S = {PROJECT: 60 * DAY_S, SNAPSHOT: 4 * DAY_S, TIMESTAMP: DAY_S / 2}
# What the project's key may sign; TUF's patterns go part by part between slashes.
PATHS = [f"apps/{PROJECT}/*/*", f"models/{PROJECT}/*/*"]
# Devices fetch the whole list whenever it changes: about 200 bytes each.
MOST_TARGETS = 5000
_TRIES = 20
_EPOCH_S = 1_577_836_800  # 2020-01-01

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


class Shelf(Protocol):
    """Where signed documents are kept; `store.signed.Signed` is one."""

    def newest(self, role: str) -> SignedDocument | None:
        """The document of `role` with the highest version."""
        ...

    def get(self, role: str, version: int) -> SignedDocument | None:
        """One version of `role`."""
        ...

    def add(self, documents: Sequence[SignedDocument]) -> None:
        """All of them or none. Raises Conflict where one of these versions is there already."""
        ...


@dataclass(slots=True)
class Documents:
    """The newest version of every role. `changed`: those to be signed anew and stored."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    project: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    stored: dict[str, bytes] = field(default_factory=dict)

    def of(self, role: str) -> Metadata[Any]:
        """The document of `role`."""
        name = {ROOT: "root", TARGETS: "targets", PROJECT: "project", SNAPSHOT: "snapshot", TIMESTAMP: "timestamp"}
        found: Metadata[Any] = getattr(self, name[role])
        return found


class Repository:
    """Over a shelf. `signers`: the online keys, by key id. Blocking; safe from many threads and processes."""

    def __init__(self, shelf: Shelf, signers: Mapping[str, Signer], now_s: Callable[[], float] = time.time) -> None:
        self._shelf = shelf
        self._signers = dict(signers)
        self._now_s = now_s

    # ------------------------------------------------------------ reading

    @property
    def exists(self) -> bool:
        """Whether it was ever created."""
        return self._shelf.newest(ROOT) is not None

    def root(self) -> bytes:
        """The newest root document: what a device that joins is given to trust. Raises Missing."""
        document = self._shelf.newest(ROOT)
        if document is None:
            raise Missing("nothing was ever signed here", hint="Start the cloud once: marram cloud")
        return document.content

    def read(self, role: str, version: int | None) -> bytes | None:
        """One document as it was stored; the newest where `version` is None."""
        document = self._shelf.newest(role) if version is None else self._shelf.get(role, version)
        return None if document is None else document.content

    def expires_s(self) -> dict[str, float]:
        """By role, when its newest document expires (seconds since 1970)."""
        newest = {role: self._shelf.newest(role) for role in LIFE_S}
        return {role: document.expires_s for role, document in newest.items() if document is not None}

    def targets(self) -> set[str]:
        """The paths that are signed now."""
        return set(self.documents().project.signed.targets)

    def documents(self) -> Documents:
        """The newest of every role, parsed. Raises Missing (never created), Permanent (damaged)."""
        stored = {}
        for role in LIFE_S:
            document = self._shelf.newest(role)
            if document is None:
                raise Missing("nothing was ever signed here", hint="Start the cloud once: marram cloud")
            stored[role] = document.content
        return Documents(
            root=parse(Root, stored[ROOT]),
            targets=parse(Targets, stored[TARGETS]),
            project=parse(Targets, stored[PROJECT]),
            snapshot=parse(Snapshot, stored[SNAPSHOT]),
            timestamp=parse(Timestamp, stored[TIMESTAMP]),
            stored=stored,
        )

    def signs(self) -> bool:
        """Whether one of the keys here may sign online: none does where they are another cloud's. As `documents`."""
        documents = self.documents()
        return any(
            keyid in self._signers
            for role in ONLINE
            for keyid in role_keyids(role, documents.root.signed, documents.targets.signed)
        )

    # ------------------------------------------------------------ changing

    def create(self, root: bytes, targets: bytes) -> None:
        """Begin with `root` and `targets`, as `first_documents` made them, and nothing signed yet.

        Raises Conflict where somebody else began first, Missing where an online key they name is not here.
        """
        documents = Documents(
            root=parse(Root, root),
            targets=parse(Targets, targets),
            project=Metadata(Targets()),
            snapshot=Metadata(Snapshot(meta={})),
            timestamp=Metadata(Timestamp(snapshot_meta=MetaFile(1))),
        )
        self._finish(documents, {ROOT, TARGETS, PROJECT})

    def publish(self, targets: Mapping[str, bytes]) -> bool:
        """Sign `targets` (document by path), beside what is signed; whether that changed anything.

        Raises Invalid (a path that is not the project's), Retryable, Missing (a key is not here).
        """
        files = {path: TargetFile.from_data(path, content, ["sha256"]) for path, content in targets.items()}
        for path in files:
            check_path(path)
        return self._change(lambda present: {**present, **files})

    def retire(self, paths: Iterable[str]) -> bool:
        """Take paths off the list; whether that changed anything. Devices that run them already go on."""
        gone = set(paths)
        return self._change(lambda present: {path: file for path, file in present.items() if path not in gone})

    def refresh(self) -> list[str]:
        """Sign anew what would expire among the roles whose keys are here; returns them."""

        def due(documents: Documents) -> set[str]:
            now_s = self._now_s()
            return {r for r in ONLINE if documents.of(r).signed.expires.timestamp() - now_s < _RENEW_S[r]}

        return sorted(self._retried(due))

    def replace(self, root: Metadata[Root] | None, targets: Metadata[Targets] | None) -> None:
        """Put root or targets documents, signed elsewhere, in place of the present ones (each one version higher).

        Whatever they make invalid among the others is signed anew in the same step. The caller has verified them.
        Raises Conflict where the present ones are others by now.
        """
        documents = self.documents()
        changed = set[str]()
        for role, new in ((ROOT, root), (TARGETS, targets)):
            if new is None:
                continue
            present = documents.of(role).signed.version
            # A device goes from root to root, one by one; of the others it takes any that is newer.
            if new.signed.version <= present or (role == ROOT and new.signed.version != present + 1):
                raise Conflict(
                    f"this is version {new.signed.version} of {role}; version {present} is in force by now",
                    hint="Make the change again.",
                )
            setattr(documents, role, new)
            changed.add(role)
        self._finish(documents, changed)

    def _change(self, change: Callable[[dict[str, TargetFile]], dict[str, TargetFile]]) -> bool:
        def changed(documents: Documents) -> set[str]:
            present = documents.project.signed.targets
            wanted = change(dict(present))
            if wanted == present:
                return set()
            if len(wanted) > MOST_TARGETS:
                raise Permanent(
                    f"{len(wanted)} versions would be signed at once; {MOST_TARGETS} is the most that devices are sent"
                )
            documents.project.signed.targets = wanted
            return {PROJECT}

        return bool(self._retried(changed))

    def _retried(self, change: Callable[[Documents], set[str]]) -> set[str]:
        """Apply `change` (it returns which roles it changed) to the newest documents until nobody was faster."""
        for _ in range(_TRIES):
            documents = self.documents()
            changed = change(documents)
            if not changed:
                return changed
            try:
                self._finish(documents, changed)
            except Conflict:
                continue
            return changed
        raise Retryable("others keep changing what is signed")

    def _finish(self, documents: Documents, changed: set[str]) -> None:
        """Sign what `changed`, and whatever stands on it, and store it all."""
        out: dict[str, bytes] = {}

        def sign(role: str) -> None:
            document = documents.of(role)
            document.signed.version = next_version(document.signed.version, self._now_s())
            date(document, role, self._now_s())
            self._sign(document, role, documents)
            out[role] = document.to_bytes()

        for role in (ROOT, TARGETS):  # signed elsewhere, by their own keys
            if role in changed:
                out[role] = documents.of(role).to_bytes()
        if PROJECT in changed or not self._valid(documents, PROJECT):
            sign(PROJECT)
        if {TARGETS, PROJECT} & set(out) or SNAPSHOT in changed or not self._valid(documents, SNAPSHOT):
            for role in (TARGETS, PROJECT):
                content = out.get(role) or documents.stored[role]
                version = documents.of(role).signed.version
                documents.snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version, content, ["sha256"])
            sign(SNAPSHOT)
        if SNAPSHOT in out:
            documents.timestamp.signed.snapshot_meta = MetaFile.from_data(
                documents.snapshot.signed.version, out[SNAPSHOT], ["sha256"]
            )
        if out or TIMESTAMP in changed:
            sign(TIMESTAMP)
        self._shelf.add(
            [
                SignedDocument(role, documents.of(role).signed.version, content, _expires_s(documents.of(role)))
                for role, content in out.items()
            ]
        )

    def _valid(self, documents: Documents, role: str) -> bool:
        """Whether the stored document of `role` still counts under the present root and targets."""
        document = documents.of(role)
        delegator = documents.targets.signed if role == PROJECT else documents.root.signed
        try:
            delegator.verify_delegate(role, document.signed_bytes, document.signatures)
        except (RepositoryError, ValueError):
            return False
        return True

    def _sign(self, document: Metadata[Any], role: str, documents: Documents) -> None:
        keyids = role_keyids(role, documents.root.signed, documents.targets.signed)
        signers = [self._signers[keyid] for keyid in keyids if keyid in self._signers]
        if not signers:
            raise Missing(
                f"none of the keys that may sign {role} is here",
                hint="`marram cloud root status` names them; a role that runs alone needs --keys FOLDER.",
            )
        document.signatures.clear()
        for signer in signers:
            document.sign(signer, append=True)


def first_documents(
    root_keys: Sequence[Signer], targets_key: Signer, online: Mapping[str, SSlibKey], threshold: int, now_s: float
) -> tuple[bytes, bytes]:
    """The first root and targets documents, signed: with these the keys that need not be at hand have done their part.

    `online`: the key of each role in `schema.signed.ONLINE`. Raises Invalid (the threshold).
    """
    if not 1 <= threshold <= len(root_keys):
        raise Invalid(f"a threshold of {threshold} with {len(root_keys)} root keys can never be met")
    root = Root(consistent_snapshot=True)
    for signer in root_keys:
        root.add_key(signer.public_key, ROOT)
    root.roles[ROOT].threshold = threshold
    root.add_key(targets_key.public_key, TARGETS)
    root.add_key(online[SNAPSHOT], SNAPSHOT)
    root.add_key(online[TIMESTAMP], TIMESTAMP)
    key = online[PROJECT]
    role = DelegatedRole(PROJECT, [key.keyid], 1, True, list(PATHS))
    targets = Targets(delegations=Delegations({key.keyid: key}, {PROJECT: role}), version=next_version(0, now_s))
    signed_root, signed_targets = Metadata(root), Metadata(targets)
    date(signed_root, ROOT, now_s)
    date(signed_targets, TARGETS, now_s)
    for signer in root_keys:
        signed_root.sign(signer, append=True)
    signed_targets.sign(targets_key)
    return signed_root.to_bytes(), signed_targets.to_bytes()


def date(document: Metadata[Any], role: str, now_s: float) -> None:
    """Give a document its life from now on, and note when that was."""
    document.signed.expires = datetime.fromtimestamp(now_s, UTC) + timedelta(seconds=LIFE_S[role])
    document.signed.unrecognized_fields[ISSUED] = int(now_s)


def next_version(version: int, now_s: float) -> int:
    """The version after `version`, of any role but root: seconds since 2020, so that it is also after lost ones.

    A cloud whose database comes back from a backup would else sign versions that devices have seen already, and they
    would refuse them for long.
    """
    return max(version + 1, int(now_s) - _EPOCH_S)


def role_keyids(role: str, root: Root, targets: Targets) -> list[str]:
    """Ids of the keys that may sign `role`."""
    delegator = targets if role == PROJECT else root
    return list(delegator.get_delegated_role(role).keyids)


def role_key(keyid: str, root: Root, targets: Targets) -> SSlibKey:
    """The key of that id, wherever it is listed. Raises ValueError."""
    try:
        key = root.get_key(keyid)
    except ValueError:
        key = targets.get_key(keyid)
    assert isinstance(key, SSlibKey)
    return key


def check_path(path: str) -> None:
    """That `path` is the project's to sign. Raises Invalid."""
    role = DelegatedRole(PROJECT, ["-"], 1, True, list(PATHS))
    if not role.is_delegated_path(path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(f'"{path}" is not for the key of "{PROJECT}" to sign')


def parse(kind: type[T], content: bytes) -> Metadata[T]:
    """A document of our own store or a person's file. Raises Permanent where it is none of that kind."""
    try:
        document: Metadata[T] = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise Permanent("this signed document is damaged", hint="Restore it from a backup.") from error
    if not isinstance(document.signed, kind):
        raise Permanent(f"a document of the role {document.signed.type} where {kind.type} belongs")
    return document


def _expires_s(document: Metadata[Any]) -> float:
    return float(document.signed.expires.timestamp())
