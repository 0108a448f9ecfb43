"""Lets a policy live through a stream, or several policies through streams that share one link; says how each fared.

As the pipeline drives it: one `decide` a frame, `probe_due` every 50 ms, what a reply tells when it comes, an edge's
copy after `hedge_s`, and after `timeout_s` the edge is asked about alone, with what remains of the deadline.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from marram.lab.oracle.stream import Setting, Stream
from marram.placement.contract import Ask, CloudOutcome, CloudSent, EdgeOutcome, Policy, Way
from marram.schema.result import Place

_TICK_S = 0.05
_PROBE_TIMEOUT_S = 2.0
_TIMED = 3
EDGE_KEY, CLOUD_KEY = "edge", "cloud"


@dataclass(slots=True)
class Score:
    """How one policy fared: each frame's latency (infinity: no answer), and what that took."""

    setting: Setting
    latencies_s: list[float]
    placed: dict[Place, int] = field(default_factory=lambda: dict.fromkeys(Place, 0))
    probes: int = 0
    sent_bytes: int = 0
    hedges: int = 0
    decisions_us: list[float] = field(default_factory=list)

    @property
    def loss_s(self) -> float:
        """In sum."""
        return sum(map(self.setting.loss_s, self.latencies_s))

    @property
    def miss_share(self) -> float:
        """Of the frames without an answer by the deadline."""
        return sum(late > self.setting.deadline_s for late in self.latencies_s) / len(self.latencies_s)

    def quantile_s(self, share: float) -> float:
        """Of the latencies of what was answered at all."""
        answered = sorted(late for late in self.latencies_s if late < math.inf) or [math.inf]
        return answered[min(len(answered) - 1, int(share * len(answered)))]


def play(stream: Stream, policy: Policy) -> Score:
    """One stream on a link of its own."""
    return play_together([stream], [policy])[0]


def play_together(streams: Sequence[Stream], policies: Sequence[Policy]) -> list[Score]:
    """Several streams on the link of the first; each policy sees its own stream only."""
    loop, link = _Loop(), _Link(streams[0])
    return _played(loop, [_Player(loop, link, *each) for each in zip(streams, policies, strict=True)])


def play_sharing(streams: Sequence[Stream], policies: Sequence[Policy], replicas: int) -> list[Score]:
    """Several streams, each on its own link, that share so many replicas; each policy sees its own stream only."""
    loop, pool = _Loop(), _Pool(replicas)
    return _played(
        loop,
        [_Player(loop, _Link(stream), stream, policy, pool) for stream, policy in zip(streams, policies, strict=True)],
    )


def _played(loop: _Loop, players: Sequence[_Player]) -> list[Score]:
    loop.run()
    return [player.score for player in players]


class _Loop:
    def __init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.now_s = 0.0

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), action))

    def run(self) -> None:
        while self._events:
            self.now_s, _, action = heapq.heappop(self._events)
            action()


class _Link:
    """First come, first served."""

    def __init__(self, stream: Stream) -> None:
        self._up = stream.up
        self.free_s = 0.0

    def leaves(self, now_s: float, size: int) -> float:
        self.free_s = self._up.finish(max(now_s, self.free_s), size)
        return self.free_s


class _Pool:
    """Replicas that take what comes, first come, first served."""

    def __init__(self, count: int) -> None:
        self._free_s = [0.0] * count

    def queue_s(self, now_s: float) -> float:
        """How long one that came now would wait."""
        return max(0.0, self._free_s[0] - now_s)

    def take(self, now_s: float, service_s: float) -> None:
        """One more is answered, after `queue_s`."""
        heapq.heapreplace(self._free_s, max(now_s, self._free_s[0]) + service_s)


@dataclass(slots=True)
class _Frame:
    number: int
    captured_s: float
    id: int = 0  # of the request for it, where there is one
    until_s: float = math.inf  # nobody waits for the cloud's reply after that
    settled: bool = False  # by the cloud's reply, or because its time ran out
    at_edge: bool = False


class _Player:
    def __init__(self, loop: _Loop, link: _Link, stream: Stream, policy: Policy, pool: _Pool | None = None) -> None:
        """`pool` None: a replica for each question."""
        self._loop, self._link, self._stream, self._policy, self._pool = loop, link, stream, policy, pool
        setting = stream.setting
        self._ways = (Way(Place.EDGE, EDGE_KEY), Way(Place.CLOUD, CLOUD_KEY, setting.payload_bytes))
        self._numbers = itertools.count(1)
        self._queue: deque[_Frame] = deque()
        self._running = False
        self.score = Score(setting, [math.inf] * setting.frames)
        # A model is timed when it comes to a device, so what the edge takes is known; of the link nothing is.
        for _ in range(_TIMED):
            policy.learn(EdgeOutcome(0.0, EDGE_KEY, setting.edge_s))
        for frame in range(setting.frames):
            loop.at(stream.captured_s(frame), lambda frame=frame: self._capture(frame))  # type: ignore[misc]
        loop.at(0.0, self._tick)

    # ------------------------------------------------ frames

    def _ask(self, ways: tuple[Way, ...], deadline_s: float) -> Ask:
        waiting = len(self._queue) + self._running
        every_s = 1 / self._stream.setting.fps
        return Ask(self._loop.now_s, ways, waiting, 1, deadline_s, "soonest", every_s, may_drop=True)

    def _capture(self, number: int) -> None:
        now_s, policy = self._loop.now_s, self._policy
        frame = _Frame(number, now_s)
        ask = self._ask(self._ways, self._stream.setting.deadline_s)
        begin = time.perf_counter_ns()
        decision = policy.decide(ask)
        self.score.decisions_us.append((time.perf_counter_ns() - begin) / 1000)
        self.score.placed[decision.place] += 1
        if decision.place is Place.EDGE:
            self._to_edge(frame)
        elif decision.place is Place.CLOUD:
            self._to_cloud(frame)
            if decision.renew and not self._running:
                self._renew(frame)
            if decision.timeout_s is not None and decision.timeout_s < math.inf:
                frame.until_s = now_s + decision.timeout_s
                self._loop.at(frame.until_s, lambda: self._late(frame))
            if decision.hedge_s is not None:
                self._loop.at(now_s + decision.hedge_s, lambda: self._hedge(frame))

    def _answered(self, frame: _Frame) -> None:
        latency_s = self._loop.now_s - frame.captured_s
        self.score.latencies_s[frame.number] = min(self.score.latencies_s[frame.number], latency_s)

    # ------------------------------------------------ the edge

    def _to_edge(self, frame: _Frame) -> None:
        frame.at_edge = True
        self._queue.append(frame)
        self._serve()

    def _serve(self) -> None:
        # A copy that waits while the cloud's reply comes is not run any more.
        while self._queue and self.score.latencies_s[self._queue[0].number] < math.inf:
            self._queue.popleft()
        if self._running or not self._queue:
            return
        frame = self._queue.popleft()
        self._running = True
        service_s = self._stream.edge_s[frame.number]

        def done() -> None:
            self._running = False
            self._policy.learn(EdgeOutcome(self._loop.now_s, EDGE_KEY, service_s))
            self._answered(frame)
            self._serve()

        self._loop.at(self._loop.now_s + service_s, done)

    def _renew(self, frame: _Frame) -> None:
        """The edge runs it for the time it takes alone."""
        self._running = True
        service_s = self._stream.edge_s[frame.number]

        def done() -> None:
            self._running = False
            self._policy.learn(EdgeOutcome(self._loop.now_s, EDGE_KEY, service_s))
            self._serve()

        self._loop.at(self._loop.now_s + service_s, done)

    def _hedge(self, frame: _Frame) -> None:
        if not frame.settled and not frame.at_edge:
            self.score.hedges += 1
            self._policy.hedged()
            self._to_edge(frame)

    # ------------------------------------------------ the cloud

    def _to_cloud(self, frame: _Frame) -> None:
        id_ = self._send(CLOUD_KEY, self._stream.setting.payload_bytes)
        service_s = self._stream.cloud_s[frame.number]

        def came(queue_s: float) -> None:
            self._policy.learn(CloudOutcome(self._loop.now_s, id_, True, queue_s, service_s))
            if not frame.settled:
                frame.settled = True
                self._answered(frame)

        def refused(queue_s: float) -> None:
            # As the replica does: whoever says how long it waits, and would be answered later, is told at once.
            self._policy.learn(CloudOutcome(self._loop.now_s, id_, False, queue_s, busy=True))
            if not frame.settled:
                frame.settled = True
                self._edge_instead(frame)

        def reached(pool: _Pool) -> None:
            now_s, half_s = self._loop.now_s, self._stream.setting.rtt_s / 2
            queue_s = pool.queue_s(now_s)
            if now_s + queue_s + service_s > frame.until_s:
                self._loop.at(now_s + half_s, lambda: refused(queue_s))
            else:
                pool.take(now_s, service_s)
                self._loop.at(now_s + queue_s + service_s + half_s, lambda: came(queue_s))

        rtt_s, pool = self._stream.setting.rtt_s, self._pool
        if pool is None:
            self._loop.at(self._link.free_s + rtt_s + service_s, lambda: came(0.0))
        else:
            self._loop.at(self._link.free_s + rtt_s / 2, lambda: reached(pool))
        frame.id = id_

    def _send(self, key: str | None, size: int) -> int:
        id_ = next(self._numbers)
        self._policy.learn(CloudSent(self._loop.now_s, id_, key, size))
        self.score.sent_bytes += size
        self._link.leaves(self._loop.now_s, size)
        return id_

    def _late(self, frame: _Frame) -> None:
        if frame.settled:
            return
        frame.settled = True
        self._policy.learn(CloudOutcome(self._loop.now_s, frame.id, False, timed_out=True))
        self._edge_instead(frame)

    def _edge_instead(self, frame: _Frame) -> None:
        if not frame.at_edge:
            left_s = self._stream.setting.deadline_s - (self._loop.now_s - frame.captured_s)
            if self._policy.decide(self._ask(self._ways[:1], max(0.0, left_s))).place is Place.EDGE:
                self._to_edge(frame)

    def _tick(self) -> None:
        now_s, policy = self._loop.now_s, self._policy
        size = policy.probe_due(now_s)
        if size is not None:
            self.score.probes += 1
            id_ = self._send(None, size)
            back_s = self._link.free_s + self._stream.setting.rtt_s
            # What comes after its time-out is told too: it is a true measurement.
            if back_s - now_s > _PROBE_TIMEOUT_S:
                self._loop.at(now_s + _PROBE_TIMEOUT_S, lambda: self._probed(id_, False))
            self._loop.at(back_s, lambda: self._probed(id_, True))
        if now_s < self._stream.captured_s(self._stream.setting.frames - 1):
            self._loop.at(now_s + _TICK_S, self._tick)

    def _probed(self, id_: int, ok: bool) -> None:
        self._policy.learn(CloudOutcome(self._loop.now_s, id_, ok, timed_out=not ok))
