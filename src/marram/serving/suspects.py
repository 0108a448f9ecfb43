"""Which model takes its process down, so that it is put aside and the others are not taken down with it again.

Engines are native code: a fault there ends the process and all its models. Who was asked at that moment is known, who
did it is not: the one that was there each time is the likeliest. Once may be chance. Pure: times are arguments.
"""

from __future__ import annotations

import signal
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)

# So many faults, and a model is put aside: for a minute, and for twice as long at each one more.
_MOST = 2.0
_FIRST_ASIDE_S, _LONGEST_ASIDE_S = 60.0, 3600.0
# What was longer ago than two of the longest pauses is forgotten.
_FORGET_S = 2 * _LONGEST_ASIDE_S
# Signals that come from elsewhere: from a person, or from a system short of memory, which may be a model's doing.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Aside(Generic[_K]):
    """`key` is put aside for `pause_s`; `reason`: why, for a person."""

    key: _K
    pause_s: float
    reason: str


@dataclass(slots=True)
class _Record:
    weight: float = 0.0
    last_s: float = 0.0


class Suspects(Generic[_K]):
    """For one process that is started again and again."""

    def __init__(self) -> None:
        self._records: dict[_K, _Record] = {}

    def ended(self, now_s: float, status: int, asked: Iterable[_K]) -> Aside[_K] | None:
        """The process ended with this exit status (-N: by signal N) while `asked` were asked; whom to put aside now."""
        self._records = {key: each for key, each in self._records.items() if now_s - each.last_s <= _FORGET_S}
        there = set(asked)
        for key in there:
            record = self._records.setdefault(key, _Record())
            record.weight += 0.5 if -status in _FROM_OUTSIDE else 1.0
            record.last_s = now_s
        worst = max(sorted(there, key=repr), key=lambda key: self._records[key].weight, default=None)
        if worst is None or self._records[worst].weight < _MOST:
            return None
        more = self._records[worst].weight - _MOST
        pause_s = min(_LONGEST_ASIDE_S, _FIRST_ASIDE_S * 2.0 ** min(more, 20))
        reason = f"its process ended again and again while it was asked ({_how(status)}): put aside for {pause_s:.0f} s"
        return Aside(worst, pause_s, reason)


def _how(status: int) -> str:
    """`SIGSEGV`, `exit status 3`."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}"
