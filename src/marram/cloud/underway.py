"""What a replica process has under way, in memory that its keeper can still read when the process is gone.

However it ended, whoever waits for an answer is then told at once instead of waiting in vain, and it is known which
models were asked at that moment. The child writes, its keeper reads once the child is dead: nothing needs a lock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from marram.serving.host import Key
from marram.serving.shm import Slots

# More than may wait for a few models at a time; what finds no slot is only not told.
_SLOTS, _SLOT_BYTES = 1024, 256
_ENTRY = re.compile(r"(\S+) (\d{1,18}) (_INBOX\S*)")


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: of which model, and where its answer is waited for."""

    key: Key
    answer_to: str


class UnderWay:
    """The keeper `make`s it and hands `descriptor` to the child, which `attach`es."""

    def __init__(self, slots: Slots) -> None:
        """Use `make` or `attach`."""
        self._slots = slots

    @classmethod
    def make(cls) -> UnderWay:
        """An empty one. Raises OSError."""
        return cls(Slots.make(_SLOTS, _SLOT_BYTES))

    @classmethod
    def attach(cls, descriptor: int) -> UnderWay:
        """The one that the keeper made."""
        return cls(Slots.attach(descriptor, _SLOTS, _SLOT_BYTES))

    @property
    def descriptor(self) -> int:
        """To be handed over."""
        return self._slots.descriptor

    def begin(self, key: Key, answer_to: str) -> int | None:
        """From now on this is under way; None where there is no room to say so."""
        slot = self._slots.take()
        entry = f"{key[0]} {key[1]} {answer_to}\0".encode()
        if slot is None or self._slots.write(slot, [entry], len(entry)):
            return slot
        self._slots.give_back(slot)
        return None

    def end(self, slot: int | None) -> None:
        """It was answered."""
        if slot is not None:
            self._slots.write(slot, [b"\0"], 1)
            self._slots.give_back(slot)

    def left(self) -> list[Asked]:
        """What was under way when the child ended. What it wrote is not believed to make sense."""
        texts = (self._slots.read(slot, _SLOT_BYTES).partition(b"\0")[0] for slot in range(_SLOTS))
        found = (_ENTRY.fullmatch(text.decode(errors="replace")) for text in texts if text)
        return [Asked((each[1], int(each[2])), each[3]) for each in found if each is not None]

    def close(self) -> None:
        """Let go of it; any number of times."""
        self._slots.close()
