"""The registry: which model versions there are, and their files as a folder for whoever runs them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from marram.registry.digest import bundle_digest, manifest_of
from marram.registry.pickles import is_pickle
from marram.runtime.bundle import CARD, Bundle, parse_card
from marram.schema.errors import Conflict, Invalid, Missing, Retryable
from marram.schema.model import Manifest, ModelCard
from marram.schema.words import did_you_mean
from marram.store import ModelRow, Models, Objects

_MAX_CARD_BYTES = 1_000_000


class Registry:
    """Model versions over the store's rows and objects. Blocking; safe from any thread."""

    def __init__(self, models: Models, objects: Objects) -> None:
        self._models = models
        self._objects = objects

    def add(
        self, card: ModelCard, manifest: Manifest, *, version: int | None = None, lineage: dict[str, Any] | None = None
    ) -> ModelRow:
        """Register the bundle `manifest`, whose files are in the object store already.

        `version` None: the version this content has, else the next free one. `lineage`: what whoever made the model
        wants remembered of its origin (plain JSON types).
        Raises Missing (a file was not uploaded), Invalid (card and files disagree, a pickle), Conflict (the version
        is taken by other content, or this content has another version).
        """
        digest = bundle_digest(manifest)
        known = self._models.by_digest(card.model, digest)
        if known is not None:
            if version is not None and version != known.version:
                raise Conflict(
                    f"this content is {known.name} {known.version} already; it cannot be {version} as well",
                    hint=f"Use {known.name}@{known.version}.",
                )
            return known
        self._check(card, manifest)
        for _ in range(10):
            newest = self._models.get(card.model)
            number = version if version is not None else (newest.version + 1 if newest else 1)
            row = ModelRow(
                card.model, number, digest, card.model_copy(update={"version": number}), manifest, lineage or {}
            )
            try:
                return self._models.add(row)
            except Conflict as error:
                # Somebody registered at the same moment: the same content is no fault, and a number can be moved on.
                same = self._models.by_digest(card.model, digest)
                if same is not None and version in (None, same.version):
                    return same
                if version is not None:
                    raise Conflict(
                        f"{card.model} {version} has other content",
                        hint=f"Raise `version` in its {CARD}, or leave it to the cloud.",
                    ) from error
        raise Retryable(f"{card.model} is being registered by many at once")

    def add_folder(
        self, folder: Path, *, version: int | None = None, lineage: dict[str, Any] | None = None
    ) -> ModelRow:
        """Take the bundle in `folder` in: its files become objects. `version` None: the one its card says.

        Raises Missing or Invalid where it is no bundle, Conflict as `add`, Retryable where the store is away.
        """
        bundle = Bundle.open(folder)
        manifest = manifest_of(folder, bundle.files())
        for file in manifest.files:
            if not self._objects.has(file.sha256):
                self._objects.put_file(folder / file.path, sha256=file.sha256)
        return self.add(bundle.card, manifest, version=version or bundle.card.version, lineage=lineage)

    def get(self, name: str, version: int | None = None) -> ModelRow:
        """One version, the newest where `version` is None. Raises Missing, saying what there is."""
        row = self._models.get(name, version)
        if row is not None:
            return row
        versions = [r.version for r in self._models.list(name)]
        if versions:
            raise Missing(
                f'model "{name}" has no version {version}; there is {", ".join(map(str, sorted(versions)))}',
                hint="`marram model list` shows all.",
            )
        meant = did_you_mean(name, sorted({r.name for r in self._models.list()}))
        raise Missing(f'no model "{name}" in the cloud{meant}', hint="`marram model list` shows all.")

    def list(self, name: str | None = None) -> list[ModelRow]:
        """Every version (of one name), by name, newest first."""
        return self._models.list(name)

    def materialise(self, name: str, version: int, folder: Path) -> Path:
        """The bundle as a folder `folder/NAME/VERSION`, every digest checked; made once, whole or not at all.

        Raises Missing, Invalid (an object is damaged), Retryable (disk full, store away).
        """
        row = self.get(name, version)
        target = folder / name / str(version)
        mark = target / ".digest"
        try:
            if mark.is_file() and mark.read_text() == row.digest:
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as temporary:
                fresh = Path(temporary) / "bundle"
                for file in row.manifest.files:
                    self._fetch(file.sha256, fresh / file.path)
                (fresh / ".digest").write_text(row.digest)
                if target.exists():
                    shutil.rmtree(target)
                fresh.rename(target)
        except OSError as error:
            raise Retryable(f"cannot write the model: {error.strerror}", where=str(target)) from error
        return target

    def _fetch(self, sha256: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self._objects.stream(sha256):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise Invalid("the object is damaged: its content has another digest", where=sha256, hint="Push it again.")

    # ------------------------------------------------------------ checks

    def _check(self, card: ModelCard, manifest: Manifest) -> None:
        """That the files are here, are what the card says, and none of them runs code when it is read."""
        files = {file.path: file for file in manifest.files}
        if len(files) != len(manifest.files):
            raise Invalid("a file is listed twice", where=card.model)
        for file in manifest.files:
            if not self._objects.has(file.sha256):
                raise Missing(f"{file.path} was not uploaded ({file.sha256[:12]}…)", where=card.model)
            if self._objects.size(file.sha256) != file.size_bytes:
                raise Invalid(f"{file.path} is not {file.size_bytes} bytes long", where=card.model)
            why = is_pickle(file.path, file.size_bytes, self._reader(file.sha256))
            if why:
                raise Invalid(
                    f"{why}; a pickle runs code when it is read, so Marram never takes one",
                    where=card.model,
                    hint="Export it as onnx, tflite, safetensors or a torch exported program (.pt2).",
                )
        if CARD not in files or files[CARD].size_bytes > _MAX_CARD_BYTES:
            raise Invalid(f"the bundle has no {CARD}", where=card.model)
        text = self._objects.get(files[CARD].sha256).decode("utf-8", errors="replace")
        inside = parse_card(text, f"{card.model}/{CARD}")
        if inside.model_copy(update={"version": card.version}) != card:
            raise Invalid(f"the card and the bundle's {CARD} differ", where=card.model)
        for index, variant in enumerate(card.variants):
            if variant.file not in files:
                raise Invalid(f'the bundle has no file "{variant.file}"', where=f"{card.model}  variants[{index}].file")
        self._check_labels(card, manifest)

    def _check_labels(self, card: ModelCard, manifest: Manifest) -> None:
        if not isinstance(card.labels, str):
            return
        file = next((f for f in manifest.files if f.path == card.labels), None)
        if file is None:
            raise Invalid(f'the bundle has no file "{card.labels}"', where=f"{card.model}  labels")
        try:
            lines = self._objects.get(file.sha256).decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise Invalid("is not UTF-8 text", where=f"{card.model}/{card.labels}") from error
        if not any(line.strip() for line in lines):
            raise Invalid("names no label", where=f"{card.model}/{card.labels}")

    def _reader(self, sha256: str) -> Any:
        return lambda offset, length: self._objects.read(sha256, offset, length)
