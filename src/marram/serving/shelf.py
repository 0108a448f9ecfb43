"""What lies in memory and what has to go for something else: the least worth first. Pure: time is an argument.

What something is worth is what it would cost to load it again, by how likely it is asked for soon: its loading time by
how long ago it was used ("GreedyDual", Young 1994, in its simplest form; all of one size and cost, it is LRU).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from marram.schema.errors import NotReady

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Kept:
    size_bytes: int
    load_s: float
    used_s: float


class Shelf(Generic[K]):
    """Room for `room_bytes` (None: as much as there is)."""

    def __init__(self, room_bytes: int | None) -> None:
        self.room_bytes = room_bytes
        self._kept: dict[K, _Kept] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    @property
    def taken_bytes(self) -> int:
        """By all that lies here."""
        return sum(each.size_bytes for each in self._kept.values())

    def put(self, key: K, size_bytes: int, load_s: float, now_s: float) -> None:
        """It lies here now."""
        self._kept[key] = _Kept(size_bytes, load_s, now_s)

    def used(self, key: K, now_s: float) -> None:
        """It was asked for."""
        kept = self._kept.get(key)
        if kept is not None:
            kept.used_s = now_s

    def remove(self, key: K) -> None:
        """It lies here no more."""
        self._kept.pop(key, None)

    def outgoing(self, size_bytes: int, now_s: float, keep: frozenset[K] = frozenset()) -> list[K]:
        """What has to go so that `size_bytes` more find room, least worth first; none of `keep`.

        Raises NotReady where even then there is not enough.
        """
        if self.room_bytes is None:
            return []
        over = self.taken_bytes + size_bytes - self.room_bytes
        going: list[K] = []
        for key in sorted((key for key in self._kept if key not in keep), key=lambda key: self._worth(key, now_s)):
            if over <= 0:
                break
            going.append(key)
            over -= self._kept[key].size_bytes
        if over > 0:
            needed = self.room_bytes + over
            raise NotReady(
                f"needs {needed / 1e6:.0f} MB, and models may take {self.room_bytes / 1e6:.0f} MB here",
                hint="Let them have more: `marram cloud --replica-memory`, `marram serve --memory`.",
            )
        return going

    def _worth(self, key: K, now_s: float) -> float:
        kept = self._kept[key]
        return kept.load_s / max(now_s - kept.used_s, 1e-3)
