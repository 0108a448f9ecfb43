"""How often a keeper starts what does not stay, what is on disk before it does, and who ends with the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.edge.world import Cloud, Device, gone, ticking

from marram.edge import deploy
from marram.edge import keeper as module
from marram.edge.deploy import MAX_TRIES, AppRecord
from marram.edge.hold import Holding
from marram.edge.keeper import Keeper
from marram.edge.state import Folder
from marram.edge.supervisor import Exit, WorkerSpec
from marram.schema.device import AppState, DesiredApp
from marram.schema.errors import Retryable
from marram.schema.journal import What
from marram.schema.model import Manifest

APP = DesiredApp(name="gate", version=3, files=Manifest(files=[]))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "device")
    made.make()
    return made


def keeper_of(record: AppRecord, folder: Folder) -> Any:
    return Keeper(SimpleNamespace(folder=folder, changed=lambda: None, lines=lambda: None), record)  # type: ignore[arg-type]


async def test_a_proven_version_that_does_not_stay_is_started_for_ever_and_ever_more_rarely(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise asyncio.CancelledError

    async def fails(_: DesiredApp) -> None:
        return None

    keeper = keeper_of(AppRecord(target=APP, state=AppState.COMMITTED, committed=APP), folder)
    keeper._again = fails
    monkeypatch.setattr(module.asyncio, "sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await keeper._keep_running(APP, None)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0, 60.0, 60.0]


async def test_after_a_steady_run_the_pauses_begin_anew(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if not lasted_s:
            raise asyncio.CancelledError

    lasted_s = [0.1, 0.1, 0.1, deploy.STEADY_S + 1, 0.1]

    async def lives(_: DesiredApp) -> Any:
        exited = asyncio.get_running_loop().create_future()
        exited.set_result(Exit("exit status 7"))
        return SimpleNamespace(started_s=time.monotonic() - lasted_s.pop(0), exited=exited)

    keeper = keeper_of(AppRecord(target=APP, state=AppState.COMMITTED, committed=APP), folder)
    keeper._again = lives
    monkeypatch.setattr(module.asyncio, "sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await keeper._keep_running(APP, None)
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0]


async def test_an_app_that_is_removed_begins_anew_when_it_comes_back(folder: Folder) -> None:
    forgotten: list[str] = []
    keeper = keeper_of(AppRecord(target=APP, state=AppState.COMMITTED, committed=APP), folder)
    keeper._ground.forget = forgotten.append
    keeper._ground.holding = Holding(folder)
    keeper.want(None)
    await keeper._advance()
    assert forgotten == ["gate"]
    assert folder.records()["gate"].state is AppState.REMOVED


async def test_a_removal_is_done_also_where_the_outbox_cannot_forget(folder: Folder) -> None:
    def full(app: str) -> None:
        raise Retryable("the disk is full")

    keeper = keeper_of(AppRecord(target=APP, state=AppState.COMMITTED, committed=APP), folder)
    keeper._ground.forget = full
    keeper._ground.holding = Holding(folder)
    keeper.want(None)
    await keeper._advance()
    assert folder.records()["gate"].state is AppState.REMOVED


async def test_a_version_on_trial_is_counted_on_disk_before_each_start_and_given_up(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that takes the whole device down must be counted all the same."""
    pauses: list[float] = []
    counted: list[int] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert len(pauses) <= MAX_TRIES

    async def fails(_: object) -> Exit:
        counted.append(folder.records()["gate"].tries)
        return Exit("killed by SIGKILL")

    keeper = keeper_of(AppRecord(target=APP, state=AppState.FETCHED), folder)
    keeper._one_life = fails
    monkeypatch.setattr(module.asyncio, "sleep", pause)
    here = folder.path
    await keeper._try(WorkerSpec("pi-1", "gate", 3, here, {}, [], folder.outbox, here, here / "gate.log"))
    assert counted == list(range(1, MAX_TRIES + 1))
    assert pauses == [0.5 * 2**n for n in range(MAX_TRIES)]
    kept = folder.records()["gate"]
    assert kept.state is AppState.ROLLED_BACK
    assert kept.reason == f"it failed {MAX_TRIES} times in a row; last: killed by SIGKILL"


async def test_a_start_of_a_proven_version_is_counted_on_disk_before_it_begins(folder: Folder) -> None:
    """One that takes the whole device down, each time, gives way all the same."""
    before = APP.model_copy(update={"version": 2})
    keeper = keeper_of(AppRecord(target=APP, state=AppState.COMMITTED, committed=APP, previous=before), folder)
    counted: list[int] = []

    async def prepared(_: DesiredApp, *, proven: bool) -> None:
        assert proven

    async def started(_: object) -> None:
        counted.append(folder.records()["gate"].falls)

    keeper._prepared, keeper._started = prepared, started
    for _ in range(2):
        await keeper._again(APP)
    assert counted == [1, 2]


async def test_what_a_full_disk_refused_is_told_to_nobody_before_it_is_saved(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that the cloud has and the disk has not would be another line after a cut."""
    record = AppRecord(target=APP, state=AppState.COMMITTED, committed=APP, id="a")
    keeper = keeper_of(record, folder)

    def full(_: AppRecord) -> None:
        raise Retryable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "save_record", full)
        keeper._keep(deploy.wrote(record, What.RESTART, 3))
    assert keeper.lines() == []
    keeper._bringing = keeper._keep_running = None  # nothing but saving
    monkeypatch.setattr(keeper, "_start_steady", lambda: None)
    await keeper._advance()
    (line,) = keeper.lines()
    assert folder.records()["gate"].journal == [line]


async def test_even_a_frozen_worker_ends_with_its_agent(cloud: Cloud, device: Device) -> None:
    """It cannot hear that its agent is gone: only the kernel can end it."""
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    workers = device.workers()
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGSTOP)
    try:
        await device.stop(signal.SIGKILL)
        await gone(workers)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], signal.SIGKILL)
