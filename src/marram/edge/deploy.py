"""Where one app's version stands on this device, and what may come next: pure state, no I/O, no clock.

`pending → fetched → verified → provisional → committed`, or `rolled_back` from anywhere before that: then the last
committed version runs, and the failed one is not tried again until the cloud asks for another. What was never proven
here never becomes the version to fall back to. Every try is counted on disk before it starts, so a release that takes
the whole device down with it is given up as well.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from marram.schema.device import TRANSITIONS, AppState, DesiredApp
from marram.schema.model import Strict

# Starts of one version before it is proven; then it is rolled back.
MAX_TRIES = 5


class AppRecord(Strict):
    """What the device remembers of one app. `target` is what the cloud wants; `state` is how far that came.

    `committed` is the version to fall back to. `tries` counts starts of `target` before it was proven. `finished`: the
    source of the proven version (`runs`) came to its end; started again it would record all of it twice.
    """

    target: DesiredApp
    state: AppState = AppState.PENDING
    reason: str = ""
    committed: DesiredApp | None = None
    tries: int = Field(default=0, ge=0)
    finished: bool = False

    @property
    def runs(self) -> DesiredApp | None:
        """The proven version that keeps running: the target once committed, else the last committed one."""
        return self.target if self.state is AppState.COMMITTED else self.committed

    @property
    def started(self) -> tuple[int, ...]:
        """The versions that ran here and may run again, the target from its second try on.

        Also where no version was proven: this record may be new because the one before it was damaged.
        """
        if self.committed is None:
            return (self.target.version,)
        return (self.committed.version, self.target.version) if self.tries > 1 else (self.committed.version,)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do for the target: it is proven or given up."""
        return self.state in (AppState.COMMITTED, AppState.ROLLED_BACK, AppState.REMOVED)

    @property
    def exhausted(self) -> bool:
        """Whether the target was started as often as it may be before it is given up."""
        return self.tries >= MAX_TRIES


def retarget(record: AppRecord | None, target: DesiredApp) -> AppRecord:
    """The record once the cloud wants `target`. The same target changes nothing: a failed one is not tried again."""
    if record is None:
        return AppRecord(target=target)
    if record.target == target:
        return record
    if record.runs == target:
        # Back to what was proven here and runs already: nothing to try.
        return AppRecord(target=target, state=AppState.COMMITTED, committed=target, finished=record.finished)
    return AppRecord(target=target, committed=record.runs, finished=record.finished)


def move(record: AppRecord, state: AppState, reason: str = "") -> AppRecord:
    """The record in its next state. Raises ValueError where `schema.device.TRANSITIONS` forbids it."""
    if state not in TRANSITIONS[record.state]:
        raise ValueError(f"{record.target.name}: {record.state} never becomes {state}")
    update: dict[str, Any] = {"state": state, "reason": reason}
    if state is AppState.COMMITTED:
        update |= {"committed": record.target, "finished": False}
    return record.model_copy(update=update)


def tried(record: AppRecord) -> AppRecord:
    """The record with one more start counted; save it before starting."""
    return record.model_copy(update={"tries": record.tries + 1})


def noted(record: AppRecord, reason: str) -> AppRecord:
    """The record with what holds it up, for people to read; its state stays."""
    return record.model_copy(update={"reason": reason})


def finished(record: AppRecord) -> AppRecord:
    """The record once the source of the proven version came to its end: nothing left to run until another is wanted."""
    return record.model_copy(update={"finished": True})
