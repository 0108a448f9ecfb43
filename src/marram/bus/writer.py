"""The way into the outbox for a process that makes events: `emit` from any thread, one thread commits what gathered.

While one commit waits for the disk the next batch gathers, so the disk's pace sets the batch size (group commit). A
disk that fails never stops the app: events wait here, bounded; beyond that the least worth are given up and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from marram.bus.outbox import Outbox, encode
from marram.bus.progress import Progress
from marram.schema.errors import Invalid, MarramError
from marram.schema.event import Event, EventKind

log = logging.getLogger(__name__)

COMMIT_EVENTS = 2_000
COMMIT_BYTES = 8_000_000
RETRY_S = (0.2, 5.0)  # between attempts while the disk fails; doubles from the first to the second
CLOSE_S = 10.0
# Where frames lead to no event, how far the source has come is written this often: flash wears out.
PROGRESS_S = 5.0


@dataclass(slots=True)
class _Entry:
    """What one commit takes whole, or not yet: the events of one frame, and how far the source has come with them."""

    records: list[tuple[EventKind, bytes]]
    progress: Progress | None = None

    @property
    def size(self) -> int:
        return sum(len(record) for _, record in self.records)


class OutboxWriter:
    """An Outlet. Close it before its outbox."""

    def __init__(self, outbox: Outbox, *, capacity: int = 10_000, capacity_bytes: int = 32_000_000) -> None:
        self.error: str | None = None  # why the last commit failed; None once one succeeded
        self.failures = 0  # commits that failed
        self.given_up = 0  # events given up here, before they reached the disk
        self._outbox = outbox
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._queue: deque[_Entry] = deque()
        self._queued = 0  # events in it
        self._queued_bytes = 0  # including what is being committed
        self._committing = 0
        self._emitted = 0
        self._settled = 0  # durable, or given up
        self._lost: list[EventKind] = []  # given up and not yet counted in the outbox
        # Newer than all that is queued; no event came with it.
        self._progress: Progress | None = None
        self._progress_due_s = 0.0
        self._closing = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="outbox-writer", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Record one event. Any thread; never raises.

        Blocks while the queue is full and the disk keeps up. Where the disk fails, or the event is too big or not plain
        data, the event least worth is given up instead, and counted.
        """
        self.record((event,))

    def record(self, events: Sequence[Event], progress: Progress | None = None) -> None:
        """Like `emit`, for events that become durable together, and with them how far the source has come.

        Call it with `progress` in the order of the source. Without events, it may become durable some seconds later.
        """
        records: list[tuple[EventKind, bytes]] = []
        for event in events:
            try:
                records.append((event.kind, encode(event)))
            except Invalid as error:
                log.error("an event cannot be recorded: %s", error)
                with self._news:
                    self._emitted += 1
                    self._give_up(event.kind)
        entry = _Entry(records, progress)
        with self._news:
            self._emitted += len(records)
            while self._full(len(records), entry.size) and self.error is None and not self._closing:
                self._news.wait()
            if self._closing and not self._thread.is_alive():
                for kind, _ in records:
                    log.error("an event came after the outbox was closed")
                    self._give_up(kind)
                return
            self._put(entry)
            while self._full(0, 0) and self._give_up_least():
                pass
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

    def _put(self, entry: _Entry) -> None:
        if entry.records:
            entry.progress, self._progress = entry.progress or self._progress, None
            self._queue.append(entry)
            self._queued += len(entry.records)
            self._queued_bytes += entry.size
        elif entry.progress is not None and self._queue:
            self._queue[-1].progress = entry.progress
        elif entry.progress is not None:
            if self._progress is None:
                self._progress_due_s = time.monotonic() + PROGRESS_S
            self._progress = entry.progress

    def _full(self, more: int, more_bytes: int) -> bool:
        if not self._queue and not self._committing:
            return False  # one frame's events always fit, however big
        count = self._queued + self._committing
        return count + more > self._capacity or self._queued_bytes + more_bytes > self._capacity_bytes

    def _give_up(self, kind: EventKind) -> None:
        self.given_up += 1
        self._settled += 1
        self._lost.append(kind)

    def _give_up_least(self) -> bool:
        """The least worth, the oldest of those; False where nothing is queued."""
        kinds = [
            (kind.worth, -i, -j) for i, entry in enumerate(self._queue) for j, (kind, _) in enumerate(entry.records)
        ]
        if not kinds:
            return False
        _, i, j = max(kinds)
        entry = self._queue[-i]
        kind, record = entry.records.pop(-j)
        self._queued -= 1
        self._queued_bytes -= len(record)
        self._give_up(kind)
        if not entry.records:
            # The source is as far with the entry before, now that nothing more of this one will be recorded.
            del self._queue[-i]
            if entry.progress is not None and i:
                self._queue[-i - 1].progress = entry.progress
        return True

    def _idle(self) -> bool:
        due = self._progress is not None and time.monotonic() >= self._progress_due_s
        return not (self._queue or self._lost or self._closing or due)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        wait_s, give_up_at_s = RETRY_S[0], float("inf")
        while True:
            with self._news:
                while self._idle():
                    self._news.wait(None if self._progress is None else self._progress_due_s - time.monotonic())
                if self._closing:
                    give_up_at_s = min(give_up_at_s, time.monotonic() + CLOSE_S)
                    if not self._queue and not self._lost and self._progress is None:
                        return
                taken = self._take()
                lost, self._lost = self._lost, []
            records = [record for entry in taken for record in entry.records]
            marks = [entry.progress for entry in taken if entry.progress is not None]
            try:
                self._outbox.append_encoded(records, lost, marks[-1] if marks else None)
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
                    self._settled += len(records)
                    self._queued_bytes -= sum(len(record) for _, record in records)
                else:
                    if self.error is None:
                        log.error("%s", fault)
                    self.error, self.failures = fault, self.failures + 1
                    self._queue.extendleft(reversed(taken))
                    self._queued += len(records)
                    self._lost = lost + self._lost
                self._news.notify_all()
                if fault is not None:
                    if time.monotonic() >= give_up_at_s:
                        return
                    self._news.wait_for(lambda: self._closing, wait_s) if not self._closing else self._news.wait(0.2)
                    wait_s = min(2 * wait_s, RETRY_S[1])

    def _take(self) -> list[_Entry]:
        taken: list[_Entry] = []
        size = 0
        while (
            self._queue
            and self._committing < COMMIT_EVENTS
            and (not taken or size + self._queue[0].size <= COMMIT_BYTES)
        ):
            taken.append(self._queue.popleft())
            size += taken[-1].size
            self._committing += len(taken[-1].records)
        self._queued -= self._committing
        if not self._queue and self._progress is not None:
            taken.append(_Entry([], self._progress))
            self._progress = None
        return taken
