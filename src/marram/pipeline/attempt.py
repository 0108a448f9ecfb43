"""One frame on its way to its one answer: whoever comes first gives it, who comes later is ignored.

A frame may be asked about in two places at once (a hedge) or one after the other (a fallback, an escalation). The state
of that lives here, behind one lock, and nothing else: what to do is decided elsewhere.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from marram.pipeline.contract import Frame, Placed
from marram.pipeline.edge_pool import Job
from marram.pipeline.runner import Slot
from marram.pipeline.view import View
from marram.placement.contract import Decision
from marram.schema.result import Place


@dataclass(frozen=True, slots=True)
class Choice:
    """Why a frame goes where it goes; what `Placed` will say of it, whoever answers."""

    reason: str
    decision: Decision | None = None
    audit: bool = False
    fallback: bool = False
    sent_bytes: int = 0
    hedged: bool = False
    escalated: bool = False
    verified: bool = True

    def placed(self, place: Place) -> Placed:
        return Placed(
            place,
            0.0,
            self.decision.predicted_s if self.decision is not None else None,
            self.audit,
            self.fallback,
            self.reason,
            self.sent_bytes,
            self.hedged,
            self.escalated,
            self.verified,
            self.decision,
        )


class Attempt:
    """`until_s` (by `time.monotonic`): when its deadline is; None without one. `allowed`: it may leave the device."""

    __slots__ = (
        "_cloud", "_edge", "_edge_failed", "_lock", "_settled", "allowed", "choice", "frame", "slot", "until_s", "view",
    )  # fmt: skip

    def __init__(self, slot: Slot, frame: Frame, view: View, until_s: float | None, *, allowed: bool) -> None:
        self.slot, self.frame, self.view, self.until_s, self.allowed = slot, frame, view, until_s, allowed
        self.choice = Choice("")
        self._lock = threading.Lock()
        self._settled = False
        self._cloud = False  # a request is under way
        self._edge: Job | None = None  # the edge's copy, queued or begun
        self._edge_failed = False

    @property
    def settled(self) -> bool:
        return self._settled

    def settle(self) -> bool:
        """Whether the answer (or the end) is the caller's to give; True once only."""
        with self._lock:
            mine = not self._settled
            self._settled = True
            return mine

    def to_edge(self, job: Job) -> bool:
        """The edge starts; False where the frame is answered, or the edge has it already or had it and failed."""
        with self._lock:
            if self._settled or self._edge is not None:
                return False
            self._edge = job
            return True

    def to_cloud(self) -> None:
        """A request leaves."""
        with self._lock:
            self._cloud = True

    def without_edge(self) -> bool:
        """The edge ended without an answer; whether nobody else will give one."""
        with self._lock:
            self._edge_failed = True
            return not self._cloud

    def without_cloud(self) -> bool:
        """The cloud did not answer; whether nobody else is about to."""
        with self._lock:
            self._cloud = False
            return self._edge is None or self._edge_failed

    def take_back(self) -> bool:
        """Cancel the edge's copy where it has not begun; True where that was done."""
        with self._lock:
            return self._edge is not None and self._edge.cancel()
