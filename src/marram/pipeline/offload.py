"""Asks the cloud, each time within a limit: the way out of the process for inferences, and the policy's one lock.

A reply that does not come in time is answered elsewhere and nobody waits for it; when it comes after all, only the
policy hears of it, because its delay is a true measurement. One thread watches every time limit, starts what hedges a
late reply and sends the probes; no request has a thread of its own. It must never call the policy from two threads at
once, nor raise into a frame, nor take a bug on the way to the cloud for a cloud that is away: what is not one of our
own errors is logged and handed on.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial

from marram.pipeline.clock import SteadyClock
from marram.pipeline.contract import CloudInput, Remote, Reply
from marram.pipeline.faults import Faults
from marram.placement.contract import (
    Ask,
    CloudOutcome,
    CloudSent,
    Decision,
    EdgeOutcome,
    LinkEstimate,
    Policy,
)
from marram.schema.errors import Busy, Invalid, MarramError, Retryable
from marram.schema.load import is_duration

log = logging.getLogger(__name__)

TICK_S = 0.05
PROBE_TIMEOUT_S = 2.0
# A late reply is worth waiting for as a measurement, so the way to the cloud gets longer than the frame does.
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended: with a `reply`, or because its time ran out, or another way.

    `fault`: what broke on the way if that is a fault of ours, or a reply that is none (never a Retryable, which is the
    cloud's or the link's usual absence, nor a cloud's refusal).
    """

    reply: Reply | None = None
    timed_out: bool = False
    fault: BaseException | None = None


# Called once for each request.
Answered = Callable[[Ended], None]


@dataclass(frozen=True, slots=True)
class Errand:
    """One request. `key`: what its time is learnt for. `wait_s`: how long the reply has.

    `check` raises Invalid where a reply is none; `hedge` is called once, after `hedge_s`, where no reply came by then;
    `late` with a reply that came when its time was over.
    """

    request: CloudInput
    key: str
    wait_s: float
    answered: Answered
    check: Callable[[Reply], None]
    hedge_s: float | None = None
    hedge: Callable[[], None] | None = None
    late: Callable[[Reply], None] | None = None


class _Asked:
    """A request in flight; whoever takes it first answers it. `until_s`: when its time is over."""

    __slots__ = ("_taken", "errand", "number", "until_s")

    def __init__(self, number: int, until_s: float, errand: Errand) -> None:
        self.number, self.until_s, self.errand = number, until_s, errand
        self._taken = threading.Lock()

    @property
    def taken(self) -> bool:
        return self._taken.locked()

    def take(self) -> bool:
        return self._taken.acquire(blocking=False)


class Offload:
    """One pipeline's way to the cloud; shared by all its inference steps. `clock`: the policy's time, see `now_s`."""

    def __init__(self, remote: Remote, policy: Policy, clock: Callable[[], float] | None = None) -> None:
        self._remote, self._policy = remote, policy
        self.now_s = clock or SteadyClock()
        self._faults = Faults(log)
        self._lock = threading.Lock()  # guards the policy
        self._numbers = itertools.count(1)
        # When something is due for a request, by `now_s`: its end, or what hedges it.
        self._due: list[tuple[float, int, bool, _Asked]] = []
        self._watch = threading.Condition()
        self._closed = False
        self._abandoned = False
        self._up = policy.link().up
        self._models: list[tuple[str, int]] = []
        self._thread = threading.Thread(target=self._tick, name="marram-offload", daemon=True)
        self._thread.start()

    @property
    def away(self) -> bool:
        """Whether the link or the cloud is away, as the policy last saw it."""
        return not self._up

    def about(self, model: str, version: int) -> None:
        """Probes ask for the load of this model's replicas too, each of several in turn."""
        self._models.append((model, version))

    def decide(self, ask: Ask) -> Decision:
        """See `Policy.decide`."""
        with self._lock:
            return self._policy.decide(ask)

    def link(self) -> LinkEstimate:
        """See `Policy.link`."""
        with self._lock:
            return self._policy.link()

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        """See `Policy.learn`."""
        with self._lock:
            self._policy.learn(outcome)
            self._up = self._policy.link().up

    def hedged(self) -> None:
        """See `Policy.hedged`."""
        with self._lock:
            self._policy.hedged()

    def ask(self, errand: Errand) -> None:
        """Send its request; it is answered once, from any thread, at the latest when its time is over."""
        now_s = self.now_s()
        asked = _Asked(next(self._numbers), now_s + errand.wait_s, errand)
        with self._watch:
            if self._abandoned:
                errand.answered(Ended())
                return
        request = errand.request
        self.learn(CloudSent(now_s, asked.number, errand.key, len(request.payload.body), request.replica))
        with self._watch:
            self._plan(asked.until_s, asked)
            if errand.hedge_s is not None and errand.hedge is not None and errand.hedge_s < errand.wait_s:
                self._plan(now_s + errand.hedge_s, asked, hedge=True)
        try:
            future = self._remote.infer(request, errand.wait_s + PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - whatever the way to the cloud does, the frame is answered
            self._failed(asked, error, self._fault("asking the cloud", error))
        else:
            future.add_done_callback(partial(self._came, asked))

    def close(self) -> None:
        """Give up every request in flight and stop probing."""
        with self._watch:
            self._closed = True
            self._watch.notify()
        self._thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Answer every request in flight with None now, and all that still come; the policy does not hear of it."""
        with self._watch:
            self._abandoned = True
            left, self._due = self._due, []
        for _, _, _, asked in left:
            if asked.take():
                asked.errand.answered(Ended())

    def _plan(self, due_s: float, asked: _Asked, *, hedge: bool = False) -> None:
        heapq.heappush(self._due, (due_s, asked.number, hedge, asked))
        if self._due[0][3] is asked:
            self._watch.notify()

    def _came(self, asked: _Asked, future: Future[Reply]) -> None:
        try:
            reply = future.result()
        except (Exception, CancelledError) as error:  # noqa: BLE001 - as above
            self._failed(asked, error, self._fault("the cloud's answer", error))
            return
        try:
            asked.errand.check(reply)
        except Invalid as error:
            self._faults.tell("the cloud's answer", error)
            self._failed(asked, error, error, reply.replica)
        else:
            self._replied(asked, reply)

    def _replied(self, asked: _Asked, reply: Reply) -> None:
        now_s = self.now_s()
        mine = asked.take()
        self.learn(_outcome(now_s, asked.number, reply))
        # Who watches the time may be a little late itself.
        late = now_s > asked.until_s
        if mine:
            asked.errand.answered(Ended(None if late else reply, late))
        if asked.errand.late is not None and (late or not mine):
            asked.errand.late(reply)

    def _failed(
        self, asked: _Asked, error: BaseException, fault: BaseException | None, replica: str | None = None
    ) -> None:
        """What came instead of a reply: the replica refused, is gone or broken, or so is the way there."""
        mine = asked.take()
        busy = error if isinstance(error, Busy) else None
        if busy is not None or mine:
            self.learn(
                CloudOutcome(
                    self.now_s(),
                    asked.number,
                    False,
                    queue_s=_duration(busy.queue_s) if busy is not None else 0.0,
                    busy=busy is not None,
                    replica=replica or asked.errand.request.replica,
                    waiting=busy.waiting if busy is not None else None,
                )
            )
        if mine:
            asked.errand.answered(Ended(fault=fault))

    def _fault(self, doing: str, error: BaseException) -> BaseException | None:
        """Log what came instead of a reply; `error` where it is a fault of ours, None where clouds do that."""
        if isinstance(error, (Retryable, CancelledError)):
            log.debug("%s: %s", doing, error)
            return None
        self._faults.tell(doing, error)
        return None if isinstance(error, MarramError) else error

    def _tick(self) -> None:
        while not self._closed:
            try:
                self._attend()
                self._probe(self.now_s())
            except Exception as error:  # noqa: BLE001 - the thread that watches every time limit must not end
                self._faults.tell("watching the cloud's time limits", error)
                time.sleep(TICK_S)  # or a policy that always fails would have this thread spin

    def _attend(self) -> None:
        """Do what is due: answer what has had its time with None, hedge what is late; else wait a little."""
        with self._watch:
            if self._closed:
                return
            now_s = self.now_s()
            due: list[tuple[bool, _Asked]] = []
            while self._due and self._due[0][0] <= now_s:
                _, _, hedge, asked = heapq.heappop(self._due)
                due.append((hedge, asked))
            if not due:
                next_s = self._due[0][0] if self._due else now_s + TICK_S
                self._watch.wait(min(TICK_S, next_s - now_s))
        for hedge, asked in due:
            errand = asked.errand
            if hedge:
                if not asked.taken and errand.hedge is not None:
                    errand.hedge()
            elif asked.take():
                replica = errand.request.replica
                try:
                    self.learn(CloudOutcome(now_s, asked.number, False, timed_out=True, replica=replica))
                finally:
                    errand.answered(Ended(timed_out=True))

    def _probe(self, now_s: float) -> None:
        with self._lock:
            size_bytes = self._policy.probe_due(now_s)
            self._up = self._policy.link().up
        if size_bytes is None:
            return
        number = next(self._numbers)
        self.learn(CloudSent(now_s, number, None, size_bytes))
        try:
            about = self._models[number % len(self._models)] if self._models else None
            future = self._remote.probe(size_bytes, PROBE_TIMEOUT_S, about)
        except Exception as error:  # noqa: BLE001 - the thread that watches every time limit must not end
            self._fault("probing the cloud", error)
            self._probed(number, now_s, None)
        else:
            future.add_done_callback(partial(self._probed, number, now_s))

    def _probed(self, number: int, sent_s: float, future: Future[Reply] | None) -> None:
        now_s = self.now_s()
        try:
            reply = future.result() if future is not None else None
        except (Exception, CancelledError) as error:  # noqa: BLE001 - as above
            self._fault("a probe's answer", error)
            reply = None
        if reply is not None:
            self.learn(_outcome(now_s, number, reply))
        else:
            self.learn(CloudOutcome(now_s, number, False, timed_out=now_s - sent_s >= PROBE_TIMEOUT_S * 0.9))


def _outcome(now_s: float, number: int, reply: Reply) -> CloudOutcome:
    """A reply as the policy learns it. What a replica says of its own time is believed where it can be true."""
    return CloudOutcome(
        now_s,
        number,
        True,
        _duration(reply.queue_s),
        _duration(reply.service_s),
        replica=reply.replica,
        waiting=reply.waiting,
        loads=reply.loads,
        gone=reply.gone,
    )


def _duration(seconds: float) -> float:
    return seconds if is_duration(seconds) else 0.0
