"""`python -m marram.edge.unpack ENVS KEY < PLAN`: put wheels into a folder of their own, offline, once.

It runs confined (`sandbox`): it reads the wheels and writes in `envs/`, no more. Every file is checked against its
wheel's RECORD; nothing of a package is run, no script is made, `.pth` files are left out, so nothing of it runs by
being there. The folder appears whole by one rename. Installed is what `installer` says (the wheel format, PEP 427).
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from installer import install
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import RecordEntry
from installer.sources import WheelFile
from installer.utils import Scheme

from marram.schema.errors import Invalid, MarramError, Threat, Untrusted
from marram.schema.platform import OWN, normal
from marram.schema.units import format_size
from marram.schema.words import file_fault, first_line
from marram.system.files import sync

MOST_FILES = 100_000
MOST_BYTES = 4_000_000_000
# A wheel of text packs ten times; what packs more than this is made to fill a disk.
MOST_RATIO = 200
_LIBRARY = ("purelib", "platlib")


def put(wheels: Iterable[tuple[str, Path]], envs: Path, key: str, kept: Iterable[str]) -> Path:
    """The folder `envs/key` with `wheels` (file name, where it lies); distributions `kept` stay the device's own.

    Raises Untrusted (TRAVERSAL, BOMB, TAMPERED), Invalid (no wheel, a module that Marram itself runs on). OSError.
    """
    folder = envs / key
    if folder.is_dir():
        return folder
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=envs))
    try:
        kept = set(kept)
        budget = Budget()
        for name, place in wheels:
            if normal(name.partition("-")[0]) not in kept:
                _one(name, place, temporary, budget, kept)
        for root, _, names in os.walk(temporary):
            for each in names:
                sync(Path(root) / each)
            sync(Path(root))
        temporary.replace(folder)
        sync(envs)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


class Budget:
    """What all wheels of an app may take together, unpacked."""

    def __init__(self) -> None:
        self._files, self._bytes = MOST_FILES, MOST_BYTES

    def take(self, name: str, archive: zipfile.ZipFile, packed_bytes: int) -> None:
        """Raises Untrusted (BOMB)."""
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        self._files -= len(entries)
        self._bytes -= unpacked
        if self._files < 0 or self._bytes < 0 or unpacked > max(10_000_000, MOST_RATIO * packed_bytes):
            raise Untrusted(
                f"{len(entries):,} files, {format_size(unpacked)} unpacked, {format_size(packed_bytes)} packed",
                threat=Threat.BOMB,
                where=name,
            )


def _one(name: str, place: Path, folder: Path, budget: Budget, kept: set[str]) -> None:
    try:
        with zipfile.ZipFile(place) as archive:
            budget.take(name, archive, place.stat().st_size)
            for entry in archive.infolist():
                _check_entry(name, entry)
            _check_modules(name, archive.namelist(), kept)
            source = _Named(archive, name)
            try:
                source.validate_record()
            except InstallerError as error:
                raise Untrusted(
                    f"not what its RECORD says: {first_line(error)}", threat=Threat.TAMPERED, where=name
                ) from error
            install(source, _Folder(folder), {})
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise Untrusted(f"not a wheel: {first_line(error)}", threat=Threat.TAMPERED, where=name) from error
    except (InstallerError, KeyError, ValueError, AssertionError) as error:
        raise Invalid(f"not a wheel: {first_line(error)}", where=name) from error


class _Named(WheelFile):
    """A wheel under the name it came by: it lies on this disk under its digest."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        archive.filename = name
        super().__init__(archive)


def _check_entry(name: str, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    odd = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or "\0" in entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if odd or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Untrusted(
            f"{entry.filename!r:.200} would be written outside of its folder", threat=Threat.TRAVERSAL, where=name
        )


def _check_modules(name: str, paths: Iterable[str], kept: set[str]) -> None:
    """That it brings no module which the worker has of the device's own packages."""
    tops = {PurePosixPath(path).parts[0].partition(".")[0] for path in paths if path}
    for own in OWN:
        if own in kept and (taken := tops & set(OWN[own])):
            raise Invalid(f"brings {', '.join(sorted(taken))}, which Marram itself runs on", where=name)


class _Folder(WheelDestination):
    """The one folder that goes onto a worker's path: modules, and the metadata that names them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_file(
        self, scheme: Scheme, path: str | os.PathLike[str], stream: BinaryIO, is_executable: bool
    ) -> RecordEntry:
        """One file; what is no module (scripts, headers, data) and what would run by being there is left out."""
        text = os.fspath(path)
        if scheme in _LIBRARY and not ("/" not in text and text.endswith(".pth")):
            place = self._folder / text
            if not place.resolve().is_relative_to(self._folder.resolve()):
                raise Untrusted(f"{text!r:.200} would be written outside", threat=Threat.TRAVERSAL)
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(stream, file)
        return RecordEntry(text, None, None)

    def write_script(self, name: str, module: str, attr: str, section: Any) -> RecordEntry:
        """None is made."""
        return RecordEntry(name, None, None)

    def finalize_installation(self, scheme: Scheme, record_file_path: Any, records: Any) -> None:
        """Nothing: a folder that is replaced as a whole needs no list for removing it."""


def main(arguments: list[str]) -> int:
    """See the module's words; a fault is one line of JSON on stdout, and status 2."""
    envs, key = arguments
    plan = json.load(sys.stdin)
    try:
        put([(name, Path(place)) for name, place in plan["wheels"]], Path(envs), key, plan["kept"])
    except MarramError as error:
        print(json.dumps({"kind": error.kind, "what": error.what, "where": error.where, "hint": error.hint}))
        return 2
    except OSError as error:
        print(json.dumps({"errno": error.errno, "what": file_fault(error)}))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
