"""One app on one device: takes what the cloud wants from `pending` to `committed`, keeps the proven version running.

Level by level: it looks at the record and does what is missing next, so it can be interrupted and restarted anywhere.
A new version is fetched, checked and loaded while the old one still runs; only then the old one stops. A version that
fails goes back to the last committed one. That one is restarted with growing pauses: for ever, or until it fell so
often that the one before it, where there is one, takes over. One keeper's trouble must never reach another's app.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from marram.edge import blame, deploy
from marram.edge.bringing import Bringing
from marram.edge.deploy import AppRecord
from marram.edge.ground import Ground
from marram.edge.supervisor import Cause, Exit, Life, WorkerSpec
from marram.edge.tasks import cancelled, finished, first
from marram.edge.trial import lasts, until_room, watch
from marram.schema.device import AppState, Chosen, DesiredApp, ReportedApp
from marram.schema.errors import MarramError, Permanent, Retryable, Untrusted
from marram.schema.health import Health
from marram.schema.journal import Entry, What
from marram.schema.units import format_duration

log = logging.getLogger("marram.edge")

# Pauses between restarts, doubled each time: of a version on trial, and of a proven one (for ever).
TRIAL_PAUSE_S = 0.5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# What is not believed is asked for again: each time it may be fetched in full.
LONGEST_UNTRUSTED_S = 600.0


class Keeper:
    """See the module's words. `want` says what, `run` does it until cancelled or the app is gone."""

    def __init__(self, ground: Ground, record: AppRecord, *, new: bool = False) -> None:
        """`new`: the record is not on disk yet."""
        self._ground = ground
        self._bringing = Bringing(ground, record.target.name, self._waiting)
        self.record = record
        self.removed = False
        self.restarts = 0
        self._worker: Life | None = None
        self._steady: asyncio.Task[None] | None = None
        self._steady_app: DesiredApp | None = None
        self._wake = asyncio.Event()
        self._unsaved = new
        # Which engines for its models do not load here, and what is held up although it runs: for people.
        self._passed_over = ""
        self._waits = ""
        # Its worker on its way out, to come back with new secrets.
        self._renewing: asyncio.Task[None] | None = None
        # Ends in a row of the proven version without a minute of running between them.
        self._streak = 0
        self._chosen: list[Chosen] = []
        # What of the device ended which version, as the journal was told.
        self._ailment = (0, "")

    @property
    def name(self) -> str:
        return self.record.target.name

    @property
    def resident_bytes(self) -> int:
        """Memory of its worker."""
        return self._worker.resident_bytes if self._worker else 0

    @property
    def running(self) -> bool:
        """Whether its worker is there."""
        return self._worker is not None and not self._worker.exited.done()

    def want(self, target: DesiredApp | None, attempt: int = 0) -> None:
        """What the cloud wants of this app (None: nothing any more), and which attempt at it. Takes effect soon."""
        if target is None:
            if not self.removed:
                self.removed = True
                self._wake.set()
            return
        record = deploy.retarget(self.record, target, attempt)
        if record is not self.record or self.removed:
            self.removed, self._waits = False, ""
            self._keep(record)
            log.info("%s: version %d is wanted", self.name, target.version)
            self._wake.set()

    @property
    def worker(self) -> Life | None:
        """Its worker, as long as there is one."""
        return self._worker

    def lines(self) -> list[Entry]:
        """The journal's lines that the outbox may not have yet; none before they are on disk here."""
        return [] if self._unsaved else self.record.journal

    def told(self, serial: int) -> None:
        """The outbox has the lines up to `serial`. On disk with the next change: until then they are offered again."""
        self.record = deploy.told(self.record, serial)

    def secrets_changed(self, names: set[str]) -> None:
        """These are another, or gone: what was started with one of them is started anew."""
        if not self.record.settled and not names.isdisjoint(self.record.target.secrets):
            self._wake.set()
        elif self._worker is not None and not names.isdisjoint(self._worker.spec.secrets):
            log.info("%s: starts anew: its secrets changed", self.name)
            self._renewing = asyncio.create_task(self._worker.stop())

    async def measure(self, model: str | None) -> None:
        """Measure the variants of what runs anew (`model`: of one), since a person asked. If another one is the best
        now, that one runs soon. Raises MarramError.
        """
        app = self.record.runs
        if app is None or self.removed or model not in {None, *(each.name for each in app.models)}:
            return
        picked = await self._bringing.measure(app, model)
        before = [(each.model, each.variant) for each in self._chosen]
        self._chosen = picked
        if [(each.model, each.variant) for each in self._chosen] != before and self._worker is not None:
            log.info("%s: starts anew: another variant is the best now", self.name)
            self._renewing = asyncio.create_task(self._worker.stop())
        self._ground.changed()

    def reported(self) -> ReportedApp:
        """For the report."""
        record = self.record
        return ReportedApp(
            name=self.name,
            version=record.target.version,
            state=AppState.REMOVED if self.removed and not self._waits else record.state,
            reason=self._waits or record.reason,
            running=self._worker.spec.version if self._worker is not None and self.running else None,
            back=record.back.version if record.back else None,
            refused=[refusal.version for refusal in record.refused],
            attempt=record.attempt,
            chosen=self._chosen,
            stats=dict(self._worker.stats) if self._worker else {},
            restarts=self.restarts,
        )

    async def run(self) -> None:
        """Reconcile until cancelled (then the worker is stopped clean) or until the app is removed."""
        try:
            while True:
                self._wake.clear()
                work = asyncio.create_task(self._advance(), name=f"deploy {self.name}")
                woken = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait([work, woken], return_when=asyncio.FIRST_COMPLETED)
                    if work.done():
                        work.result()
                        if self.removed:
                            return
                        await woken
                finally:
                    woken.cancel()
                    await cancelled(work)
        finally:
            await self._stop_steady()

    async def _advance(self) -> None:
        """Do what is missing, in order; safe to cancel anywhere."""
        if self._unsaved:
            self._keep(self.record)
        if self.removed:
            await self._remove()
            return
        # On trial when the agent went away: the old version was stopped already, so go on with the new one.
        on_trial = self.record.state is AppState.PROVISIONAL
        if not on_trial:
            self._start_steady()
        if self.record.settled:
            return
        if not on_trial:
            await self._ground.holding.released(self._held)
        try:
            await self._ground.engines.examine(())  # one that was broken may have been mended
            spec = await self._prepared(self.record.target, proven=False)
            if self.record.state is AppState.PENDING:
                self._move(AppState.FETCHED)
            if not on_trial:
                await self._ground.holding.released(self._held)
            await self._try(spec)
        except Permanent as error:
            self._roll_back(str(error))

    async def _remove(self) -> None:
        if self._ground.holding.words():
            self._start_steady()
            await self._ground.holding.released(self._held)
        await self._stop_steady()
        try:
            await asyncio.to_thread(self._ground.forget, self.name)
        except MarramError as error:
            log.warning("%s: deployed again it may go on where it was: %s", self.name, error)
        if self.record.state is not AppState.REMOVED:
            self._move(AppState.REMOVED)
        log.info("%s: removed", self.name)

    def _held(self, words: str) -> None:
        """A person at the device holds it, as `words` say; "": no more. What runs runs on."""
        if self.removed and words != self._waits:
            self._waits = words
            self._ground.changed()
        self._waiting(words)

    # ------------------------------------------------------------ bringing it here

    async def _prepared(self, app: DesiredApp, *, proven: bool) -> WorkerSpec:
        """Fetch, check and install what `app` needs, however long the link makes it wait. Raises Permanent, Invalid."""
        pause_s, told = FIRST_PAUSE_S, ""
        while True:
            try:
                brought = await self._bringing.bring(app, proven=proven, believed=proven or self.record.believed)
                break
            except Retryable as error:
                self._waiting(str(error))
                if proven and str(error) != told:
                    # It ran before, and what it waits for now (a secret, a file) is told beside its state.
                    self._noted(told := str(error))
                longest_s = LONGEST_PAUSE_S / 6
            except Untrusted as error:
                # No fault of this version: somebody on the way may want us to give it up.
                self._waiting(str(error))
                longest_s = LONGEST_UNTRUSTED_S
            if not proven:
                self._start_steady()  # whatever state it was in, something proven runs meanwhile
            await self._ground.sweep()  # it may be room that is missing
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        self._passed_over, self._chosen = brought.passed_over, brought.chosen
        if told or not proven:
            self._waiting("")
        if told:
            self._noted("")
        return await self._bringing.spec(brought, self.record, proven=proven)

    def _waiting(self, reason: str) -> None:
        if self.record.settled or reason == self.record.reason:
            return
        if reason and Untrusted(reason).threat is not None:
            self._keep(deploy.wrote(self.record, What.UNTRUSTED, self.record.target.version, reason))
        self.record = deploy.noted(self.record, reason)
        if reason:
            log.info("%s: waits: %s", self.name, reason)
        self._ground.changed()

    # ------------------------------------------------------------ a version on trial

    async def _try(self, spec: WorkerSpec) -> None:
        """Start the target until it is proven; give it up when it fails for good or too often."""
        pause_s = ailing_s = TRIAL_PAUSE_S
        reason = self.record.reason
        if self.record.held_bytes is None:
            self.record = deploy.begun(
                self.record, await asyncio.to_thread(blame.written_bytes, spec.outbox, spec.work)
            )
        while True:
            if self.record.exhausted:
                self._roll_back(
                    f"it failed {self.record.tries} times in a row; last: {reason or 'the device went down'}"
                )
                return
            self._keep(deploy.tried(self.record))
            life = replace(spec, started=self.record.started, held_bytes=self.record.held_bytes)
            end = await self._one_life(life)
            if end is None:
                return
            reason = end.reason
            if end.devices:
                # Where the disk had room at its start, it may have been the version all the same: not for ever.
                if not end.filled:
                    self._keep(deploy.untried(self.record))
                self._ails(self.record.target.version, reason)
                self._start_steady()  # what is proven runs meanwhile, if it can
                await asyncio.sleep(ailing_s)
                await until_room(spec)
                ailing_s = min(2 * ailing_s, LONGEST_PAUSE_S)
                continue
            log.warning("%s: version %d failed its trial: %s", self.name, self.record.target.version, reason)
            if end.engine and await self._engines_fail(self.record.target, proven=False):
                self._waiting(self._passed_over)
                spec = await self._prepared(self.record.target, proven=False)
                continue
            if not end.again:
                self._roll_back(reason, end.evidence)
                return
            self._waiting(reason)
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _one_life(self, spec: WorkerSpec) -> Exit | None:
        """Start the target and take it as far as it comes: None once it is committed, else why it ended."""
        try:
            worker = await self._started(spec)
        except Retryable as error:
            return Exit(str(error), Cause.START)
        end: Exit | None = Exit("cancelled", Cause.STOPPED)
        try:
            end = await self._prove(worker, spec.health)
        finally:
            if end is not None:
                await finished(worker.stop())
                if self._worker is worker:
                    self._worker = None
                if end.cause is Cause.STOPPED and self.record.target.version == spec.version and self.record.tries:
                    self._keep(deploy.untried(self.record))
        return end

    async def _prove(self, worker: Life, health: Health) -> Exit | None:
        if not await first(worker.verified, worker.exited):
            return worker.exited.result()
        if self.record.state is AppState.FETCHED:
            self._move(AppState.VERIFIED)
        await self._stop_steady()
        self._worker = worker
        if self.record.state is AppState.VERIFIED:
            self._move(AppState.PROVISIONAL)
        worker.go()
        verdict = await watch(worker, health)
        if isinstance(verdict, Exit):
            return verdict
        version = self.record.target.version
        self._keep(deploy.wrote(self.record, What.GATE, version, verdict.reason, verdict.evidence))
        if not verdict.passed:
            return Exit(verdict.reason, Cause.GATE, again=False, evidence=verdict.evidence)
        self._move(AppState.COMMITTED, self._passed_over or verdict.reason, verdict.evidence)
        self._start_steady(worker)
        return None

    def _roll_back(self, reason: str, evidence: dict[str, Any] | None = None) -> None:
        self._move(AppState.ROLLED_BACK, reason, evidence)
        self._start_steady()

    # ------------------------------------------------------------ the proven version

    def _start_steady(self, worker: Life | None = None) -> None:
        """Keep the proven version running, if there is one and it is not running already."""
        app = self.record.runs
        if app is None or self.record.finished:
            return
        if self._steady is not None and not self._steady.done() and self._steady_app == app:
            return
        assert self._steady is None or self._steady.done(), "two versions of one app never run at once"
        self._steady_app = app
        self._steady = asyncio.create_task(self._keep_running(app, worker), name=f"keep {app.name}")

    async def _stop_steady(self) -> None:
        if self._steady is not None:
            try:
                await cancelled(self._steady)
            finally:
                self._steady = self._steady_app = self._worker = None

    async def _keep_running(self, app: DesiredApp, worker: Life | None) -> None:
        """Run `app` for ever: restart with back-off, until cancelled, given up, or its source comes to its end."""
        pause_s, reason = FIRST_PAUSE_S, ""
        counted = False
        try:
            while True:
                if worker is None:
                    if self.record.failing:
                        self._fall_back(app, reason or "the device went down")
                        return
                    worker = await self._again(app)
                    counted = worker is not None and self.record.previous is not None
                if worker is not None:
                    self._worker = worker
                    end = await self._life_of(worker)
                    if end.finished:
                        log.info("%s: finished: %s", self.name, end.reason)
                        record = deploy.finished(self.record)
                        self._keep(deploy.noted(record, end.reason) if app == record.target else record)
                        self._ground.changed()
                        return
                    if end.cause is Cause.STOPPED:
                        if counted:
                            self._keep(deploy.landed(self.record))
                        worker, counted = None, False
                        continue
                    lasted_s, reason, worker, counted = time.monotonic() - worker.started_s, end.reason, None, False
                    if lasted_s > deploy.STEADY_S:
                        pause_s, self._streak, self._ailment = FIRST_PAUSE_S, 0, (0, "")
                    if end.devices:
                        self._keep(deploy.landed(self.record))
                        self._ails(app.version, reason)
                    else:
                        self._fell(app, end, lasted_s, pause_s)
                    if self.record.failing:
                        continue
                    if end.engine and await self._engines_fail(app, proven=True):
                        self._noted(self._passed_over)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            if worker is not None:
                await finished(worker.stop())
                if counted and time.monotonic() - worker.started_s < deploy.STEADY_S:
                    self._keep(deploy.landed(self.record))

    async def _life_of(self, worker: Life) -> Exit:
        """Why it ended; on the way it becomes steady."""
        if self.record.falls and await lasts(worker, deploy.STEADY_S):
            self._keep(deploy.steady(self.record))
        return await asyncio.shield(worker.exited)

    def _fall_back(self, app: DesiredApp, reason: str) -> None:
        if self.record.falls >= deploy.MAX_FALLS:
            reason = f"it fell {self.record.falls} times in a row; last: {reason}"
        evidence = {"falls": self.record.falls, "breaches": self.record.breaches}
        self._keep(deploy.fell_back(self.record, reason, evidence))
        log.warning("%s: version %d is given up: %s", self.name, app.version, reason)
        self._ground.changed()
        self._wake.set()

    async def _again(self, app: DesiredApp) -> Life | None:
        try:
            spec = await self._prepared(app, proven=True)
            record = deploy.launched(self.record)
            if record is not self.record:
                self._keep(record)
            try:
                worker = await self._started(spec)
            except Retryable as error:
                self._keep(deploy.landed(self.record))
                self._ails(app.version, str(error))
                raise
        except MarramError as error:
            # It ran before; whatever is wrong now may mend (a damaged file that the cloud has to send again).
            self.restarts += 1
            log.warning("%s: cannot be started: %s", self.name, error)
            self._noted(str(error))
            await self._ground.engines.examine(())
            return None
        if deploy.worth_telling(self._streak):
            self._keep(deploy.wrote(self.record, What.RESTART, app.version, evidence={"in_a_row": self._streak}))
        return worker

    async def _engines_fail(self, app: DesiredApp, *, proven: bool) -> bool:
        """Whether an engine for one of the app's models turns out not to load: another variant may do."""
        changed, self._passed_over = await self._bringing.examine(app, proven=proven)
        return changed and bool(self._passed_over)

    def _fell(self, app: DesiredApp, end: Exit, lasted_s: float, pause_s: float) -> None:
        self.restarts += 1
        self._streak += 1
        log.warning("%s: stopped: %s; started again in %s", self.name, end.reason, format_duration(pause_s))
        record = self.record
        if end.cause in (Cause.HANG, Cause.MEMORY):
            record = deploy.breached(record, lasted_s)
        if deploy.worth_telling(self._streak):
            told = {"in_a_row": self._streak, "lasted_s": round(lasted_s, 3), "cause": end.cause.value}
            record = deploy.wrote(record, What.CRASH, app.version, end.reason, told)
        if record is not self.record:
            self._keep(record)
        self._noted(end.reason)

    def _ails(self, version: int, reason: str) -> None:
        """The device is at fault, not the version: nothing is counted, and the journal is told once."""
        log.warning("%s: version %d waits for the device: %s", self.name, version, reason)
        if self._ailment != (version, reason):
            self._ailment = (version, reason)
            self._keep(deploy.wrote(self.record, What.AILING, version, reason))
        self._waiting(reason)
        self._noted(reason)

    def _noted(self, reason: str) -> None:
        if self.record.state is AppState.COMMITTED:
            self.record = deploy.noted(self.record, reason)
        self._ground.changed()

    # ------------------------------------------------------------ small things

    async def _started(self, spec: WorkerSpec) -> Life:
        worker = await self._ground.start(spec, self._ground.bus, self._ground.patience)
        worker.link(self._ground.bus.connected)
        log.info("%s: version %d started (process %d)", spec.app, spec.version, worker.pid)
        return worker

    def _move(self, state: AppState, reason: str = "", evidence: dict[str, Any] | None = None) -> None:
        self._keep(deploy.move(self.record, state, reason, evidence))
        log.info("%s: version %d %s%s", self.name, self.record.target.version, state, f": {reason}" if reason else "")
        self._ground.changed()

    def _keep(self, record: AppRecord) -> None:
        """Remember on disk. A disk that refuses stops no app: the record is written at the next occasion."""
        self.record = record = deploy.stamped(record, time.time())
        try:
            self._ground.folder.save_record(record)
            self._unsaved = False
            self._ground.lines()
        except MarramError as error:
            self._unsaved = True
            log.warning("%s: cannot be remembered: %s", self.name, error)
