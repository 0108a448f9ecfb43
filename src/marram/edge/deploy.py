"""Where one app's version stands on this device, and what may come next: pure state, no I/O, no clock.

`pending → fetched → verified → provisional → committed`, or `rolled_back` from anywhere on the way: then the last
committed version runs. A committed version that does not stay (crash loop, hangs, memory) goes back to the one that
was committed before it, kept for one such return. A version given up here is refused from then on, over restarts and
whatever else is wanted meanwhile, until a person asks for another attempt. What was never proven here never becomes
the version to fall back to. Every start of what may take the whole device down is counted on disk before it happens.

Each change writes its line of the journal into the record itself: one save holds the change and what is to be told of
it, so a crash between the two is impossible. The line leaves the record once the outbox has it (`told`).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from marram.schema.device import TRANSITIONS, AppState, DesiredApp
from marram.schema.journal import Entry, What
from marram.schema.model import Strict

# Starts of one version before it is proven; then it is rolled back.
MAX_TRIES = 5
# Starts in a row of a proven version that did not run for STEADY_S; then the one before it takes over. With the pauses
# between them, five take half a minute of pauses and at most five minutes of running.
MAX_FALLS = 5
STEADY_S = 60.0
# Hangs and memory breaches of a proven version, none of them after CALM_S of running well.
MAX_BREACHES = 3
CALM_S = 3600.0
# Bounds on what is remembered; versions rise, so the lowest refused ones are those forgotten.
MOST_REFUSED = 100
MOST_UNTOLD = 500


class Refusal(Strict):
    """A version given up here, and why."""

    version: int
    reason: str = ""


class AppRecord(Strict):
    """What the device remembers of one app. `target` is what the cloud wants; `state` is how far that came.

    `committed` is the version proven last, `previous` the one proven before it: to each the way back is one step.
    `tries` counts starts of `target` before it was proven, `ran` says that it ran at all; `held_bytes`: what its app
    had written (`blame`) before the first of them. `falls` and `breaches` are of `committed`. `finished`: the source of
    the proven version (`runs`) came to its end; started again it would record all of it twice. `attempt`: the number of
    the person's last request to try again that was heeded. `id` is unique to this record, `serial` numbers its lines of
    the journal; `journal` holds those that the outbox may not have yet.
    """

    target: DesiredApp
    state: AppState = AppState.PENDING
    reason: str = ""
    committed: DesiredApp | None = None
    previous: DesiredApp | None = None
    refused: list[Refusal] = []
    attempt: int = 0
    tries: int = Field(default=0, ge=0)
    ran: bool = False
    held_bytes: int | None = None
    falls: int = Field(default=0, ge=0)
    breaches: int = Field(default=0, ge=0)
    finished: bool = False
    previous_finished: bool = False
    id: str = ""
    serial: int = 0
    journal: list[Entry] = []

    @property
    def key(self) -> str:
        """Under which its lines of the journal are known."""
        return f"{self.target.name}-{self.id}"

    @property
    def runs(self) -> DesiredApp | None:
        """The proven version that keeps running: the target once committed, else the last committed one."""
        return self.target if self.state is AppState.COMMITTED else self.committed

    @property
    def back(self) -> DesiredApp | None:
        """The version to which a failure would lead now."""
        return self.previous if self.settled else self.committed

    @property
    def kept(self) -> list[DesiredApp]:
        """The versions whose files must stay: what may run, and what is on its way."""
        target = () if self.state in (AppState.ROLLED_BACK, AppState.REMOVED) else (self.target,)
        return [app for app in (*target, self.committed, self.previous) if app is not None]

    @property
    def started(self) -> tuple[int, ...]:
        """The versions that ran here and may run again, the target from its second try on.

        Also where no version was proven: this record may be new because the one before it was damaged.
        """
        proven = [app.version for app in (self.committed, self.previous) if app is not None]
        if self.settled and proven:
            return tuple(proven)
        # Wanted again after another version, the one before begins anew, as any version does.
        others = [version for version in proven if version != self.target.version]
        ran = self.ran or self.tries > 1 or not proven
        return (*others, self.target.version) if ran else tuple(others)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do for the target: it is proven or given up."""
        return self.state in (AppState.COMMITTED, AppState.ROLLED_BACK, AppState.REMOVED)

    @property
    def believed(self) -> bool:
        """Whether this very document of the target was found to be signed: without that nothing of it is fetched."""
        return self.state in (AppState.FETCHED, AppState.VERIFIED, AppState.PROVISIONAL)

    @property
    def exhausted(self) -> bool:
        """Whether the target was started as often as it may be before it is given up."""
        return self.tries >= MAX_TRIES

    @property
    def failing(self) -> bool:
        """Whether the proven version fell so often that the one before it is to take over."""
        return self.previous is not None and (self.falls >= MAX_FALLS or self.breaches >= MAX_BREACHES)

    def refusal(self, version: int) -> Refusal | None:
        """Why this version was given up here; None where it was not."""
        return next((refusal for refusal in self.refused if refusal.version == version), None)


# ---------------------------------------------------------------- what the cloud wants


def retarget(record: AppRecord | None, target: DesiredApp, attempt: int = 0, *, new_id: str = "") -> AppRecord:
    """The record once the cloud wants `target`; the same record where that changes nothing.

    `attempt`: how often a person asked to try again what was given up. A refused version is tried only where that is
    higher than the record's. `new_id` is the id of a record that has to be made.
    """
    if record is None:
        return _line(AppRecord(target=target, attempt=attempt, id=new_id), What.MOVED, to=AppState.PENDING)
    refusal = record.refusal(target.version)
    if attempt > record.attempt:
        record = _with(record, attempt=attempt)
        if refusal is not None:
            record = _with(record, refused=[each for each in record.refused if each != refusal])
            record = _line(record, What.RETRY, target.version, reason=refusal.reason)
            return _line(_fresh(record, target), What.MOVED, origin=record.state, to=AppState.PENDING)
    if record.target == target and record.state is not AppState.REMOVED:
        return record
    origin = record.state
    if record.runs == target:
        # Back to what was proven here and runs already: nothing to try.
        record = _with(_fresh(record, target), state=AppState.COMMITTED)
        return _line(record, What.MOVED, origin=origin, to=AppState.COMMITTED, reason="it runs already")
    if refusal is not None:
        known = record.target.version == target.version and origin is AppState.ROLLED_BACK
        record = _with(_fresh(record, target), state=AppState.ROLLED_BACK, reason=refusal.reason)
        return record if known else _line(record, What.REFUSED, target.version, reason=refusal.reason)
    return _line(_fresh(record, target), What.MOVED, origin=origin, to=AppState.PENDING)


def _fresh(record: AppRecord, target: DesiredApp) -> AppRecord:
    """A new target, on top of what is proven."""
    return _with(
        record, target=target, state=AppState.PENDING, reason="", committed=record.runs, tries=0, ran=False,
        held_bytes=None,
    )  # fmt: skip


# ---------------------------------------------------------------- the target's way


def move(record: AppRecord, state: AppState, reason: str = "", evidence: dict[str, Any] | None = None) -> AppRecord:
    """The record in its next state. Raises ValueError where `schema.device.TRANSITIONS` forbids it.

    A committed version is rolled back by `fell_back`, which needs one to go back to.
    """
    origin = record.state
    if state not in TRANSITIONS[origin]:
        raise ValueError(f"{record.target.name}: {origin} never becomes {state}")
    if origin is AppState.COMMITTED and state is AppState.ROLLED_BACK:
        return fell_back(record, reason, evidence)
    update: dict[str, Any] = {"state": state, "reason": reason}
    if state is AppState.COMMITTED:
        old = record.committed
        update |= {"committed": record.target, "finished": False, "falls": 0, "breaches": 0, "tries": 0}
        if old is not None and old.version != record.target.version:
            update |= {"previous": old, "previous_finished": record.finished}
    elif state is AppState.REMOVED:
        update |= {"committed": None, "previous": None, "finished": False, "previous_finished": False}
    record = _line(_with(record, **update), What.MOVED, origin=origin, to=state, reason=reason, evidence=evidence)
    return _refuse(record, record.target.version, reason) if state is AppState.ROLLED_BACK else record


def begun(record: AppRecord, held_bytes: int) -> AppRecord:
    """The target is about to be started for the first time; its app has written so much before."""
    return _with(record, held_bytes=held_bytes)


def tried(record: AppRecord) -> AppRecord:
    """The record with one more start counted; save it before starting."""
    return _with(record, tries=record.tries + 1)


def untried(record: AppRecord) -> AppRecord:
    """The last start counted was broken off by ourselves, or by the device: it says nothing of the version."""
    return _with(record, tries=max(0, record.tries - 1), ran=True)


# ---------------------------------------------------------------- the proven version


def launched(record: AppRecord) -> AppRecord:
    """The proven version is about to be started: a fall, until `steady` or `landed` say otherwise. Save it first.

    Where there is nothing to go back to nothing is counted: it is started for ever.
    """
    return record if record.previous is None else _with(record, falls=record.falls + 1)


def steady(record: AppRecord) -> AppRecord:
    """It has run for STEADY_S."""
    return _with(record, falls=0) if record.falls else record


def landed(record: AppRecord) -> AppRecord:
    """It was stopped by ourselves, or by the device, before it was steady: no fall."""
    return _with(record, falls=record.falls - 1) if record.falls else record


def breached(record: AppRecord, lasted_s: float) -> AppRecord:
    """It hung or outgrew its memory after `lasted_s` of running."""
    if record.previous is None:
        return record
    return _with(record, breaches=1 if lasted_s >= CALM_S else record.breaches + 1)


def fell_back(record: AppRecord, reason: str, evidence: dict[str, Any] | None = None) -> AppRecord:
    """The proven version is given up for the one before it. Raises ValueError where there is none.

    Where another version is on its way, that goes on; a target that was committed is rolled back.
    """
    old, new = record.runs, record.previous
    if old is None or new is None:
        raise ValueError(f"{record.target.name}: nothing to go back to")
    update: dict[str, Any] = {
        "committed": new, "previous": None, "finished": record.previous_finished, "previous_finished": False,
        "falls": 0, "breaches": 0,
    }  # fmt: skip
    if record.state is AppState.COMMITTED:
        update |= {"state": AppState.ROLLED_BACK, "reason": reason}
    record = _line(
        _with(record, **update), What.MOVED, old.version,
        origin=AppState.COMMITTED, to=AppState.ROLLED_BACK, reason=reason, evidence=evidence,
    )  # fmt: skip
    return _refuse(record, old.version, reason)


def finished(record: AppRecord) -> AppRecord:
    """The record once the source of the proven version came to its end: nothing left to run until another is wanted."""
    return _with(record, finished=True)


# ---------------------------------------------------------------- words and the journal


def noted(record: AppRecord, reason: str) -> AppRecord:
    """The record with what holds it up, for people to read; its state stays."""
    return _with(record, reason=reason)


def wrote(
    record: AppRecord, what: What, version: int, reason: str = "", evidence: dict[str, Any] | None = None
) -> AppRecord:
    """The record with a line of the journal that changes nothing in it."""
    return _line(record, what, version, reason=reason, evidence=evidence)


def worth_telling(streak: int) -> bool:
    """Whether this end in a row is told in the journal: the first few, then ever more rarely."""
    return 0 < streak <= 5 or streak.bit_count() == 1


def stamped(record: AppRecord, now_s: float) -> AppRecord:
    """The record, its new lines told at `now_s` (Unix time)."""
    if all(entry.time_s for entry in record.journal):
        return record
    lines = [entry if entry.time_s else entry.model_copy(update={"time_s": now_s}) for entry in record.journal]
    return _with(record, journal=lines)


def told(record: AppRecord, serial: int) -> AppRecord:
    """The record once the outbox has the lines up to `serial`."""
    return _with(record, journal=[entry for entry in record.journal if entry.serial > serial])


def _refuse(record: AppRecord, version: int, reason: str) -> AppRecord:
    """Give a version up for good; not the one that runs, of which this was another description."""
    record = _line(record, What.REFUSED, version, reason=reason)
    if record.runs is not None and record.runs.version == version:
        return record
    refused = [each for each in record.refused if each.version != version] + [Refusal(version=version, reason=reason)]
    return _with(record, refused=sorted(refused, key=lambda each: each.version)[-MOST_REFUSED:])


def _line(
    record: AppRecord,
    what: What,
    version: int | None = None,
    **told: Any,
) -> AppRecord:
    serial = record.serial + 1
    told["evidence"] = told.get("evidence") or {}
    entry = Entry(
        serial=serial,
        what=what,
        version=record.target.version if version is None else version,
        attempt=record.attempt,
        **told,
    )
    return _with(record, serial=serial, journal=[*record.journal, entry][-MOST_UNTOLD:])


def _with(record: AppRecord, **update: Any) -> AppRecord:
    return record.model_copy(update=update)
