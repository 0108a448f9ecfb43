"""Tell pickle streams from weights, by content: a pickle runs code when it is read, whatever its file is called.

A stream is followed as an unpickler would follow it, one opcode after another, and nothing of it is ever executed. It
need not be whole: what stands before the damage has run when an unpickler meets it. The known ways past scanners
(broken streams, protocol 0 in plain text, arguments that a strict parser trips over, padding before the payload) are
why arguments are skipped here instead of parsed, and why thousands of valid opcodes in a row are verdict enough.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from typing import BinaryIO

# No loader is needed to see what these names are for.
SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".ckpt", ".p")
# Of random bytes one in four is an opcode; nobody has so many in a row by chance.
_CERTAIN = 10_000
_CHUNK_BYTES = 1 << 16
# Opcodes that fetch what can be called, and those that call it.
_FETCHES = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"})
_CALLS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]*\r?\n?")
_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


def is_pickle(stream: BinaryIO, *, text: bool = False) -> bool:
    """Whether what begins here would be run, or read whole, by an unpickler.

    `text`: it is plain text (labels), of which some words look like the start of a pickle: then only what calls
    something, or ends just where the text ends, counts.
    """
    first, fetched = "", False
    for number, (name, plausible) in enumerate(_followed(stream)):
        first = first or name
        if first == "PERSID":
            return False  # nobody unpickles what begins so; zip archives do ("PK")
        fetched = fetched or (name in _FETCHES and plausible)
        if (name in _CALLS and fetched) or number >= _CERTAIN:
            return True
        if name == "GLOBAL" and plausible and not text:
            return True  # it imports, even where the rest is broken
        if name == "STOP":
            return (first == "PROTO" and number > 1) or not stream.read(1)
    return False


def _followed(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """The opcodes that an unpickler would carry out, each with whether its names can be names."""
    stack: list[bool] = []  # whether each is a mark
    while op := _OPCODES.get(stream.read(1)):
        plausible = True
        if op.arg is not None:
            if op.arg.n == pickletools.UP_TO_NEWLINE:
                lines = 2 if op.name in ("GLOBAL", "INST") else 1
                heads = [_line(stream) for _ in range(lines)]
                if None in heads:
                    return
                plausible = all(_NAME.fullmatch(head or b"") is not None for head in heads)
            elif not _skip(stream, op.arg.n):
                return
        if not _moved(stack, op):
            return
        yield op.name, plausible
        if op.name == "STOP":
            return


def _moved(stack: list[bool], op: pickletools.OpcodeInfo) -> bool:
    """Do to `stack` what the opcode does; False where an unpickler would stop since too little is on it."""
    before = op.stack_before
    takes = len(before)
    if pickletools.markobject in before:
        if True not in stack:
            return False
        while not stack.pop():
            pass
        takes = before.index(pickletools.markobject)
    if len(stack) < takes:
        return False
    if takes:
        del stack[-takes:]
    stack.extend(each is pickletools.markobject for each in op.stack_after)
    # How deep it is beyond this says nothing; a stream of a gigabyte of marks must not fill the memory.
    return len(stack) <= _CERTAIN


def _line(stream: BinaryIO) -> bytes | None:
    """The beginning of the argument that ends with the line; None where the stream ends first."""
    head = stream.readline(_CHUNK_BYTES)
    part = head
    while not part.endswith(b"\n"):
        part = stream.readline(_CHUNK_BYTES)
        if not part:
            return None
    return head


def _skip(stream: BinaryIO, size: int) -> bool:
    """Past an argument of `size` bytes, or one that says its own length; False where the stream ends first."""
    left = size
    if size < 0:
        width = _COUNTED[size]
        counted = stream.read(width)
        if len(counted) < width:
            return False
        left = int.from_bytes(counted, "little")
    while left:
        part = stream.read(min(left, _CHUNK_BYTES))
        if not part:
            return False
        left -= len(part)
    return True
