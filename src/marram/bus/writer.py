"""The way into the outbox for a process that makes events: `emit` from any thread, one thread commits what gathered.

While one commit waits for the disk the next batch gathers, so the disk's pace sets the batch size (group commit). A
disk that fails never stops the app: events wait here, bounded; beyond that the least worth are given up and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from marram.bus.outbox import Outbox, encode
from marram.schema.errors import Invalid, MarramError
from marram.schema.event import Event, EventKind

log = logging.getLogger(__name__)

COMMIT_EVENTS = 2_000
COMMIT_BYTES = 8_000_000
RETRY_S = (0.2, 5.0)  # between attempts while the disk fails; doubles from the first to the second
CLOSE_S = 10.0


class OutboxWriter:
    """An Outlet. Close it before its outbox."""

    def __init__(self, outbox: Outbox, *, capacity: int = 10_000, capacity_bytes: int = 32_000_000) -> None:
        self.error: str | None = None  # why the last commit failed; None once one succeeded
        self.failures = 0  # commits that failed
        self.given_up = 0  # events given up here, before they reached the disk
        self._outbox = outbox
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._queue: deque[tuple[EventKind, bytes]] = deque()
        self._queued_bytes = 0  # including what is being committed
        self._committing = 0
        self._emitted = 0
        self._settled = 0  # durable, or given up
        self._lost: list[EventKind] = []  # given up and not yet counted in the outbox
        self._closing = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="outbox-writer", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Record one event. Any thread; never raises.

        Blocks while the queue is full and the disk keeps up. Where the disk fails, or the event is too big or not plain
        data, the event least worth is given up instead, and counted.
        """
        try:
            record = encode(event)
        except Invalid as error:
            log.error("an event cannot be recorded: %s", error)
            with self._news:
                self._emitted += 1
                self._give_up(event.kind)
                self._news.notify_all()
            return
        with self._news:
            self._emitted += 1
            while self._full(len(record)) and self.error is None and not self._closing:
                self._news.wait()
            if self._closing and not self._thread.is_alive():
                log.error("an event came after the outbox was closed")
                self._give_up(event.kind)
                return
            self._queue.append((event.kind, record))
            self._queued_bytes += len(record)
            while self._full(0) and self._queue:
                self._give_up_least()
            self._news.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything emitted before is durable (or was given up); False if it was not so in time."""
        with self._news:
            target = self._emitted
            return self._news.wait_for(lambda: self._settled >= target or not self._thread.is_alive(), timeout_s)

    def waiting(self) -> int:
        """How many events are not durable yet."""
        with self._news:
            return self._emitted - self._settled

    def close(self) -> None:
        """Commit what is left, trying for `CLOSE_S` at most, and end. Any number of times."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        self._thread.join(CLOSE_S + 5)
        if left := self.waiting():
            log.error("%d events were not recorded: %s", left, self.error)

    # ------------------------------------------------------------ under the lock

    def _full(self, more_bytes: int) -> bool:
        if not self._queue and not self._committing:
            return False  # one event always fits, however big
        count = len(self._queue) + self._committing
        return count + bool(more_bytes) > self._capacity or self._queued_bytes + more_bytes > self._capacity_bytes

    def _give_up(self, kind: EventKind) -> None:
        self.given_up += 1
        self._settled += 1
        self._lost.append(kind)

    def _give_up_least(self) -> None:
        """The least worth, the oldest of those."""
        index, (kind, record) = max(enumerate(self._queue), key=lambda pair: (pair[1][0].worth, -pair[0]))
        del self._queue[index]
        self._queued_bytes -= len(record)
        self._give_up(kind)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        wait_s, give_up_at_s = RETRY_S[0], float("inf")
        while True:
            with self._news:
                while not self._queue and not self._lost and not self._closing:
                    self._news.wait()
                if self._closing:
                    give_up_at_s = min(give_up_at_s, time.monotonic() + CLOSE_S)
                    if not self._queue and not self._lost:
                        return
                taken, size = self._take()
                lost, self._lost = self._lost, []
            try:
                self._outbox.append_encoded(taken, lost)
                fault = None
            except MarramError as error:
                fault = str(error)
            except Exception as error:  # a supervisor: events wait here, whatever ails the outbox
                log.exception("the outbox failed")
                fault = repr(error)
            with self._news:
                self._committing = 0
                if fault is None:
                    self.error, wait_s = None, RETRY_S[0]
                    self._settled += len(taken)
                    self._queued_bytes -= size
                else:
                    if self.error is None:
                        log.error("%s", fault)
                    self.error, self.failures = fault, self.failures + 1
                    self._queue.extendleft(reversed(taken))
                    self._lost = lost + self._lost
                self._news.notify_all()
                if fault is not None:
                    if time.monotonic() >= give_up_at_s:
                        return
                    self._news.wait_for(lambda: self._closing, wait_s) if not self._closing else self._news.wait(0.2)
                    wait_s = min(2 * wait_s, RETRY_S[1])

    def _take(self) -> tuple[list[tuple[EventKind, bytes]], int]:
        taken: list[tuple[EventKind, bytes]] = []
        size = 0
        while (
            self._queue and len(taken) < COMMIT_EVENTS and (not taken or size + len(self._queue[0][1]) <= COMMIT_BYTES)
        ):
            item = self._queue.popleft()
            taken.append(item)
            size += len(item[1])
        self._committing = len(taken)
        return taken, size
