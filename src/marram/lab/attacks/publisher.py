"""A cloud's signed documents in memory, with all keys at hand: honest, until somebody changes what it serves.

Rehearsals and tests publish with it what a small cloud would; attacks take its documents, its keys or a second one of
it, and serve what no honest cloud would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from securesystemslib.signer import CryptoSigner

from marram.schema.device import DesiredApp
from marram.schema.errors import Conflict
from marram.schema.signed import ONLINE, SignedDocument, parse_metadata_name
from marram.trust import signers
from marram.trust.repository import Repository, first_documents


class MemoryShelf:
    """A `trust.repository.Shelf` in memory."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, int], SignedDocument] = {}

    def newest(self, role: str) -> SignedDocument | None:
        """The document of `role` with the highest version."""
        versions = [version for each, version in self.documents if each == role]
        return self.documents[role, max(versions)] if versions else None

    def get(self, role: str, version: int) -> SignedDocument | None:
        """One version of `role`."""
        return self.documents.get((role, version))

    def add(self, documents: Sequence[SignedDocument]) -> None:
        """All or none. Raises Conflict."""
        if any((each.role, each.version) in self.documents for each in documents):
            raise Conflict("that version is there already")
        self.documents |= {(each.role, each.version): each for each in documents}


class Publisher:
    """A repository with its keys. `serve` is what devices fetch from."""

    def __init__(
        self, *, root_keys: int = 1, threshold: int = 1, now_s: Callable[[], float] = time.time, begin: bool = True
    ) -> None:
        self.now_s = now_s
        self.shelf = MemoryShelf()
        self.root_keys: list[CryptoSigner] = [signers.new_signer() for _ in range(root_keys)]
        self.targets_key = signers.new_signer()
        self.online: dict[str, CryptoSigner] = {role: signers.new_signer() for role in ONLINE}
        self.threshold = threshold
        if begin:
            self.begin()

    def begin(self) -> None:
        """Sign the first of everything."""
        public = {role: signer.public_key for role, signer in self.online.items()}
        self.repository.create(*first_documents(self.root_keys, self.targets_key, public, self.threshold, self.now_s()))

    @property
    def repository(self) -> Repository:
        """Over the shelf, with the online keys as they are now."""
        return Repository(self.shelf, {key.public_key.keyid: key for key in self.online.values()}, self.now_s)

    @property
    def root(self) -> bytes:
        """What a device is given when it joins."""
        return self.repository.root()

    def sign(self, apps: Iterable[DesiredApp]) -> None:
        """Sign these versions and the models they name."""
        documents: dict[str, bytes] = {}
        for app in apps:
            documents[app.target] = app.signed()
            documents |= {model.target: model.signed() for model in app.models}
        self.repository.publish(documents)

    def serve(self, name: str, most_bytes: int) -> bytes | None:
        """A file as an honest cloud serves it; a `trust.verifier.Fetch`."""
        return self.repository.read(*parse_metadata_name(name))
