"""Which of those that wait run together: never somebody who would be late for it, never where it gains nothing.

There is no timer: who comes when an engine is free starts at once and alone; who comes while it works is taken with the
others when it becomes free. How long n items take is taken to be a·n + b (as by Crankshaw et al., "Clipper", NSDI
2017): b is what a batch saves, a what it cannot. Pure: time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

# Another doubling of the batch is worth the memory where an item gets cheaper by so much, and all of batching where
# an item in the best batch is so much cheaper than alone: a little, for what is batched would wait otherwise.
_WORTH_DOUBLING, _WORTH_IT = 1.02, 1.04
# Who names no deadline is served as if it had one so long from its arrival: nobody waits for ever behind the hurried.
PATIENCE_S = 2.0
# Kalman filter of (a, b): how far they may drift from run to run, how much one run is off, as shares of themselves;
# and of a surprise only so much is believed at once (a process that was not scheduled for a while learns nothing new).
_DRIFT, _NOISE, _BELIEVED = 0.03, 0.15, 0.5


@dataclass(eq=False, slots=True)
class Waiting:
    """What waits: `count` items that can only run with others of the same `kind` (shape, dtype; None: any picture).

    `due_s`: when nobody needs the answer any more, infinity where it was not said. `ready`: nothing is left to decode.
    """

    arrived_s: float
    due_s: float
    count: int = 1
    kind: Hashable = None
    ready: bool = False

    @property
    def turn_s(self) -> float:
        """The earlier, the sooner its turn: earliest deadline first."""
        return min(self.due_s, self.arrived_s + PATIENCE_S)


class Speed:
    """How long n items take in one run, and how long one takes to be decoded: learnt, seconds."""

    def __init__(self, most: int = 1) -> None:
        """`most`: the largest batch that the engine can run."""
        self.most = most
        self.prepare_s = 0.0
        self._a, self._b = 0.0, 0.0
        self._pa, self._pb, self._pab = 0.0, 0.0, 0.0
        self._prepared = 0

    @property
    def known(self) -> bool:
        """Whether anything ran yet."""
        return self._a > 0.0

    def run_s(self, count: int) -> float:
        """How long `count` items take as one batch; 0 before anything ran. More than `most` run one after another."""
        whole, rest = divmod(count, self.most)
        return whole * (self._a * self.most + self._b) + (self._a * rest + self._b if rest else 0.0)

    def item_s(self) -> float:
        """What one more item costs where many wait: its share of the best batch, and its decoding."""
        return self._a + self._b / self.best() + self.prepare_s

    def best(self) -> int:
        """The batch beyond which an item hardly gets cheaper; 1 where batching gains too little."""
        chosen = 1
        while 2 * chosen <= self.most and self._each_s(chosen) >= _WORTH_DOUBLING * self._each_s(2 * chosen):
            chosen *= 2
        return chosen if self._each_s(1) >= _WORTH_IT * self._each_s(chosen) and chosen > 1 else 1

    def ran(self, count: int, took_s: float) -> None:
        """Learn that `count` items took so long as one batch."""
        took_s = max(took_s, 1e-6)
        if not self.known:
            self._a, self._b = took_s / count, 0.0
            self._pa = self._pb = (self._a / 2) ** 2
            return
        expected_s = self._a * count + self._b
        surprise_s = max(-_BELIEVED * expected_s, min(_BELIEVED * expected_s, took_s - expected_s))
        drift = (_DRIFT * (self._a + self._b)) ** 2
        self._pa, self._pb = self._pa + drift, self._pb + drift
        along_a, along_b = self._pa * count + self._pab, self._pab * count + self._pb
        spread = along_a * count + along_b + (_NOISE * expected_s) ** 2
        gain_a, gain_b = along_a / spread, along_b / spread
        self._a = max(self._a + gain_a * surprise_s, 1e-7)
        self._b = max(self._b + gain_b * surprise_s, 0.0)
        self._pa -= gain_a * along_a
        self._pb -= gain_b * along_b
        self._pab -= gain_a * along_b

    def prepared(self, took_s: float) -> None:
        """Learn that decoding one item took so long."""
        self._prepared += 1
        self.prepare_s += (took_s - self.prepare_s) * max(0.1, 1 / self._prepared)

    def _each_s(self, count: int) -> float:
        return self._a + self._b / count


@dataclass(frozen=True, slots=True)
class Choice:
    """`batch`: who runs now, together. `late`: who cannot be answered in time any more."""

    batch: tuple[Waiting, ...]
    late: tuple[Waiting, ...]


def choose(waiting: Sequence[Waiting], speed: Speed, now_s: float, lanes: int, running: int = 0) -> Choice:
    """Who runs next on one of `lanes` lanes; the others have `running` items now, and share what is left.

    No lane takes more than its share of all: what one takes of another's would leave that one idle meanwhile.
    Nobody is taken into a batch by which it, or another in it, would miss a deadline that it meets without. Who would
    miss it anyway is `late`, unless nobody else waits: then it runs, and what is known of the speed is put to the test.
    """
    turns = sorted(waiting, key=lambda each: each.turn_s)
    late = [each for each in turns if each.due_s <= now_s]
    left = [each for each in turns if each.due_s > now_s]
    while len(left) > 1 and now_s + _takes_s(left[:1], speed) > left[0].due_s:
        late.append(left.pop(0))
    if not left:
        return Choice((), tuple(late))
    first, batch = left[0], left[:1]
    due_s = first.due_s
    total = first.count
    share = math.ceil((sum(each.count for each in left) + running) / max(1, lanes))
    bound = min(speed.best(), share)
    for each in left[1:]:
        if each.kind != first.kind or total + each.count > bound:
            continue
        if now_s + _takes_s([*batch, each], speed) > min(due_s, each.due_s):
            continue
        batch.append(each)
        due_s, total = min(due_s, each.due_s), total + each.count
    return Choice(tuple(batch), tuple(late))


def queue_s(waiting: Sequence[Waiting], speed: Speed, lanes: int, running_s: float) -> float:
    """How long one that comes now would wait. `running_s`: until the first of `lanes` lanes is free, 0 where one is."""
    return running_s + sum(each.count for each in waiting) * speed.item_s() / max(1, lanes)


def _takes_s(batch: Sequence[Waiting], speed: Speed) -> float:
    undecoded = sum(each.count for each in batch if not each.ready)
    return speed.run_s(sum(each.count for each in batch)) + undecoded * speed.prepare_s
