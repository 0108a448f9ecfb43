"""Which events each frame of a finite source led to, so that they are recorded together and in the source's order.

A frame's events come from several steps and threads, some before those of frames ahead of it. They are held back until
the frame and all before it are through; then they go out at once, with the word that the source has come so far. What
is recorded is therefore all of some first frames and nothing of any other: who starts again after those records no
frame twice and loses none. A frame given up because the app stops never counts as through.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from marram.pipeline.contract import Frame, Outlet, Position, Ticket
from marram.schema.event import Event


class Ledger(Outlet, Protocol):
    """The durable way out, of an app whose source goes on where it was. `reached`: as far as an earlier run came."""

    reached: Position | None

    def record(self, events: Sequence[Event], position: Position) -> None:
        """Record, all or none, what the frame at `position` led to, and that the source has come so far."""
        ...


class Progress:
    """An outlet that knows which frame a thread is at work on. Without a ledger it does nothing."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._tickets: deque[Ticket] = deque()  # those not through, in the order of the source
        self._at_work = threading.local()

    def taken(self, frame: Frame) -> None:
        """A frame came from the source; call it in their order."""
        if self._ledger is not None:
            frame.ticket = Ticket(Position(frame.index, frame.name))
            with self._lock:
                self._tickets.append(frame.ticket)

    @contextmanager
    def during(self, ticket: Ticket | None) -> Iterator[None]:
        """What this thread emits meanwhile belongs to that frame."""
        self._at_work.ticket = ticket
        try:
            yield
        finally:
            self._at_work.ticket = None

    def became(self, ticket: Ticket | None, frames: Sequence[Frame] = ()) -> Sequence[Frame]:
        """One frame of `ticket` became these: none, where it ends here. Returns them with its ticket."""
        if ticket is None or self._ledger is None:
            return frames
        # User code may make frames, or hand on once more one that is on its way already.
        frames = [frame if frame.ticket is ticket else replace(frame, ticket=ticket) for frame in frames]
        # The lock is held while the ledger takes them: it may block, and the order has to stay.
        with self._lock:
            ticket.open += len(frames) - 1
            while self._tickets and not self._tickets[0].open:
                through = self._tickets.popleft()
                self._ledger.record(through.events, through.position)
        return frames

    def emit(self, event: Event) -> None:
        """See `contract.Outlet`. What comes from no frame (a thread of the user's) is recorded at once."""
        ticket: Ticket | None = getattr(self._at_work, "ticket", None)
        if ticket is not None:
            ticket.events.append(event)
        elif self._ledger is not None:
            self._ledger.emit(event)
