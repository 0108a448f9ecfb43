"""Tell pickle files, which run code when they are read, from weights: Marram never takes one in.

A model comes as tflite, onnx, safetensors, npz or an exported program. What is looked at is the content, not only the
name: a pickle stays one when it is renamed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

_SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".ckpt")
_LOOK_BYTES = 64


def is_pickle(name: str, size_bytes: int, read: Callable[[int, int], bytes]) -> str | None:
    """Why the file is taken for a pickle, or None. `read(offset, length)` gives its bytes."""
    if name.lower().endswith(_SUFFIXES):
        return f"{name} is named as a pickle"
    head = read(0, min(_LOOK_BYTES, size_bytes))
    # Protocol 2 and later start with PROTO (0x80) and a small version; protocol 4 and later then open a frame.
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5 and size_bytes > 2 and read(size_bytes - 1, 1) == b".":
        return f"{name} holds a pickle"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(_Ranged(size_bytes, read)) as archive:
                inside = [entry for entry in archive.namelist() if entry.rpartition("/")[2] == "data.pkl"]
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            return None  # damaged: the engine that loads it says so
        if inside:
            return f"{name} holds a pickle ({inside[0]})"
    return None


class _Ranged(io.RawIOBase):
    """Just enough of a file for zipfile, over ranged reads."""

    def __init__(self, size_bytes: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._at = size_bytes, read, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a seek before the start")
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        length = max(0, self._size - self._at) if size is None or size < 0 else size
        data = self._read(self._at, length) if length else b""
        self._at += len(data)
        return data
