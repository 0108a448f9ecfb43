"""Files by content on the device: what is here, what is missing, and folders made of them.

A file lands under its sha256 in `blobs/` only after its digest was checked; an installed folder in `bundles/` is made
of hard links to such files (copies where the file system has none), put in place by one rename. So a folder is whole
or absent, two versions share what they have in common, and nothing is ever parsed that was not checked first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from marram.edge.disk import disk_fault
from marram.edge.room import Room
from marram.schema.errors import Invalid, Permanent, Retryable, Threat, Untrusted
from marram.schema.model import File, Manifest
from marram.schema.units import format_size
from marram.system.files import make_folder, sync

# Left free for the outbox and everybody else on the disk.
RESERVE_BYTES = 32_000_000
_READ_BYTES = 1 << 20


class Bundles:
    """`blobs/`, `partial/` and `bundles/` in the device's folder. Blocking: call it off the event loop."""

    def __init__(self, folder: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._folder = folder
        self._blobs = folder / "blobs"
        self._partial = folder / "partial"
        self._bundles = folder / "bundles"
        self.room = Room(self._partial, reserve_bytes)

    def make(self) -> None:
        """Create the folders and clear what a cut left half-made. Raises Permanent or Retryable."""
        try:
            for part in (self._blobs, self._partial, self._bundles):
                make_folder(part)
            for leftover in self._bundles.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self.room.clear()
        except OSError as error:
            raise disk_fault(error, self._folder) from error

    def missing(self, manifests: Iterable[Manifest]) -> list[File]:
        """The files of `manifests` that are not here, each content once, small ones first."""
        wanted = {file.sha256: file for manifest in manifests for file in manifest.files}
        return sorted(filter(self.lacks, wanted.values()), key=lambda f: f.size_bytes)

    def lacks(self, file: File) -> bool:
        """Whether this file is not here."""
        return _size(self._blobs / file.sha256) != file.size_bytes

    def content(self, file: File) -> bytes:
        """What a file that is here holds, its digest checked. Raises Retryable where it is not here or was damaged."""
        try:
            if self._sound(file):
                return (self._blobs / file.sha256).read_bytes()
        except OSError as error:
            raise disk_fault(error, self._blobs) from error
        raise _damaged(file)

    def partial(self, file: File) -> Path:
        """Where the bytes of `file` gather until it is whole."""
        return self._partial / file.sha256

    def accept(self, file: File) -> None:
        """Take a whole partial file in.

        Raises Untrusted (TAMPERED), and deletes it, where its content is not what was announced.
        """
        partial = self.partial(file)
        try:
            if _size(partial) != file.size_bytes or _digest(partial) != file.sha256:
                partial.unlink(missing_ok=True)
                raise Untrusted(
                    f"{file.path}: what came is not what was announced (sha256 differs)", threat=Threat.TAMPERED
                )
            sync(partial)
            partial.chmod(0o400)
            partial.replace(self._blobs / file.sha256)
            sync(self._blobs)
        except OSError as error:
            raise disk_fault(error, self._blobs) from error

    def install(self, manifest: Manifest) -> Path:
        """The folder that holds `manifest`'s files, made where it is not there yet; every digest is checked here.

        Raises Retryable where a file is missing or was damaged on disk (it is then deleted: fetch it again), Invalid
        where the list contradicts itself.
        """
        folder = self._bundles / bundle_key(manifest)
        try:
            damaged = [file for file in manifest.files if not self._sound(file)]
            if damaged:
                shutil.rmtree(folder, ignore_errors=True)
                raise _damaged(damaged[0])
            if not self._whole(folder, manifest):
                shutil.rmtree(folder, ignore_errors=True)
                self._build(folder, manifest)
        except OSError as error:
            raise disk_fault(error, folder) from error
        return folder

    def _sound(self, file: File) -> bool:
        blob = self._blobs / file.sha256
        if _size(blob) == file.size_bytes and _digest(blob) == file.sha256:
            return True
        blob.unlink(missing_ok=True)
        return False

    def _whole(self, folder: Path, manifest: Manifest) -> bool:
        """Whether the folder holds every file: a link to the blob just checked, or a copy with its digest."""
        for file in manifest.files:
            place = folder / file.path
            if _size(place) != file.size_bytes:
                return False
            if not place.samefile(self._blobs / file.sha256) and _digest(place) != file.sha256:
                return False
        return True

    def _build(self, folder: Path, manifest: Manifest) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=self._bundles))
        try:
            for file in manifest.files:
                place = temporary / file.path
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    _link(self._blobs / file.sha256, place)
                except (FileExistsError, NotADirectoryError) as error:
                    raise Invalid(f'the bundle lists "{file.path}" twice, or as a file and a folder') from error
            for root, _, _ in os.walk(temporary):
                sync(Path(root))
            temporary.replace(folder)
            sync(self._bundles)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def sweep(self, keep: Iterable[Manifest]) -> None:
        """Delete what none of `keep` needs, half-fetched files included."""
        manifests = list(keep)
        bundles = {bundle_key(manifest) for manifest in manifests}
        blobs = {file.sha256 for manifest in manifests for file in manifest.files}
        for folder in self._bundles.iterdir():
            # Beginning with a dot: just being built.
            if folder.name not in bundles and not folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)
        for kind in (self._blobs, self._partial):
            for blob in kind.iterdir():
                if blob.name.partition(".")[0] not in blobs:
                    blob.unlink(missing_ok=True)


def bundle_key(manifest: Manifest) -> str:
    """The name of a bundle's folder on this device: the sha256 of its sorted list of paths and contents."""
    lines = sorted(f"{file.path}\0{file.sha256}\n" for file in manifest.files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_size(manifest: Manifest, limit_bytes: int) -> None:
    """Raises Permanent where a bundle is larger than a device takes."""
    if manifest.size_bytes > limit_bytes:
        raise Permanent(f"the bundle has {format_size(manifest.size_bytes)}; a device takes {format_size(limit_bytes)}")


def _damaged(file: File) -> Retryable:
    return Retryable(f"{file.path} is missing or was damaged on disk; it is fetched again")


def _link(blob: Path, place: Path) -> None:
    try:
        os.link(blob, place)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network file systems have no hard links
        with blob.open("rb") as source, place.open("xb") as target:
            shutil.copyfileobj(source, target, _READ_BYTES)
            target.flush()
            os.fsync(target.fileno())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
