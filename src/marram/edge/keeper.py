"""One app on one device: takes what the cloud wants from `pending` to `committed`, keeps the proven version running.

Level by level: it looks at the record and does what is missing next, so it can be interrupted and restarted anywhere.
A new version is fetched, checked and loaded while the old one still runs; only then the old one stops. A version that
fails goes back to the last committed one; that one is restarted for ever, with growing pauses, because there is nothing
better to run. One keeper's trouble must never reach another's app.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from marram.edge import deploy
from marram.edge.agent_end import AgentEnd
from marram.edge.bundles import check_size
from marram.edge.deploy import AppRecord
from marram.edge.ground import Ground
from marram.edge.relay import Relay
from marram.edge.sandbox import plan
from marram.edge.supervisor import Exit, Worker, WorkerSpec
from marram.edge.tasks import cancelled, finished
from marram.edge.variants import card_alone, engines, needed
from marram.schema.device import AppState, DesiredApp, ReportedApp
from marram.schema.errors import MarramError, Permanent, Retryable
from marram.schema.model import Engine, Manifest
from marram.schema.units import format_duration, format_size, parse_size

log = logging.getLogger("marram.edge")

LARGEST_BUNDLE_BYTES = 4_000_000_000
# Pauses between restarts, doubled each time: of a version on trial, and of a proven one (for ever).
TRIAL_PAUSE_S = 0.5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Keeper:
    """See the module's words. `want` says what, `run` does it until cancelled or the app is gone."""

    def __init__(self, ground: Ground, record: AppRecord) -> None:
        self._ground = ground
        self.record = record
        self.removed = False
        self.restarts = 0
        self._worker: Worker | None = None
        self._steady: asyncio.Task[None] | None = None
        self._steady_app: DesiredApp | None = None
        self._wake = asyncio.Event()
        self._unsaved = False
        # Which engines for its models do not load here, for people.
        self._passed_over = ""

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

    def want(self, target: DesiredApp | None) -> None:
        """What the cloud wants of this app; None: nothing any more. Takes effect soon."""
        if target is None:
            if not self.removed:
                self.removed = True
                self._wake.set()
            return
        record = deploy.retarget(self.record, target)
        if record is not self.record or self.removed:
            self.removed = False
            self._keep(record)
            log.info("%s: version %d is wanted", self.name, target.version)
            self._wake.set()

    def link(self, up: bool) -> None:
        """The link came or went: the worker need not find out by itself."""
        if self._worker is not None:
            self._worker.relay.link(up)

    def reported(self) -> ReportedApp:
        """For the report."""
        return ReportedApp(
            name=self.name,
            version=self.record.target.version,
            state=AppState.REMOVED if self.removed else self.record.state,
            reason=self.record.reason,
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
        if self.removed:
            await self._stop_steady()
            try:
                await asyncio.to_thread(self._ground.forget, self.name)
            except MarramError as error:
                log.warning("%s: deployed again it may go on where it was: %s", self.name, error)
            self._ground.folder.remove_record(self.name)
            log.info("%s: removed", self.name)
            self._ground.changed()
            return
        if self._unsaved:
            self._keep(self.record)
        # On trial when the agent went away: the old version was stopped already, so go on with the new one.
        if self.record.state is not AppState.PROVISIONAL:
            self._start_steady()
        if self.record.settled:
            return
        try:
            await self._ground.engines.examine(())  # one that was broken may have been mended
            spec = await self._prepared(self.record.target, proven=False)
            if self.record.state is AppState.PENDING:
                self._move(AppState.FETCHED)
            await self._try(spec)
        except Permanent as error:
            self._roll_back(str(error))

    # ------------------------------------------------------------ bringing it here

    async def _prepared(self, app: DesiredApp, *, proven: bool) -> WorkerSpec:
        """Fetch, check and install what `app` needs, however long the link makes it wait. Raises Permanent, Invalid."""
        bundles, broken, pause_s = self._ground.bundles, self._ground.engines.broken, FIRST_PAUSE_S
        while True:
            async with self._ground.files():
                await self._bring([app.files, *map(card_alone, app.models)])
                try:
                    models = [await asyncio.to_thread(needed, m, bundles, broken, proven=proven) for m in app.models]
                    await self._bring(models)
                    folders = [await asyncio.to_thread(bundles.install, m) for m in (app.files, *models)]
                    self._passed_over = self._ground.engines.words(await self._suspects(app, proven=proven))
                    self._waiting("")
                    break
                except Retryable as error:
                    self._waiting(str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        places = {f"{m.name}@{m.version}": place for m, place in zip(app.models, folders[1:], strict=True)}
        folder = self._ground.folder
        return WorkerSpec(
            device=self._ground.device,
            app=app.name,
            version=app.version,
            folder=folders[0],
            models=places,
            cloud=[model.model_dump(mode="json") for model in app.cloud],
            outbox=folder.outbox,
            work=folder.work(app.name),
            log=folder.log_file(app.name),
            memory_bytes=_memory_limit(folders[0] / "app.yaml"),
            verify=not proven,
            started=(app.version,) if proven else (),
            plan=plan(folder.path, folders, [folder.work(app.name), folder.outbox.parent]),
        )

    async def _bring(self, manifests: list[Manifest]) -> None:
        """Fetch what is not here of them. Raises Permanent, Invalid."""
        for manifest in manifests:
            check_size(manifest, LARGEST_BUNDLE_BYTES)
        missing = await asyncio.to_thread(self._ground.bundles.missing, manifests)
        if missing:
            started_s = time.monotonic()
            await self._ground.fetcher.fetch(missing, self._waiting)
            size, took = sum(f.size_bytes for f in missing), time.monotonic() - started_s
            log.info("%s: fetched %s in %s", self.name, format_size(size), format_duration(took))

    def _waiting(self, reason: str) -> None:
        if not self.record.settled and reason != self.record.reason:
            self.record = deploy.noted(self.record, reason)
            if reason:
                log.info("%s: waits: %s", self.name, reason)
            self._ground.changed()

    # ------------------------------------------------------------ a version on trial

    async def _try(self, spec: WorkerSpec) -> None:
        """Start the target until it is proven; give it up when it fails for good or too often."""
        pause_s, reason = TRIAL_PAUSE_S, self.record.reason
        while True:
            if self.record.exhausted:
                self._roll_back(
                    f"it failed {self.record.tries} times in a row; last: {reason or 'the device went down'}"
                )
                return
            self._keep(deploy.tried(self.record))
            end = await self._one_life(replace(spec, started=self.record.started))
            if end is None:
                return
            reason = end.reason
            log.warning("%s: version %d failed its trial: %s", self.name, self.record.target.version, reason)
            if end.engine and await self._engines_fail(self.record.target, proven=False):
                self._waiting(self._passed_over)
                spec = await self._prepared(self.record.target, proven=False)
                continue
            if not end.again:
                self._roll_back(reason)
                return
            self._waiting(reason)
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _one_life(self, spec: WorkerSpec) -> Exit | None:
        """Start the target and take it as far as it comes: None once it is committed, else why it ended."""
        try:
            worker = await self._started(spec)
        except Retryable as error:
            return Exit(str(error))
        end: Exit | None = Exit("cancelled")
        try:
            end = await self._prove(worker)
        finally:
            if end is not None:
                await finished(worker.stop())
                if self._worker is worker:
                    self._worker = None
        return end

    async def _prove(self, worker: Worker) -> Exit | None:
        if not await _first(worker.verified, worker):
            return worker.exited.result()
        if self.record.state is AppState.FETCHED:
            self._move(AppState.VERIFIED)
        await self._stop_steady()
        self._worker = worker
        if self.record.state is AppState.VERIFIED:
            self._move(AppState.PROVISIONAL)
        worker.go()
        if not await _first(worker.proven, worker):
            return worker.exited.result()
        self._move(AppState.COMMITTED, self._passed_over)
        self._start_steady(worker)
        return None

    def _roll_back(self, reason: str) -> None:
        self._move(AppState.ROLLED_BACK, reason)
        self._start_steady()

    # ------------------------------------------------------------ the proven version

    def _start_steady(self, worker: Worker | None = None) -> None:
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

    async def _keep_running(self, app: DesiredApp, worker: Worker | None) -> None:
        """Run `app` for ever: restart with back-off, until cancelled or its source comes to its end."""
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                if worker is None:
                    worker = await self._again(app)
                if worker is not None:
                    self._worker = worker
                    end = await asyncio.shield(worker.exited)
                    if end.finished:
                        log.info("%s: finished: %s", self.name, end.reason)
                        record = deploy.finished(self.record)
                        self._keep(deploy.noted(record, end.reason) if app == record.target else record)
                        self._ground.changed()
                        return
                    if time.monotonic() - worker.started_s > LONGEST_PAUSE_S:
                        pause_s = FIRST_PAUSE_S
                    self._fell(end.reason, pause_s)
                    worker = None
                    if end.engine and await self._engines_fail(app, proven=True):
                        self._noted(self._passed_over)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            if worker is not None:
                await finished(worker.stop())

    async def _again(self, app: DesiredApp) -> Worker | None:
        try:
            return await self._started(await self._prepared(app, proven=True))
        except MarramError as error:
            # It ran before; whatever is wrong now may mend (a damaged file that the cloud has to send again).
            self._fell(str(error), 0)
            await self._ground.engines.examine(())
            return None

    async def _engines_fail(self, app: DesiredApp, *, proven: bool) -> bool:
        """Whether an engine for one of the app's models turns out not to load: another variant may do."""
        suspects = await self._suspects(app, proven=proven)
        changed = await self._ground.engines.examine(suspects)
        self._passed_over = self._ground.engines.words(suspects)
        return changed and bool(self._passed_over)

    async def _suspects(self, app: DesiredApp, *, proven: bool) -> set[Engine]:
        found, bundles, broken = set[Engine](), self._ground.bundles, self._ground.engines.broken
        for model in app.models:
            found |= await asyncio.to_thread(engines, model, bundles, broken, proven=proven)
        return found

    def _fell(self, reason: str, pause_s: float) -> None:
        self.restarts += 1
        log.warning("%s: stopped: %s; started again in %s", self.name, reason, format_duration(pause_s))
        self._noted(reason)

    def _noted(self, reason: str) -> None:
        if self.record.state is AppState.COMMITTED:
            self.record = deploy.noted(self.record, reason)
        self._ground.changed()

    # ------------------------------------------------------------ small things

    async def _started(self, spec: WorkerSpec) -> Worker:
        allowed = {(model["name"], model["version"]) for model in spec.cloud}

        def relay(channel: AgentEnd) -> Relay:
            return Relay(self._ground.bus, channel, allowed)

        worker = await Worker.start(spec, relay, self._ground.patience)
        worker.relay.link(self._ground.bus.connected)
        log.info("%s: version %d started (process %d)", spec.app, spec.version, worker.process.pid)
        return worker

    def _move(self, state: AppState, reason: str = "") -> None:
        self._keep(deploy.move(self.record, state, reason))
        log.info("%s: version %d %s%s", self.name, self.record.target.version, state, f": {reason}" if reason else "")
        self._ground.changed()

    def _keep(self, record: AppRecord) -> None:
        """Remember on disk. A disk that refuses stops no app: the record is written at the next occasion."""
        self.record = record
        try:
            self._ground.folder.save_record(record)
            self._unsaved = False
        except MarramError as error:
            self._unsaved = True
            log.warning("%s: cannot be remembered: %s", self.name, error)


def _memory_limit(app_file: Path) -> int | None:
    """`limits.memory` of an app file, in bytes. The worker parses the file in full and says what is wrong with it."""
    try:
        return parse_size(yaml.safe_load(app_file.read_text(encoding="utf-8"))["limits"]["memory"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, RecursionError):
        return None


async def _first(event: asyncio.Event, worker: Worker) -> bool:
    """Wait for `event` or the worker's end; whether the event came."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
    ended: asyncio.Future[Any] = worker.exited
    try:
        await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return event.is_set()
