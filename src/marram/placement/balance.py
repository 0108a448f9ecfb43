"""`Balancer`: which replica of one cloud model to ask, and whether to ask now at all.

Load is known from replies (each names who answered and how many wait there) and from announcements (`learn_probe`).
Few replicas: two are drawn and the one of lesser cost is asked (Mitzenmacher, "The power of two choices", 2001), the
cost being the queue announced there, and peak-EWMA (Finagle, `loadbalancer/PeakEwma`): an estimate of what one request
takes that rises at once and falls slowly, times what is under way there. Many: the hot/cold rule of Prequal (Wydrowski
et al., NSDI 2024, section 4), over a pool of what was announced last. How many requests may be under way at once is for
`limit` to say. A replica that fails is left alone, for twice as long each time, then tried with a single request.

Pure: time and chance are arguments. Nothing that a replica says makes it raise, and no replica is believed to be faster
than it was measured to be: what its words leave unexplained of a delay counts as the way to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from marram.placement.contract import CloudOutcome, CloudSent
from marram.placement.known import Known
from marram.placement.limit import Limit
from marram.schema.load import MAX_NAME, MAX_WAITING, Load, is_duration

# So many replicas are "a few": among them two choices do as well as probing (OpenPrequal measured no gain from it).
FEW = 8
# What is not heard of for so long is gone; of more than so many names the stalest is forgotten.
_FORGET_S = 60.0
_MOST_KNOWN = 128
# A request whose end is never reported is no longer counted as under way after so long.
_LOST_S = 60.0

# News of a queue fade in about the time that so many requests take there.
_QUEUE_DECAY = 4.0
_LEAST_S = 0.01
_SHARE = 0.2  # of a new sample in an average

_FIRST_PAUSE_S, _BUSY_PAUSE_S = 0.25, 0.05

# Prequal's own values where the paper has them: pool of 16, hot above this quantile, slack of the reuse budget.
_POOL = 16
_POOL_AGE_S = 2.0
_HOT_QUANTILE = 0.75
_REUSE_SLACK = 1.0
_REMOVED_EACH = 1.0  # announcements taken out of the pool for each request sent
_RECENT = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to ask, and what to expect there, seconds.

    `replica` None: whichever takes it (nobody is known by name). `queue_s`: the wait before its turn; `service_s`: what
    it takes then; `path_s`: how much longer the way to it is than to the nearest one. `slowdown`: its service time over
    the typical one of all that are known.
    """

    replica: str | None
    queue_s: float = 0.0
    service_s: float = 0.0
    path_s: float = 0.0
    slowdown: float = 1.0


@dataclass(slots=True)
class _Flight:
    sent_s: float
    replica: str | None


class Balancer:
    """One for each cloud model of an app. All methods under the caller's lock; none raises."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` gives a number in [0, 1) each time, as `random.Random(seed).random` does."""
        self._draw = draw
        self._known: dict[str, Known] = {}
        self._flights: dict[int, _Flight] = {}
        self._limit = Limit()
        self._queue_s = 0.0  # of whoever answered, on average
        self._service_s: float | None = None
        self._drawn: tuple[float, float] | None = None  # stays until something is sent: asking again changes nothing
        self._recent: deque[int] = deque(maxlen=_RECENT)  # how many waited, anywhere: what "hot" is measured by
        self._news_each = 1.0  # announcements for each request sent, on average
        self._news = 0
        self._oldest_next = False
        # What follows from all that is known, until something more is: the ways of one decision share them.
        self._chosen: tuple[float, Choice | None] | None = None
        self._typical: tuple[float, float] | None = None

    # ------------------------------------------------ whom to ask

    @property
    def room(self) -> int:
        """How many more requests may be under way at once."""
        return self._limit.room(len(self._flights))

    @property
    def replicas(self) -> tuple[str, ...]:
        """Those known by name."""
        return tuple(self._known)

    def others(self, now_s: float, replica: str | None) -> bool:
        """Whether a replica beside this one is known that is not left alone."""
        return any(each.name != replica and not each.alone(now_s) for each in self._known.values())

    def choose(self, now_s: float) -> Choice | None:
        """Whom to ask now; None where nobody should be: no room, or everybody known is left alone.

        Only `sent` uses anything up: choosing again gives the same, but for the time that passed.
        """
        if self._chosen is None or self._chosen[0] != now_s:
            self._chosen = now_s, self._choose(now_s)
        return self._chosen[1]

    def _choose(self, now_s: float) -> Choice | None:
        if not self.room:
            return None
        if not self._known:
            return Choice(None, self._queue_s, self._service_s or 0.0)
        free = [each for each in self._known.values() if not each.alone(now_s)]
        if not free:
            return None
        return self._choice(now_s, self._cold(now_s, free) or self._better(now_s, free))

    def _better(self, now_s: float, free: list[Known]) -> Known:
        """Of two drawn the one of lesser cost."""
        if self._drawn is None:
            self._drawn = self._draw(), self._draw()
        count = len(free)
        first = min(int(self._drawn[0] * count), count - 1)
        step = min(1 + int(self._drawn[1] * (count - 1)), count - 1)
        return min(free[first], free[(first + step) % count], key=lambda each: self._cost(now_s, each))

    def _cost(self, now_s: float, each: Known) -> float:
        usual_s = (each.service_s if each.service_s is not None else self._service_s or 0.0) + self._further(each)
        return self._queue(now_s, each) + max(each.peak_now_s(now_s), usual_s) * (each.pending + 1)

    def _queue(self, now_s: float, each: Known) -> float:
        """What was announced, fading towards what is usual."""
        service_s = each.service_s or self._service_s or _LEAST_S
        weight = math.exp(-max(0.0, now_s - each.news_s) / max(_QUEUE_DECAY * service_s, _LEAST_S))
        return self._queue_s + (each.queue_s - self._queue_s) * weight

    def _cold(self, now_s: float, free: list[Known]) -> Known | None:
        """Prequal's rule: of those with few waiting the fastest; where all have many, the one with the fewest."""
        if len(free) <= FEW:
            return None
        pool = self._fresh(now_s, free)
        if len(pool) < 2:
            return None
        hot = self._hot()
        cold = [each for each in pool if each.waiting <= hot]
        if not cold:
            return min(pool, key=lambda each: (each.waiting, self._delay(each)))
        return min(cold, key=self._delay)

    def _delay(self, each: Known) -> float:
        """As the news have it."""
        return each.queue_s + (each.service_s or 0.0) + self._further(each)

    def _choice(self, now_s: float, each: Known) -> Choice:
        typical_s, _ = self._usual()
        service_s = each.service_s if each.service_s is not None else typical_s
        return Choice(
            each.name,
            max(self._queue(now_s, each), each.pending * service_s),  # our own come before it whatever was announced
            service_s,
            self._further(each),
            service_s / typical_s if typical_s > 0 else 1.0,
        )

    def _further(self, each: Known) -> float:
        """How much longer the way to it is than to the nearest."""
        return 0.0 if each.path_s is None else max(0.0, each.path_s - self._usual()[1])

    def _usual(self) -> tuple[float, float]:
        """The median service time, and the way to the nearest; 0 where none is known."""
        if self._typical is None:
            known = sorted(each.service_s for each in self._known.values() if each.service_s is not None)
            paths = [each.path_s for each in self._known.values() if each.path_s is not None]
            self._typical = known[(len(known) - 1) // 2] if known else 0.0, min(paths, default=0.0)
        return self._typical

    def _news_came(self) -> None:
        """Something more is known, or under way: what was worked out is worked out anew."""
        self._chosen = self._typical = None

    # ------------------------------------------------ what came of it

    def sent(self, now_s: float, sent: CloudSent) -> None:
        """A request left now, for the replica it names, or for whichever takes it."""
        self._drawn = None
        self._flights[sent.id] = _Flight(now_s, sent.replica)
        each = self._known.get(sent.replica) if sent.replica is not None else None
        if each is not None:
            each.pending += 1
            each.uses -= 1
            each.waiting += 1  # until there are news, it is one more than they said
        self._remove_one(now_s)
        self._news_each += 0.05 * (self._news - self._news_each)
        self._news = 0
        self._forget(now_s)
        self._news_came()

    def heard(self, now_s: float, outcome: CloudOutcome, link_s: float = 0.0) -> None:
        """The request was answered. `link_s`: what of the delay the caller knows the link as a whole to have taken."""
        self._news_came()
        flight = self._landed(outcome.id)
        if flight is not None:
            self._limit.answered(len(self._flights) + 1)
            asked = self._known.get(flight.replica) if flight.replica is not None else None
            if asked is not None and outcome.gone:
                asked.leave_alone(now_s, _FIRST_PAUSE_S)
                asked.gone_s = now_s
            if _is_name(outcome.replica):
                self._measured(now_s, flight, outcome, link_s)
        self.learn_probe(now_s, outcome.loads)

    def _measured(self, now_s: float, flight: _Flight, outcome: CloudOutcome, link_s: float) -> None:
        elapsed_s = max(0.0, now_s - flight.sent_s)
        each = self._meet(now_s, str(outcome.replica))
        each.back()
        # Of the delay that was measured it may say what was waiting and what was work; the rest was the way.
        service_s = min(outcome.service_s, elapsed_s) if is_duration(outcome.service_s) else 0.0
        queue_s = min(outcome.queue_s, elapsed_s - service_s) if is_duration(outcome.queue_s) else 0.0
        path_s = max(0.0, elapsed_s - service_s - queue_s - (link_s if is_duration(link_s) else 0.0))
        each.service_s = _average(each.service_s, service_s)
        each.path_s = _average(each.path_s, path_s)
        self._news_came()
        self._service_s = _average(self._service_s, service_s)
        self._queue_s = _average(self._queue_s, queue_s)
        each.took(now_s, service_s + self._further(each))
        waiting = outcome.waiting
        if isinstance(waiting, int) and 0 <= waiting <= MAX_WAITING:
            self._announced(now_s, each, waiting, waiting * each.service_s)

    def failed(self, now_s: float, outcome: CloudOutcome) -> None:
        """It was not answered: not in time, refused for its queue, or not at all."""
        self._news_came()
        flight = self._landed(outcome.id)
        if flight is None:
            return
        if outcome.timed_out or outcome.busy:
            self._limit.failed()
        each = self._known.get(outcome.replica or flight.replica or "")
        if each is None:
            return
        if outcome.busy and is_duration(outcome.queue_s):
            self._announced(now_s, each, max(1, outcome.waiting or 0), outcome.queue_s)
        each.leave_alone(now_s, _BUSY_PAUSE_S if outcome.busy else _FIRST_PAUSE_S)

    def learn_probe(self, now_s: float, loads: Iterable[Load]) -> None:
        """What replicas of this model were said to be doing, by whoever answered."""
        self._news_came()
        for load in loads:
            if load.sane:
                each = self._meet(now_s, load.replica)
                if each.service_s is None and load.service_s > 0:
                    each.service_s = load.service_s
                # Having served nothing yet it cannot tell how long its queue is; for all we know it is like the others.
                unknown = load.service_s == 0
                queue_s = load.waiting * (self._service_s or 0.0) if unknown else load.queue_s
                self._announced(now_s - load.age_s, each, load.waiting, queue_s)

    # ------------------------------------------------ keeping what is known

    def _announced(self, at_s: float, each: Known, waiting: int, queue_s: float) -> None:
        if at_s < each.news_s:
            return
        each.news_s, each.waiting, each.queue_s = at_s, waiting, queue_s
        if each.gone_s is not None and at_s > each.gone_s:
            each.back()
        self._recent.append(waiting)
        self._news += 1
        # Prequal, equation 1: so that what is announced just suffices for what is sent.
        spare = (1 - _POOL / max(len(self._known), _POOL + 1)) * self._news_each - _REMOVED_EACH
        each.uses = max(1.0, (1 + _REUSE_SLACK) / spare) if spare > 0 else float(_POOL)

    def _remove_one(self, now_s: float) -> None:
        """Take the oldest news out of the pool, and in turn the worst: the most waiting, else the slowest."""
        pool = self._fresh(now_s, self._known.values())
        if len(self._known) <= FEW or len(pool) < _POOL:
            return
        self._oldest_next = not self._oldest_next
        hot = self._hot()
        worst = max(
            pool, key=lambda each: (each.waiting > hot, each.waiting if each.waiting > hot else 0, self._delay(each))
        )
        (pool[-1] if self._oldest_next else worst).uses = 0.0

    def _fresh(self, now_s: float, among: Iterable[Known]) -> list[Known]:
        """The pool: the newest news that are neither old nor used up, the newest first."""
        fresh = (each for each in among if each.uses > 0 and now_s - each.news_s <= _POOL_AGE_S)
        return sorted(fresh, key=lambda each: -each.news_s)[:_POOL]

    def _hot(self) -> int:
        """More waiting than this is many, as things are."""
        return sorted(self._recent)[int(_HOT_QUANTILE * (len(self._recent) - 1))] if self._recent else 0

    def _landed(self, number: int) -> _Flight | None:
        flight = self._flights.pop(number, None)
        each = self._known.get(flight.replica) if flight is not None and flight.replica is not None else None
        if each is not None:
            each.pending = max(0, each.pending - 1)
        return flight

    def _meet(self, now_s: float, name: str) -> Known:
        each = self._known.get(name)
        if each is None:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[min(self._known.values(), key=lambda other: other.heard_s).name]
            each = self._known[name] = Known(name, now_s)
        each.heard_s = max(each.heard_s, now_s)
        return each

    def _forget(self, now_s: float) -> None:
        """What is gone, and requests whose end nobody reported."""
        while self._flights:
            number, oldest = next(iter(self._flights.items()))
            if now_s - oldest.sent_s <= _LOST_S:
                break
            self._landed(number)
        stale = [name for name, each in self._known.items() if now_s - each.heard_s > _FORGET_S and not each.pending]
        for name in stale:
            del self._known[name]


def _average(known: float | None, sample: float) -> float:
    return sample if known is None else known + _SHARE * (sample - known)


def _is_name(name: str | None) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME
