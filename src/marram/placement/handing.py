"""`Handing`: whether a replica hands a request on to another one, which would answer it clearly sooner.

A device chooses among replicas by news that are as old as its last reply; what it cannot know, the replicas repair
among themselves, a millisecond apart: a request that comes where many wait, or to a slow one, goes on to where few do.
(Sender-initiated load sharing: Eager, Lazowska, Zahorjan, "Adaptive load sharing in homogeneous distributed systems",
IEEE TSE 1986, where the least loaded of all known is meant. One that several mean at once may hand it on.)

Pure: time is an argument. It holds what the others announced last, and what was handed to them since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from marram.schema.load import Load

# Who was silent for so long is gone; those that are well are heard each second at least.
GONE_S = 3.0
# Handing on costs a little, and news are a little old: it must gain this share of the other's service time.
_GAIN = 0.5
# Handed on so often at most.
MOST_HOPS = 2
# A load is told so often in the long run, at once after a moment without any; each replica hears so many a second.
RATE = 50.0
BURST = 5.0
HEARD_RATE = 400.0


@dataclass(slots=True)
class _Heard:
    load: Load
    at_s: float
    given: int = 0  # handed to it since

    @property
    def delay_s(self) -> float:
        """What one more would take there."""
        return self.load.queue_s + (self.given + 1) * self.load.service_s


@dataclass(slots=True)
class Pace:
    """How often a replica tells its load: at each change at first, `RATE` times a second in the long run."""

    allowed: float = BURST
    at_s: float = 0.0

    def pause_s(self, now_s: float, others: int = 0) -> float:
        """How long until it may be told again; with many others each tells it less often."""
        rate = min(RATE, HEARD_RATE / max(1, others))
        self.allowed = min(BURST, self.allowed + max(0.0, now_s - self.at_s) * rate)
        self.at_s = now_s
        return max(0.0, (1 - self.allowed) / rate)

    def said(self) -> None:
        """It was told."""
        self.allowed -= 1


class Handing:
    """One for each model that a replica serves."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}

    def heard(self, now_s: float, load: Load) -> None:
        """Another replica's load came."""
        if load.sane:
            self._heard[load.replica] = _Heard(load, now_s)

    def missed(self, replica: str) -> None:
        """Nobody answered to that name: it is gone."""
        self._heard.pop(replica, None)

    def to(self, now_s: float, own: Load) -> str | None:
        """Whom a request that comes now is handed to, and is counted for from now on; None: it is answered here."""
        # To one that served nothing yet nothing is handed: it may take any time.
        others = [each for each in self._fresh(now_s) if each.load.service_s > 0]
        if not others:
            return None
        best = min(others, key=lambda each: each.delay_s)
        # Having served nothing ourselves, we are as fast as the others, for all we know.
        here_s = own.queue_s + own.service_s if own.service_s > 0 else (own.waiting + 1) * best.load.service_s
        if best.delay_s + _GAIN * best.load.service_s >= here_s:
            return None
        best.given += 1
        return best.load.replica

    def known(self, now_s: float) -> list[Load]:
        """The others, the least loaded first, each with its age."""
        fresh = sorted(self._fresh(now_s), key=lambda each: each.delay_s)
        return [replace(each.load, age_s=each.load.age_s + max(0.0, now_s - each.at_s)) for each in fresh]

    def __len__(self) -> int:
        return len(self._heard)

    def _fresh(self, now_s: float) -> list[_Heard]:
        for name in [name for name, each in self._heard.items() if now_s - each.at_s > GONE_S]:
            del self._heard[name]
        return list(self._heard.values())
