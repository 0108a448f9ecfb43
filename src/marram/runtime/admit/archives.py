"""Look into everything that holds files: a pickle inside, a name that leaves the folder, a bomb.

What cannot be looked into is refused: each way of hiding a member from a scanner that some loader reads all the same
(encryption flags, wrong checksums, two names for one member, methods that nobody has) is a fault of the archive here.
It is meant to run where memory and time are bounded (`child.py`).
"""

from __future__ import annotations

import ast
import bz2
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from marram.runtime.admit.pickles import SUFFIXES, is_pickle
from marram.schema.errors import Threat, Untrusted

HINT = "Export it as onnx, tflite or a torch exported program (.pt2)."
_HEAD_BYTES = 1 << 20
_MOST_MEMBERS = 10_000
_MOST_NESTED_BYTES = 64_000_000
_MOST_DEPTH = 3
# Weights hardly shrink; what unpacks to a hundred times its size, and to more than this, was made to.
_MOST_RATIO = 100
_SMALL_BYTES = 64_000_000
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_HIDES_BITS = 0x1 | 0x40 | 0x2000  # encrypted, strongly encrypted, names masked
_CLOSED = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\xa0": "LZH",
    b"\x1f\x9d": "compress",
}
_NPY = b"\x93NUMPY"


def look_into(path: Path, name: str, *, text: bool = False) -> None:
    """Raises Untrusted where the file, called `name`, holds what Marram never takes in. `text`: labels, a card."""
    if name.lower().endswith(SUFFIXES):
        raise _pickle(f"{name} is named as a pickle")
    with path.open("rb") as file:
        _content(file, name, path.stat().st_size, 0, text=text)


def _content(file: BinaryIO, name: str, size: int, depth: int, *, text: bool = False) -> None:
    """One stream from its beginning; `file` can be read again from there."""
    head = file.read(512)
    for magic, kind in _CLOSED.items():
        if head.startswith(magic):
            raise _pickle(f"{name} is a {kind} archive, which nobody here can look into")
    file.seek(0)
    if head.startswith(_NPY):
        _npy(file, name)
    elif is_pickle(file, text=text or _is_text(head)):
        raise _pickle(f"{name} holds a pickle")
    unpacked = _unpacked(file, head)
    if unpacked and is_pickle(io.BytesIO(unpacked)):
        raise _pickle(f"{name} holds a compressed pickle")
    file.seek(0)
    if head[257:262] == b"ustar":
        _tar(file, name, depth)
    # A zip archive may stand behind anything: loaders find it from its end.
    file.seek(0)
    if zipfile.is_zipfile(file):
        file.seek(0)
        _zip(file, name, size, depth)


def _zip(file: BinaryIO, name: str, size: int, depth: int) -> None:
    if depth >= _MOST_DEPTH:
        raise _bomb(f"{name} is an archive in an archive in an archive")
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise _pickle(f"{name} is an archive that cannot be looked into ({error})") from error
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise _bomb(f"{name} has {len(members):,} members")
    total = sum(member.file_size for member in members)
    if total > max(_SMALL_BYTES, _MOST_RATIO * size):
        raise _bomb(f"{name} has {size:,} bytes and unpacks to {total:,}")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise _pickle(f"{name} has two members of one name: which is read depends on who reads")
    root = names[0].partition("/")[0] + "/" if names else ""
    exported = f"{root}archive_format" in names
    for member in members:
        _check_name(member.filename, name, link=stat.S_ISLNK(member.external_attr >> 16))
        if member.flag_bits & _HIDES_BITS or member.compress_type not in _READABLE:
            raise _pickle(f"{member.filename} in {name} cannot be looked into (it is marked as encrypted or packed)")
        if member.is_dir():
            continue
        # An exported program always carries its example inputs so. The engine leaves them out before it loads it.
        if exported and member.filename.startswith(f"{root}data/sample_inputs/"):
            continue
        try:
            with archive.open(member) as inside:
                _member(inside, f"{member.filename} in {name}", member.file_size, depth)
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError, ValueError,
                zlib.error, lzma.LZMAError) as error:  # fmt: skip
            raise _pickle(f"{member.filename} in {name} cannot be looked into ({error})") from error


def _member(inside: IO[bytes], name: str, size: int, depth: int) -> None:
    """A member: read to its end, so that a checksum that does not match is seen."""
    if name.split(" in ")[0].lower().endswith(SUFFIXES):
        raise _pickle(f"{name} is named as a pickle")
    if size <= _MOST_NESTED_BYTES:
        _content(io.BytesIO(inside.read()), name, size, depth + 1)
        return
    head = io.BytesIO(inside.read(_HEAD_BYTES))
    _content(head, name, _HEAD_BYTES, _MOST_DEPTH)
    while inside.read(_HEAD_BYTES):
        pass


def _tar(file: BinaryIO, name: str, depth: int) -> None:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number > _MOST_MEMBERS:
                    raise _bomb(f"{name} has more than {_MOST_MEMBERS:,} members")
                _check_name(member.name, name, link=member.issym() or member.islnk())
                inside = archive.extractfile(member) if member.isfile() else None
                if inside is not None:
                    _member(inside, f"{member.name} in {name}", member.size, depth)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise _pickle(f"{name} is an archive that cannot be looked into ({error})") from error


def _check_name(inner: str, name: str, *, link: bool) -> None:
    pure = PurePosixPath(inner)
    if pure.is_absolute() or ".." in pure.parts or "\\" in inner or "\0" in inner or inner[1:2] == ":" or link:
        what = "is a link" if link else "leaves the folder"
        raise Untrusted(f'"{inner[:200]}" in {name} {what}', threat=Threat.TRAVERSAL)


def _npy(file: BinaryIO, name: str) -> None:
    """A NumPy array of objects is a pickle with a header in front."""
    head = file.read(12)
    version, length = head[6:7], int.from_bytes(head[8 : 10 if head[6:7] == b"\x01" else 12], "little")
    file.seek(10 if version == b"\x01" else 12)
    try:
        described = ast.literal_eval(file.read(min(length, 65536)).decode("latin-1"))
        kinds = str(described["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise _pickle(f"{name} is a NumPy array whose header cannot be read") from error
    if re.search(r"'[|<>=]?O\d*'", f"'{kinds}'" if isinstance(described["descr"], str) else kinds):
        raise _pickle(f"{name} holds a NumPy array of objects, which are pickled")


def _unpacked(file: BinaryIO, head: bytes) -> bytes:
    """The beginning of what a compressed stream holds; nothing where it is none."""
    openers: dict[bytes, Callable[[], Any]] = {
        b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
        b"\x78": zlib.decompressobj,
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lzma.LZMADecompressor,
        b"\x5d\x00\x00": lzma.LZMADecompressor,
    }
    for magic, opener in openers.items():
        if head.startswith(magic):
            file.seek(0)
            try:
                return bytes(opener().decompress(file.read(_HEAD_BYTES), _HEAD_BYTES))
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
                return b""
    return b""


def _is_text(head: bytes) -> bool:
    return bool(head) and all(byte >= 32 or byte in b"\t\r\n" for byte in head[:-4] or head) and 127 not in head


def _pickle(what: str) -> Untrusted:
    return Untrusted(f"{what}; a pickle runs code when it is read, so Marram never takes one",
                     threat=Threat.PICKLE, hint=HINT)  # fmt: skip


def _bomb(what: str) -> Untrusted:
    return Untrusted(what, threat=Threat.BOMB, hint=HINT)
