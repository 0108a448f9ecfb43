"""One device's placement on a virtual clock: camera, edge, a link as a trace has it, replica; no socket, no waiting.

For tests and benchmarks of policies over hours of link in seconds. It takes frames as the pipeline does: one is taken
when it is due and can start (the edge is free, or the policy would send it to the cloud at once), the cloud gets a
time-out after which the edge answers, probes go out when the policy asks for them.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from marram.lab.traces import Direction, Trace
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Decision, EdgeOutcome, Policy, Way
from marram.schema.app import Objective
from marram.schema.result import Place

_TICK_S = 0.05
_POLL_S = 0.01
_PROBE_TIMEOUT_S = 2.0
# As in the pipeline: see `pipeline.infer`.
_FRESH = 1.2


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated. Service times wander log-normally with `noise`; `outages` are (from, to) in seconds.

    `cold_runs`: so many inferences of the edge take `edge_cold` times as long at first.
    """

    trace: Trace
    edge_s: float
    cloud_s: float = 0.025
    payload_bytes: int = 15_000
    every_s: float = 0.1
    length_s: float = 60.0
    noise: float = 0.08
    outages: tuple[tuple[float, float], ...] = ()
    objective: Objective = "soonest"
    deadline_s: float | None = None
    cloud_wait_s: float = 0.0  # mean queueing at the replica because of others
    trace_from_s: float = 0.0
    cold_runs: int = 0
    edge_cold: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Answer:
    """One frame: when it was captured, how long its answer took, where that came from."""

    captured_s: float
    place: Place
    delay_s: float = math.nan
    fallback: bool = False
    decision: Decision | None = None


@dataclass(slots=True)
class Outcome:
    """A run's answers, in the order of capture; the probes the policy asked for, and all bytes sent up the link."""

    answers: list[Answer] = field(default_factory=list)
    probes: int = 0
    sent_bytes: int = 0

    def quantile_s(self, share: float, after_s: float = 0.0) -> float:
        """A quantile of the delays of frames captured after `after_s`."""
        delays = sorted(a.delay_s for a in self.answers if a.captured_s >= after_s)
        return delays[min(len(delays) - 1, int(share * len(delays)))]

    def share(self, place: Place, after_s: float = 0.0) -> float:
        """The share of frames answered there."""
        chosen = [a.place is place for a in self.answers if a.captured_s >= after_s]
        return sum(chosen) / max(1, len(chosen))


class Always:
    """The two policies to compare with: everything at one place, in the cloud one at a time and with no time limit."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._out = 0

    def decide(self, ask: Ask) -> Decision:
        place = self._place if not self._out else Place.EDGE
        way = next((way for way in ask.ways if way.place is place), None)
        return Decision(place, way, 0.0, "always", 1e6 if place is Place.CLOUD else None)

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        if isinstance(outcome, CloudSent):
            self._out += 1
        elif isinstance(outcome, CloudOutcome):
            self._out -= 1

    @property
    def busy(self) -> bool:
        return self._place is Place.CLOUD and self._out > 0


def simulate(world: World, policy: Policy | Always) -> Outcome:
    """Run `policy` in `world`; the same arguments give the same outcome."""
    return _Run(world, policy).run()


class _Lane:
    """One way of the link: first come first served, nothing during outages."""

    def __init__(self, way: Direction, world: World) -> None:
        self._way, self._world, self._free_s = way, world, 0.0

    def leaves(self, now_s: float, size: int) -> float:
        at = max(now_s, self._free_s)
        for cut, heal in self._world.outages:
            if cut <= at < heal:
                at = heal
            left = self._end(at, size)
            if at < cut < left:
                # What had left by the cut has left; the rest goes after it.
                at += heal - cut
        self._free_s = self._end(at, size)
        return self._free_s

    def _end(self, at: float, size: int) -> float:
        offset = self._world.trace_from_s
        return self._way.finish(at + offset, size) - offset


class _Run:
    def __init__(self, world: World, policy: Policy | Always) -> None:
        self._world, self._policy = world, policy
        self._draw = random.Random(world.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._up, self._down = _Lane(world.trace.up, world), _Lane(world.trace.down, world)
        self._replica_free_s = 0.0
        self._edge_queue: list[Answer] = []
        self._edge_busy = False
        self._under_way = 0
        self._runs = 0
        self._numbers = itertools.count(1)
        self._out = Outcome()
        self._due_s = 0.0

    def run(self) -> Outcome:
        self._at(0.0, self._capture)
        if not isinstance(self._policy, Always):
            self._at(0.0, self._tick)
        while self._events:
            self._now, _, action = heapq.heappop(self._events)
            action()
        return self._out

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    # ------------------------------------------------ frames

    def _ask(self) -> Ask:
        world = self._world
        waiting = len(self._edge_queue) + self._edge_busy
        ways = (Way(Place.EDGE, "edge"), Way(Place.CLOUD, "cloud", world.payload_bytes))
        return Ask(self._now, ways, waiting, 1, world.deadline_s, world.objective)

    def _capture(self) -> None:
        if self._now >= self._world.length_s:
            return
        if isinstance(self._policy, Always):
            ready = not (
                self._policy.busy or (self._edge_busy and self._policy.decide(self._ask()).place is Place.EDGE)
            )
        else:
            decision = self._policy.decide(self._ask())
            if decision.place is Place.CLOUD:
                idle = not self._edge_busy and not self._under_way
                ready = idle or decision.idle_s is None or decision.predicted_s <= _FRESH * decision.idle_s
            else:
                ready = not self._edge_busy
        if not ready:
            self._at(self._now + _POLL_S, self._capture)
            return
        decision = self._policy.decide(self._ask())
        answer = Answer(self._now, decision.place, decision=decision)
        self._out.answers.append(answer)
        if decision.place is Place.CLOUD:
            self._ask_cloud(answer, decision.timeout_s or 1.0)
            if decision.renew:
                self._renew()
        else:
            self._to_edge(answer)
        self._due_s = max(self._due_s + self._world.every_s, self._now)
        self._at(max(self._due_s, self._now), self._capture)

    def _to_edge(self, answer: Answer) -> None:
        self._edge_queue.append(answer)
        self._serve_edge()

    def _serve_edge(self) -> None:
        if self._edge_busy or not self._edge_queue:
            return
        answer = self._edge_queue.pop(0)
        self._edge_busy = True
        service_s = self._edge_takes_s()

        def done() -> None:
            self._edge_busy = False
            answer.place, answer.delay_s = Place.EDGE, self._now - answer.captured_s
            self._policy.learn(EdgeOutcome(self._now, "edge", service_s))
            self._serve_edge()

        self._at(self._now + service_s, done)

    def _renew(self) -> None:
        if self._edge_busy:
            return
        self._edge_busy = True
        service_s = self._edge_takes_s()

        def done() -> None:
            self._edge_busy = False
            self._policy.learn(EdgeOutcome(self._now, "edge", service_s))
            self._serve_edge()

        self._at(self._now + service_s, done)

    def _edge_takes_s(self) -> float:
        """What the next inference takes here; the first ones are cold."""
        self._runs += 1
        cold = self._world.edge_cold if self._runs <= self._world.cold_runs else 1.0
        return self._world.edge_s * cold * self._vary()

    def _vary(self) -> float:
        return math.exp(self._draw.gauss(0, self._world.noise))

    # ------------------------------------------------ the cloud

    def _ask_cloud(self, answer: Answer, timeout_s: float) -> None:
        number = next(self._numbers)
        settled = False

        def came(queue_s: float, service_s: float) -> None:
            nonlocal settled
            # A reply that comes too late is answered already, but it is still a measurement.
            self._policy.learn(CloudOutcome(self._now, number, True, queue_s, service_s))
            if not settled:
                settled = True
                self._under_way -= 1
                answer.delay_s = self._now - answer.captured_s

        def late() -> None:
            nonlocal settled
            if not settled:
                settled = True
                self._under_way -= 1
                answer.fallback = True
                self._policy.learn(CloudOutcome(self._now, number, False, timed_out=True))
                self._to_edge(answer)

        self._under_way += 1
        self._policy.learn(CloudSent(self._now, number, "cloud", self._world.payload_bytes))
        self._at(self._now + timeout_s, late)
        self._send(self._world.payload_bytes, self._world.cloud_s, came)

    def _send(self, size: int, work_s: float, came: Callable[[float, float], None]) -> None:
        world = self._world
        self._out.sent_bytes += size
        one_way_s = world.trace.rtt_at(self._now + world.trace_from_s) / 2
        arrives_s = self._up.leaves(self._now, size) + one_way_s
        queue_s = self._draw.expovariate(1 / world.cloud_wait_s) if world.cloud_wait_s and work_s else 0.0
        queue_s += max(0.0, self._replica_free_s - arrives_s) if work_s else 0.0
        service_s = work_s * self._vary()
        if work_s:
            self._replica_free_s = arrives_s + queue_s + service_s
        answers_s = self._down.leaves(arrives_s + queue_s + service_s, 300) + one_way_s
        # Slower than any timer of a real machine never is: a millisecond of scheduling, now and then many.
        stall_s = self._draw.expovariate(1 / 0.001) + (0.02 if self._draw.random() < 0.01 else 0.0)
        self._at(answers_s + stall_s, lambda: came(queue_s, service_s))

    def _tick(self) -> None:
        assert not isinstance(self._policy, Always)
        policy = self._policy
        size = policy.probe_due(self._now)
        if size is not None:
            number = next(self._numbers)
            self._out.probes += 1
            policy.learn(CloudSent(self._now, number, None, size))
            done = False

            def came(queue_s: float, service_s: float) -> None:
                nonlocal done
                done = True
                policy.learn(CloudOutcome(self._now, number, True, queue_s, service_s))

            def late() -> None:
                if not done:
                    policy.learn(CloudOutcome(self._now, number, False, timed_out=True))

            self._at(self._now + _PROBE_TIMEOUT_S, late)
            self._send(size, 0.0, came)
        if self._now < self._world.length_s:
            self._at(self._now + _TICK_S, self._tick)
