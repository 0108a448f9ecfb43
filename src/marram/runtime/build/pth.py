"""Read tensors from a `.pth` that PyTorch wrote before version 1.6, without unpickling: nothing in the file is run.

Such a file is four pickles (a magic number, a protocol version, facts on the machine, the state), a fifth with the
storages' keys, then the storages' bytes. `pickletools` only takes a pickle apart into its instructions; this module
carries out those few that build dicts, tuples and numbers, and knows three names (tensor, storage, ordered dict),
which it looks up in a table instead of importing them. Anything else in the file is refused. Records follow PyTorch's
`torch/serialization.py` (legacy format).
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from marram.schema.errors import Invalid

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ByteStorage": np.dtype("u1"),
}
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_MARK = object()


class _Refused(Exception):
    """The file holds something that a state of tensors does not."""


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    length: int


@dataclass(frozen=True, slots=True)
class _Strided:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of `path` by name. Raises Invalid where it is anything but a plain state of tensors."""
    try:
        with path.open("rb") as file:
            if _load(file) != _MAGIC or _load(file) != _PROTOCOL:
                raise _Refused("it is not in PyTorch's format of before 1.6")
            machine = _load(file)
            if not isinstance(machine, dict) or machine.get("little_endian") is not True:
                raise _Refused("it was not written on a little-endian machine")
            state, keys = _load(file), _load(file)
            if not isinstance(state, dict) or not isinstance(keys, list):
                raise _Refused("it holds no dict of tensors")
            tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, _Strided)}
            if len(tensors) != len(state):
                raise _Refused("it holds more than tensors")
            storages = _read_storages(file, keys, {t.storage.key: t.storage for t in tensors.values()})
            return {name: _lay_out(tensor, storages) for name, tensor in tensors.items()}
    except (_Refused, ValueError, KeyError, IndexError, TypeError, EOFError, struct.error) as error:
        raise Invalid(f"not a file of weights: {error}", where=str(path)) from error
    except OSError as error:
        raise Invalid(f"cannot be read ({error.strerror})", where=str(path)) from error


def _read_storages(file: BinaryIO, keys: list[Any], wanted: dict[str, _Storage]) -> dict[str, NDArray[Any]]:
    """After the pickles: for each key its length as int64, then its bytes."""
    storages = {}
    end = os.fstat(file.fileno()).st_size
    for key in keys:
        storage = wanted[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != storage.length or length < 0:
            raise _Refused("a storage has another length than the pickle says")
        size_bytes = length * storage.dtype.itemsize
        if size_bytes > end - file.tell():
            raise _Refused("it ends in the middle of a tensor")
        content = file.read(size_bytes)
        storages[key] = np.frombuffer(content, storage.dtype)
    return storages


def _lay_out(tensor: _Strided, storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
    flat = storages[tensor.storage.key]
    if len(tensor.size) != len(tensor.stride) or min((*tensor.size, *tensor.stride, tensor.offset), default=0) < 0:
        raise _Refused("a tensor has a shape that is none")
    reach = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.size, tensor.stride, strict=True)) + 1
    # The second: strides of zero would make a huge tensor of one number.
    if (0 not in tensor.size and reach > flat.size) or math.prod(tensor.size) > flat.size:
        raise _Refused("a tensor reaches past its storage")
    strides = tuple(s * flat.itemsize for s in tensor.stride)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, strides).copy()


def _load(file: BinaryIO) -> Any:
    """Carry out one pickle's instructions; leaves `file` behind it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name == "PROTO":
            continue
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            _step(name, argument, stack)
    raise _Refused("it ends in the middle of a pickle")


def _step(name: str, argument: Any, stack: list[Any]) -> None:
    """One instruction on `stack`. Lists and dicts are filled in place, as the format has it."""
    if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "GLOBAL"):
        stack.append(_Name(argument) if name == "GLOBAL" else argument)
    elif name in _FRESH:
        stack.append(_FRESH[name]())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name == "APPENDS":
        items = _since_mark(stack)
        _top(stack, list).extend(items)
    elif name == "APPEND":
        item = stack.pop()
        _top(stack, list).append(item)
    elif name == "SETITEMS":
        items = _since_mark(stack)
        _top(stack, dict).update(zip(items[::2], items[1::2], strict=True))
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        _top(stack, dict)[key] = value
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_reduce(function, arguments))
    elif name == "BUILD":
        stack.pop()  # attributes of the ordered dict (versions of layers), which no tensor needs
    else:
        raise _Refused(f"it holds the instruction {name}")


class _Name(str):
    """What a GLOBAL instruction names; never imported."""

    __slots__ = ()


_FRESH: dict[str, Any] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _top(stack: list[Any], kind: type[Any]) -> Any:
    if not isinstance(stack[-1], kind):
        raise _Refused(f"it fills something that is no {kind.__name__}")
    return stack[-1]


def _since_mark(stack: list[Any]) -> list[Any]:
    for index in range(len(stack) - 1, -1, -1):
        if stack[index] is _MARK:
            items = stack[index + 1 :]
            del stack[index:]
            return items
    raise _Refused("an instruction misses its mark")


def _storage(record: Any) -> _Storage:
    """('storage', type, key, device, length, view): views of storages are refused, none are written since 2017."""
    kind, dtype, key, _, length, view = record
    if kind != "storage" or not isinstance(dtype, _Name) or dtype not in _STORAGES or view is not None:
        raise _Refused("it refers to something that is no storage of numbers")
    return _Storage(str(key), _STORAGES[dtype], int(length))


def _reduce(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("it calls what is no function")
    if function == _DICT and not arguments:
        return {}
    if function == _TENSOR:
        storage, offset, size, stride, *_ = arguments
        if not isinstance(storage, _Storage):
            raise _Refused("a tensor has no storage")
        return _Strided(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))
    raise _Refused(f'it calls "{function}"')
