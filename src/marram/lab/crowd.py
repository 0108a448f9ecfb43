"""Many devices that ask a few replicas, on a virtual clock: what a rule of choosing among replicas is worth.

Requests come at random times; each travels to its replica, waits its turn (one after another), is worked on, travels
back. Replicas announce their load in replies as those of `cloud/replica.py` do, tell it each other and hand requests on
by it as in `cloud/loads.py` (both by `placement.handing`), and refuse when too many wait. One may be slow, others come
and go: what waits at one that goes is lost and its devices hear nothing; one that is gone when it is asked is asked
again as "whichever takes it". What timed out or was refused is asked again: every delay is from the first wish to the
answer.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from marram.placement.balance import Choice
from marram.placement.contract import CloudOutcome, CloudSent
from marram.placement.handing import MOST_HOPS, Handing, Pace
from marram.schema.load import Load

_MOST_WAITING = 32
_POLL_S = 0.01
_LAN_S = 0.001  # between replicas
MODEL = "model@1"


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated. `load`: of what all replicas can do together, those that come and go counted for their share.

    Service times are log-normal about `service_s` with `noise`, `slow` replicas take `slow_factor` times as long,
    `flapping` ones are there for `up_s` and gone for `down_s` on average. `link_s`: one way, with `jitter`.
    """

    load: float = 0.7
    replicas: int = 8
    devices: int = 32
    service_s: float = 0.025
    noise: float = 0.1
    slow: int = 1
    slow_factor: float = 3.0
    flapping: int = 1
    up_s: float = 3.0
    down_s: float = 1.5
    link_s: float = 0.005
    jitter: float = 0.3
    timeout_s: float = 1.0
    length_s: float = 60.0
    seed: int = 0
    hands_on: bool = True

    @property
    def rate(self) -> float:
        """Requests a second, of all devices together."""
        steady = self.replicas - self.slow - self.flapping
        there = self.up_s / (self.up_s + self.down_s)
        return self.load * (steady + self.slow / self.slow_factor + self.flapping * there) / self.service_s


class Chooser(Protocol):
    """One device's rule; `placement.balance.Balancer` is one."""

    def choose(self, now_s: float) -> Choice | None: ...

    def sent(self, now_s: float, sent: CloudSent) -> None: ...

    def heard(self, now_s: float, outcome: CloudOutcome, link_s: float = 0.0) -> None: ...

    def failed(self, now_s: float, outcome: CloudOutcome) -> None: ...


@dataclass(slots=True)
class Outcome:
    """Delays in the order of the answers, seconds; what went wrong on the way, and how the replicas shared the work."""

    delays_s: list[float] = field(default_factory=list)
    lost: int = 0
    refused: int = 0
    elsewhere: int = 0  # asked by a name that was gone, answered by another
    served: dict[str, int] = field(default_factory=dict)

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.delays_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(slots=True)
class _Wish:
    """Something a device wants answered; `work_s` at a replica that is not slow."""

    device: int
    since_s: float
    work_s: float


@dataclass(slots=True)
class _Request:
    number: int
    wish: _Wish
    sent_s: float
    arrived_s: float = 0.0
    began_s: float = 0.0
    open: bool = True
    hops: int = 0
    gone: bool = False


@dataclass(slots=True)
class Replica:
    """The truth about one of them, which only a clairvoyant may look at."""

    name: str
    factor: float
    up: bool = True
    life: int = 0
    queue: deque[_Request] = field(default_factory=deque)
    coming_s: float = 0.0  # work of requests that are on their way here
    free_s: float = 0.0  # when what it works on now is done
    typical_s: float = 0.0
    pace: Pace = field(default_factory=Pace)
    others: Handing = field(default_factory=Handing)
    due: bool = False  # it will be told again soon

    def remaining_s(self, now_s: float) -> float:
        """Work that is before whoever comes next."""
        waiting = itertools.islice(self.queue, 1, None)
        working = max(0.0, self.free_s - now_s) if self.queue else 0.0
        return working + self.coming_s + sum(request.wish.work_s * self.factor for request in waiting)

    def load(self) -> Load:
        waiting = len(self.queue)
        return Load(self.name, MODEL, waiting, waiting * self.typical_s, self.typical_s)


class Crowd:
    """One run: `Crowd(world).run(make)`, where `make(crowd, device)` makes the rule of one device."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now_s = 0.0
        self.replicas = [Replica(f"r{n}", world.slow_factor if n < world.slow else 1.0) for n in range(world.replicas)]
        self._named = {each.name: each for each in self.replicas}
        self._work, self._link, self._fate = (
            random.Random(f"{world.seed}/{what}") for what in ("work", "link", "fate")
        )
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._held: list[deque[_Wish]] = [deque() for _ in range(world.devices)]
        self._choosers: list[Chooser] = []
        self.outcome = Outcome(served={each.name: 0 for each in self.replicas})

    def run(self, make: Callable[[Crowd, int], Chooser]) -> Outcome:
        """Until everything that was wished for is answered."""
        self._choosers = [make(self, device) for device in range(self.world.devices)]
        for device in range(self.world.devices):
            self._later(self._gap(), lambda device=device: self._wish(device))  # type: ignore[misc]
        for each in self.replicas[self.world.slow : self.world.slow + self.world.flapping]:
            self._later(self._fate.expovariate(1 / self.world.up_s), lambda each=each: self._go(each))  # type: ignore[misc]
        while self._events:
            self.now_s, _, happens = heapq.heappop(self._events)
            happens()
        return self.outcome

    def live(self) -> list[Replica]:
        """Those that are there now."""
        return [each for each in self.replicas if each.up]

    # ------------------------------------------------ devices

    def _wish(self, device: int) -> None:
        if self.now_s > self.world.length_s:
            return
        self._later(self._gap(), lambda: self._wish(device))
        noise = self.world.noise
        work_s = self.world.service_s * self._work.lognormvariate(-noise * noise / 2, noise)
        self._held[device].append(_Wish(device, self.now_s, work_s))
        self._ask(device)

    def _gap(self) -> float:
        return self._work.expovariate(self.world.rate / self.world.devices)

    def _ask(self, device: int) -> None:
        held, chooser = self._held[device], self._choosers[device]
        while held:
            choice = chooser.choose(self.now_s)
            if choice is None:
                self._later(_POLL_S, lambda: self._ask(device))
                return
            request = _Request(next(self._numbers), held.popleft(), self.now_s)
            chooser.sent(self.now_s, CloudSent(self.now_s, request.number, MODEL, 1000, choice.replica))
            self._later(self.world.timeout_s, lambda request=request: self._give_up(request))  # type: ignore[misc]
            self._send(request, self._named.get(choice.replica or ""))

    def _send(self, request: _Request, to: Replica | None) -> None:
        """Through the broker, which knows at once who is there."""
        if to is not None and to.up:
            to.coming_s += request.wish.work_s * to.factor
            life = to.life
            self._later(self._way(), lambda: self._arrive(request, to, life))
            return
        live = self.live()
        if to is not None:
            self.outcome.elsewhere += 1
            request.gone = True
            self._later(2 * self._way(), lambda: self._send(request, None))  # the answer: nobody is there
        elif live:
            self._send(request, self._fate.choice(live))
        else:
            self._later(2 * self._way(), lambda: self._refuse(request, CloudOutcome(self.now_s, request.number, False)))

    def _give_up(self, request: _Request) -> None:
        if request.open:
            self.outcome.lost += 1
            self._refuse(request, CloudOutcome(self.now_s, request.number, False, timed_out=True))

    def _refuse(self, request: _Request, outcome: CloudOutcome) -> None:
        if request.open:
            request.open = False
            self._choosers[request.wish.device].failed(self.now_s, outcome)
            self._held[request.wish.device].appendleft(request.wish)
            self._ask(request.wish.device)

    def _hear(self, request: _Request, outcome: CloudOutcome) -> None:
        if not request.open:
            return
        if outcome.busy:
            self.outcome.refused += 1
            self._refuse(request, outcome)
            return
        request.open = False
        wish = request.wish
        self._choosers[wish.device].heard(self.now_s, outcome, 2 * self.world.link_s)
        self.outcome.delays_s.append(self.now_s - wish.since_s)
        self._ask(wish.device)

    # ------------------------------------------------ replicas

    def _arrive(self, request: _Request, at: Replica, life: int) -> None:
        at.coming_s = max(0.0, at.coming_s - request.wish.work_s * at.factor)
        if at.life != life or not at.up:
            return  # it went meanwhile, and the request with it
        request.arrived_s = request.arrived_s or self.now_s
        name = at.others.to(self.now_s, at.load()) if self.world.hands_on and request.hops < MOST_HOPS else None
        to = self._named[name] if name is not None else None
        if to is not None and not to.up:
            at.others.missed(to.name)
        elif to is not None:
            request.hops += 1
            to.coming_s += request.wish.work_s * to.factor
            life = to.life
            self._later(_LAN_S, lambda: self._arrive(request, to, life))
            return
        if len(at.queue) >= _MOST_WAITING:
            refusal = self._answer(request, at, ok=False)
            self._later(self._way(), lambda: self._hear(request, refusal()))
            return
        at.queue.append(request)
        self._tell(at)
        if len(at.queue) == 1:
            self._begin(at)

    def _begin(self, at: Replica) -> None:
        request, life = at.queue[0], at.life
        request.began_s = self.now_s
        at.free_s = self.now_s + request.wish.work_s * at.factor
        self._at(at.free_s, lambda: self._done(request, at, life))

    def _done(self, request: _Request, at: Replica, life: int) -> None:
        if at.life != life:
            return
        at.queue.popleft()
        work_s = self.now_s - request.began_s
        at.typical_s += (0.1 if at.typical_s else 1.0) * (work_s - at.typical_s)
        self.outcome.served[at.name] += 1
        self._tell(at)
        answer = self._answer(request, at, ok=True)
        self._later(self._way(), lambda: self._hear(request, answer()))
        if at.queue:
            self._begin(at)

    def _answer(self, request: _Request, at: Replica, *, ok: bool) -> Callable[[], CloudOutcome]:
        """What it says, with the time at which it is heard still open."""
        loads = (at.load(), *at.others.known(self.now_s))
        queue_s = request.began_s - request.arrived_s if ok else at.remaining_s(self.now_s)
        work_s = self.now_s - request.began_s if ok else 0.0
        waiting, name = len(at.queue), at.name

        def outcome() -> CloudOutcome:
            return CloudOutcome(
                self.now_s,
                request.number,
                ok,
                queue_s,
                work_s,
                busy=not ok,
                replica=name,
                waiting=waiting,
                loads=loads,
                gone=request.gone,
            )

        return outcome

    def _tell(self, each: Replica) -> None:
        """It tells the others, at once or when it may again."""
        pause_s = each.pace.pause_s(self.now_s)
        if pause_s <= 0:
            each.pace.said()
            load = each.load()
            for other in self.live():
                if other is not each:
                    self._later(_LAN_S, lambda other=other: other.others.heard(self.now_s, load))  # type: ignore[misc]
        elif not each.due:
            each.due, life = True, each.life
            self._later(pause_s + 1e-6, lambda: self._told(each, life))

    def _told(self, each: Replica, life: int) -> None:
        if each.life == life:
            each.due = False
            self._tell(each)

    def _go(self, each: Replica) -> None:
        each.up, each.life = False, each.life + 1
        each.queue.clear()
        each.coming_s = 0.0
        if self.now_s < self.world.length_s:
            self._later(self._fate.expovariate(1 / self.world.down_s), lambda: self._come(each))
        else:
            self._come(each)

    def _come(self, each: Replica) -> None:
        each.up, each.others, each.pace, each.due = True, Handing(), Pace(), False
        each.typical_s = 0.0
        if self.now_s < self.world.length_s:
            self._later(self._fate.expovariate(1 / self.world.up_s), lambda: self._go(each))

    # ------------------------------------------------ time

    def _way(self) -> float:
        return self.world.link_s * self._link.lognormvariate(0.0, self.world.jitter)

    def _later(self, after_s: float, happens: Callable[[], None]) -> None:
        self._at(self.now_s + after_s, happens)

    def _at(self, when_s: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), happens))
