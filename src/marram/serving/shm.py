"""Memory that two processes share: a fixed number of slots, each holding one question's bytes, then its answer's.

The memory has no name (memfd on Linux, an unlinked file elsewhere): it is handed over as an open file, and is gone with
the last process that holds it, however that ends. Who asks takes a slot and gives it back once the answer was copied
out; so whatever becomes of the other side, no slot is lost. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable


class Slots:
    """`count` slots of `size_bytes` each. One process `make`s them and takes and gives back, the other `attach`es."""

    def __init__(self, descriptor: int, count: int, size_bytes: int) -> None:
        """Use `make` or `attach`."""
        self.descriptor = descriptor
        self.count = count
        self.size_bytes = size_bytes
        self._memory = mmap.mmap(descriptor, count * size_bytes)
        # The one given back last is taken first: only so many slots are ever touched as are in use at once.
        self._free = list(range(count))

    @classmethod
    def make(cls, count: int, size_bytes: int) -> Slots:
        """New ones. Raises OSError."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("marram")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, count * size_bytes)
        return cls(descriptor, count, size_bytes)

    @classmethod
    def attach(cls, descriptor: int, count: int, size_bytes: int) -> Slots:
        """Those that the process made which handed the descriptor over."""
        return cls(descriptor, count, size_bytes)

    @property
    def free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    def take(self) -> int | None:
        """A slot, None where all are taken."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Nobody needs what is in it any more."""
        self._free.append(slot)

    def write(self, slot: int, parts: Iterable[bytes | memoryview], size_bytes: int) -> bool:
        """The parts one after another; False, and nothing written, where `size_bytes` of them have no room."""
        if size_bytes > self.size_bytes:
            return False
        at = slot * self.size_bytes
        for part in parts:
            self._memory[at : at + len(part)] = part
            at += len(part)
        return True

    def read(self, slot: int, length: int) -> bytes:
        """A copy of its first bytes."""
        at = slot * self.size_bytes
        return self._memory[at : at + min(length, self.size_bytes)]

    def close(self) -> None:
        """Let go of the memory; any number of times."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.descriptor)
