"""Asks the cloud, each time within a limit: the way out of the process for inferences, and the policy's one lock.

A reply that does not come in time is answered elsewhere and nobody waits for it; when it comes after all, only the
policy hears of it, because its delay is a true measurement. One thread watches every time limit and sends the probes;
no request has a thread of its own. It must never call the policy from two threads at once, nor raise into a frame, nor
take a bug on the way to the cloud for a cloud that is away: what is not one of our own errors is logged and handed on.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial

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
from marram.schema.errors import MarramError, Retryable

log = logging.getLogger(__name__)

TICK_S = 0.05
PROBE_TIMEOUT_S = 2.0
# A late reply is worth waiting for as a measurement, so the way to the cloud gets longer than the frame does.
PATIENCE_S = 5.0

# Called once for each request: with the reply, or with None, whether time ran out, and what broke on the way if that is
# a fault of ours (never a Retryable, which is the cloud's or the link's usual absence, nor a cloud's refusal).
Answered = Callable[[Reply | None, bool, BaseException | None], None]


class _Asked:
    """A request in flight; whoever takes it first answers it."""

    __slots__ = ("_taken", "answered", "number", "sent_s", "wait_s")

    def __init__(self, number: int, sent_s: float, wait_s: float, answered: Answered) -> None:
        self.number, self.sent_s, self.wait_s, self.answered = number, sent_s, wait_s, answered
        self._taken = threading.Lock()

    def take(self) -> bool:
        return self._taken.acquire(blocking=False)


class Offload:
    """One pipeline's way to the cloud; shared by all its inference steps."""

    def __init__(self, remote: Remote, policy: Policy) -> None:
        self._remote, self._policy = remote, policy
        self._faults = Faults(log)
        self._lock = threading.Lock()  # guards the policy
        self._numbers = itertools.count(1)
        self._deadlines: list[tuple[float, int, _Asked]] = []
        self._watch = threading.Condition()
        self._closed = False
        self._abandoned = False
        self._up = policy.link().up
        self._thread = threading.Thread(target=self._tick, name="marram-offload", daemon=True)
        self._thread.start()

    @property
    def away(self) -> bool:
        """Whether the link or the cloud is away, as the policy last saw it."""
        return not self._up

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

    def ask(self, request: CloudInput, key: str, wait_s: float, answered: Answered) -> None:
        """Send `request`; `answered` is called once, from any thread, at the latest `wait_s` from now."""
        now_s = time.monotonic()
        asked = _Asked(next(self._numbers), now_s, wait_s, answered)
        with self._watch:
            if self._abandoned:
                answered(None, False, None)
                return
        self.learn(CloudSent(now_s, asked.number, key, len(request.payload.body)))
        with self._watch:
            heapq.heappush(self._deadlines, (now_s + wait_s, asked.number, asked))
            if self._deadlines[0][2] is asked:
                self._watch.notify()
        try:
            future = self._remote.infer(request, wait_s + PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - whatever the way to the cloud does, the frame is answered
            self._ended(asked, None, self._fault("asking the cloud", error))
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
            left, self._deadlines = self._deadlines, []
        for _, _, asked in left:
            if asked.take():
                asked.answered(None, False, None)

    def _came(self, asked: _Asked, future: Future[Reply]) -> None:
        try:
            reply = future.result()
        except (Exception, CancelledError) as error:  # noqa: BLE001 - as above
            self._ended(asked, None, self._fault("the cloud's answer", error))
        else:
            self._ended(asked, reply, None)

    def _fault(self, doing: str, error: BaseException) -> BaseException | None:
        """Log what came instead of a reply; `error` where it is a fault of ours, None where clouds do that."""
        if isinstance(error, (Retryable, CancelledError)):
            log.debug("%s: %s", doing, error)
            return None
        self._faults.tell(doing, error)
        return None if isinstance(error, MarramError) else error

    def _ended(self, asked: _Asked, reply: Reply | None, fault: BaseException | None) -> None:
        """The way to the cloud is done with the request, in time or not."""
        in_time = asked.take()
        now_s = time.monotonic()
        if reply is not None:
            self.learn(CloudOutcome(now_s, asked.number, True, reply.queue_s, reply.service_s))
        elif in_time:
            self.learn(CloudOutcome(now_s, asked.number, False))
        if in_time:
            asked.answered(reply, False, fault)

    def _tick(self) -> None:
        while not self._closed:
            try:
                self._give_up_late()
                self._probe(time.monotonic())
            except Exception as error:  # noqa: BLE001 - the thread that watches every time limit must not end
                self._faults.tell("watching the cloud's time limits", error)
                time.sleep(TICK_S)  # or a policy that always fails would have this thread spin

    def _give_up_late(self) -> None:
        """Answer what has had its time with None; wait a little where nothing has."""
        with self._watch:
            if self._closed:
                return
            now_s = time.monotonic()
            late: list[_Asked] = []
            while self._deadlines and self._deadlines[0][0] <= now_s:
                late.append(heapq.heappop(self._deadlines)[2])
            if not late:
                due_s = self._deadlines[0][0] if self._deadlines else now_s + TICK_S
                self._watch.wait(min(TICK_S, due_s - now_s))
        for asked in late:
            if asked.take():
                try:
                    self.learn(CloudOutcome(now_s, asked.number, False, timed_out=True))
                finally:
                    asked.answered(None, True, None)

    def _probe(self, now_s: float) -> None:
        with self._lock:
            size_bytes = self._policy.probe_due(now_s)
            self._up = self._policy.link().up
        if size_bytes is None:
            return
        number = next(self._numbers)
        self.learn(CloudSent(now_s, number, None, size_bytes))
        try:
            future = self._remote.probe(size_bytes, PROBE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the thread that watches every time limit must not end
            self._fault("probing the cloud", error)
            self._probed(number, now_s, None)
        else:
            future.add_done_callback(partial(self._probed, number, now_s))

    def _probed(self, number: int, sent_s: float, future: Future[Reply] | None) -> None:
        now_s = time.monotonic()
        try:
            reply = future.result() if future is not None else None
        except (Exception, CancelledError) as error:  # noqa: BLE001 - as above
            self._fault("a probe's answer", error)
            reply = None
        if reply is not None:
            self.learn(CloudOutcome(now_s, number, True, reply.queue_s, reply.service_s))
        else:
            self.learn(CloudOutcome(now_s, number, False, timed_out=now_s - sent_s >= PROBE_TIMEOUT_S * 0.9))
