"""The registry: which model versions there are, which channels point to them, and their files as a folder.

Nothing gets in that was not looked into, opened and asked once (`runtime/admit`); nothing that is in ever changes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.registry.digest import bundle_digest, manifest_of
from marram.runtime.admit import admit
from marram.runtime.bundle import CARD, Bundle, parse_card
from marram.schema.errors import Conflict, Invalid, Missing, Retryable
from marram.schema.ids import ModelReference, parse_model_reference
from marram.schema.model import File, Manifest, ModelCard
from marram.schema.words import did_you_mean
from marram.store import ModelRow, Models, Objects

_MAX_CARD_BYTES = 1_000_000
# In the class below, `list` is its own.
_Names = list[str]


class Registry:
    """Model versions over the store's rows and objects. Blocking; safe from any thread."""

    def __init__(
        self,
        models: Models,
        objects: Objects,
        *,
        scratch: Path | None = None,
        admits: Callable[[Path], list[str]] = admit,
    ) -> None:
        """`scratch`: where a bundle lies while it is checked (the system's own temporary folder).

        `admits`: checks the bundle in a folder; see `admit`.
        """
        self._models = models
        self._objects = objects
        self._scratch = scratch
        self._admits = admits

    def add(
        self, card: ModelCard, manifest: Manifest, *, version: int | None = None, lineage: dict[str, Any] | None = None
    ) -> ModelRow:
        """Register the bundle `manifest`, whose files are in the object store already.

        `version` None: the version this content has, else the next free one. `lineage`: what whoever made the model
        wants remembered of its origin (plain JSON types); what could not be checked here is added as `unchecked`.
        Raises Missing (a file was not uploaded), Invalid (card and files disagree), Untrusted (a pickle, a bomb … as
        `admit`), Conflict (the version is taken by other content, or this content has another version).
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
        if version is not None and self._models.get(card.model, version) is not None:
            raise _taken(card.model, version)
        remembered = (lineage or {}) | {"unchecked": self._check(card, manifest)}
        for _ in range(10):
            newest = self._models.get(card.model)
            number = version if version is not None else (newest.version + 1 if newest else 1)
            row = ModelRow(
                card.model, number, digest, card.model_copy(update={"version": number}), manifest, remembered
            )
            try:
                return self._models.add(row)
            except Conflict as error:
                # Somebody registered at the same moment: the same content is no fault, and a number can be moved on.
                same = self._models.by_digest(card.model, digest)
                if same is not None and version in (None, same.version):
                    return same
                if version is not None:
                    raise _taken(card.model, version) from error
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
        raise Missing(
            f'no model "{name}" in the cloud{meant}', hint="`marram model list` shows all, `marram model add` adds one."
        )

    def resolve(self, reference: str) -> ModelRow:
        """What `name`, `name@3`, `name@stable` means now. Raises Invalid (no reference), Missing."""
        return self.get(*self.pinned(reference))

    def pinned(self, reference: str) -> tuple[str, int | None]:
        """Name and version of a reference: a channel's version now, None where it has none. Raises as `resolve`."""
        parsed = _parsed(reference)
        if parsed.channel is None:
            return parsed.name, parsed.version
        channels = self.channels(parsed.name)
        if parsed.channel in channels:
            return parsed.name, channels[parsed.channel]
        self.get(parsed.name)
        what = f'model "{parsed.name}" has no channel "{parsed.channel}"'
        has = f"; it has {', '.join(sorted(channels))}" if channels else ""
        raise Missing(what + (did_you_mean(parsed.channel, channels) or has),
                      hint=f"`marram model tag {parsed.name}@VERSION {parsed.channel}` makes it.")  # fmt: skip

    def channels(self, name: str) -> dict[str, int]:
        """The channels of a model, and the version that each points to."""
        return {channel: version for (_, channel), version in self._models.channels(name).items()}

    def tag(self, name: str, channel: str, version: int) -> int | None:
        """Have `channel` point to a version, in one act; returns the version before. Raises Missing."""
        self.get(name, version)
        return self._models.move(name, channel, version)

    def untag(self, name: str, channel: str) -> int:
        """Take a channel away; returns what it pointed to. Raises Missing."""
        before = self._models.move(name, channel, None)
        if before is None:
            self.get(name)
            raise Missing(f'model "{name}" has no channel "{channel}"')
        return before

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
            if _says(mark, row.digest):
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as temporary:
                fresh = Path(temporary) / "bundle"
                self._bring(row.manifest, fresh)
                (fresh / ".digest").write_text(row.digest)
                # Another process may have made it meanwhile, and may be reading it: that one stays.
                if _says(mark, row.digest):
                    return target
                if target.exists():
                    shutil.rmtree(target)
                try:
                    fresh.rename(target)
                except OSError:
                    if not _says(mark, row.digest):
                        raise
        except OSError as error:
            raise Retryable(f"cannot write the model: {error.strerror}", where=str(target)) from error
        return target

    def _bring(self, manifest: Manifest, folder: Path) -> None:
        for file in manifest.files:
            self._fetch(file.sha256, folder / file.path)

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

    def _check(self, card: ModelCard, manifest: Manifest) -> _Names:
        """That the files are here and are those of the card, and what `admit` says; returns what it could not check."""
        files = {file.path: file for file in manifest.files}
        for file in manifest.files:
            if not self._objects.has(file.sha256):
                raise Missing(f"{file.path} was not uploaded ({file.sha256[:12]}…)", where=card.model)
            if self._objects.size(file.sha256) != file.size_bytes:
                raise Invalid(f"{file.path} is not {file.size_bytes} bytes long", where=card.model)
        if CARD not in files or files[CARD].size_bytes > _MAX_CARD_BYTES:
            raise Invalid(f"the bundle has no {CARD}", where=card.model)
        text = self._objects.get(files[CARD].sha256).decode("utf-8", errors="replace")
        inside = parse_card(text, f"{card.model}/{CARD}")
        if inside.model_copy(update={"version": card.version}) != card:
            raise Invalid(f"the card and the bundle's {CARD} differ", where=card.model)
        for index, variant in enumerate(card.variants):
            if variant.file not in files:
                raise Invalid(f'the bundle has no file "{variant.file}"', where=f"{card.model}  variants[{index}].file")
        for index, cut in enumerate(card.cuts):
            for part, path in (("front", cut.front), ("back", cut.back)):
                if path not in files:
                    raise Invalid(f'the bundle has no file "{path}"', where=f"{card.model}  cuts[{index}].{part}")
        self._check_labels(card, manifest)
        self._check_nothing_else(card, files)
        try:
            with tempfile.TemporaryDirectory(dir=self._scratch, prefix="model-") as temporary:
                folder = Path(temporary) / card.model
                self._bring(manifest, folder)
                return self._admits(folder)
        except OSError as error:
            raise Retryable(f"cannot write the model: {error.strerror}", where=card.model) from error

    def _check_nothing_else(self, card: ModelCard, files: dict[str, File]) -> None:
        """A file that nothing reads has no business on a device: it could be anything."""
        read = {CARD, *card.files, *(f"{file}.data" for file in card.files)}
        extra = sorted(set(files) - read - ({card.labels} if isinstance(card.labels, str) else set()))
        if extra:
            raise Invalid(f'nothing in {CARD} names "{extra[0]}"', where=card.model, hint="Leave it out of the bundle.")

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


def _says(mark: Path, digest: str) -> bool:
    try:
        return mark.read_text() == digest
    except FileNotFoundError:
        return False


def _taken(name: str, version: int) -> Conflict:
    return Conflict(
        f"{name} {version} has other content", hint=f"Raise `version` in its {CARD}, or leave it to the cloud."
    )


def _parsed(reference: str) -> ModelReference:
    try:
        return parse_model_reference(reference)
    except ValueError as error:
        hint = "A folder means nothing here: push it, then write name or name@version." if "/" in reference else None
        raise Invalid(f'"{reference}" names no model: {error}', hint=hint) from error
