"""The deployment machine on a real agent: what runs, what is given up, what the journal says; in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.edge.rig import BREAKS, CRASHES, FAILS, GROWS, HANGS, Rig, Script

from marram.edge import blame, hold
from marram.edge.bundles import Bundles
from marram.edge.ground import Ground
from marram.edge.journal import Journal
from marram.edge.room import Room
from marram.edge.state import Folder
from marram.edge.supervisor import Cause, Exit
from marram.lab import virtual
from marram.schema.device import AppState
from marram.schema.errors import NotReady, Retryable, Threat, Untrusted
from marram.schema.journal import Entry, What
from marram.schema.model import File, Manifest

Work = Callable[[Rig], Coroutine[Any, Any, None]]
COMMITTED, ROLLED_BACK, PENDING = AppState.COMMITTED, AppState.ROLLED_BACK, AppState.PENDING


def play(path: Path, work: Work, scripts: dict[int, Script] | None = None, health: str = "") -> Rig:
    rig = Rig(path, scripts)
    rig.health = health

    async def run() -> None:
        await rig.open()
        try:
            await work(rig)
        finally:
            for device in list(rig.agents):
                await rig.stop(device)

    virtual.run(run)
    assert not any(life.beside for life in rig.lives), "two versions of one app never run at once"
    return rig


async def with_first(rig: Rig) -> None:
    """Version 1 is committed."""
    rig.want(rig.app(1))
    await rig.start()
    await rig.until_state(COMMITTED, 1)


def running(rig: Rig, device: str = "pi-1") -> list[int]:
    return [life.spec.version for life in rig.alive[device]]


@pytest.mark.parametrize(
    ("script", "reason", "starts"),
    [
        (CRASHES, "failed 5 times in a row; last: exit status 7", 5),
        (HANGS, "hung", 1),
        (GROWS, "memory", 1),
        (FAILS, "every frame failed: division by zero", 1),
        (Script(stats={"frames": 4, "errors": 6, "last_error": "no"}), "60% of its frames failed (at most 50%)", 1),
        (Script(stats={"frames": 30, "delays": 30, "p95_ms": 212.0}), "p95 212 ms broke the gate (150 ms)", 1),
        (BREAKS, "no such model", 1),
    ],
    ids=["crashes", "hangs", "grows", "fails", "fails too often", "slow", "does not load"],
)
def test_a_bad_version_is_given_up_and_stays_so(tmp_path: Path, script: Script, reason: str, starts: int) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.want(rig.app(2))
        told = await rig.until_state(ROLLED_BACK, 2)
        assert reason in told.reason and told.refused == [2]
        await asyncio.sleep(5)
        assert running(rig) == [1] and rig.told().running == 1  # type: ignore[union-attr]
        # Not over a restart, not after another version, not after it was removed meanwhile.
        await rig.stop()
        await rig.start()
        await rig.until_state(ROLLED_BACK, 2)
        rig.want(rig.app(3))
        await rig.until_state(COMMITTED, 3)
        rig.want(rig.app(2))
        told = await rig.until_state(ROLLED_BACK, 2)
        assert told.running == 3 and reason in told.reason
        rig.want()
        await asyncio.sleep(5)
        rig.want(rig.app(2))
        assert (await rig.until_state(ROLLED_BACK, 2)).running is None
        assert rig.starts["pi-1"].count(2) == starts
        # Only when a person asks; and then once.
        rig.scripts.clear()
        rig.want(rig.app(2), gate=1)
        told = await rig.until_state(COMMITTED, 2)
        assert told.attempt == 1 and told.refused == [] and running(rig) == [2]
        await rig.delivered()

    rig = play(tmp_path, work, {2: script}, "health: {p95: 150 ms}\n")
    whats = [entry.what for entry in rig.journal()]
    assert What.REFUSED in whats and What.RETRY in whats and What.GATE in whats
    ids = [entry.id for entry in rig.journal()]
    assert len(ids) == len(set(ids))
    moved = next(e for e in rig.journal() if e.to is ROLLED_BACK)
    assert moved.version == 2 and reason in moved.reason and moved.origin is not None
    assert script.ends is not None or moved.evidence["passed"] is False


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(Exit("exit status 7"), 20.0), "it fell 5 times in a row; last: exit status 7"),
        (Script(GROWS.ends, 90.0), "used 1 GB of memory"),
        (Script(HANGS.ends, 90.0), "hung"),
    ],
    ids=["crash loop", "memory", "hangs"],
)
def test_a_committed_version_that_does_not_stay_goes_back_to_the_one_before(
    tmp_path: Path, script: Script, reason: str
) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.want(rig.app(2))
        told = await rig.until_state(COMMITTED, 2)
        assert told.back == 1
        told = await rig.until_state(ROLLED_BACK, 2)
        assert reason in told.reason and told.refused == [2] and told.back is None
        await asyncio.sleep(5)
        assert running(rig) == [1]
        await rig.stop()
        await rig.start()
        await rig.until_state(ROLLED_BACK, 2)
        await asyncio.sleep(100)
        assert running(rig) == [1]
        await rig.delivered()

    rig = play(tmp_path, work, {2: script})
    crashes = [entry for entry in rig.journal() if entry.what is What.CRASH]
    assert crashes and all(entry.version == 2 and entry.evidence["cause"] for entry in crashes)
    back = next(entry for entry in rig.journal() if entry.to is ROLLED_BACK)
    assert back.origin is COMMITTED and reason in back.reason


def test_a_committed_version_with_nothing_to_go_back_to_is_started_for_ever(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        rig.report_every_s = 30.0
        await with_first(rig)
        await asyncio.sleep(3600)
        assert (told := rig.told()) is not None and told.state is COMMITTED and told.restarts > 20
        await rig.delivered()

    rig = play(tmp_path, work, {1: Script(Exit("exit status 7"), 5.0)})
    # Told at first each time, then ever more rarely.
    assert 6 < sum(entry.what is What.CRASH for entry in rig.journal()) < 20


def test_a_version_that_falls_now_and_then_stays(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        rig.report_every_s = 30.0
        await with_first(rig)
        rig.want(rig.app(2))
        await rig.until_state(COMMITTED, 2)
        await asyncio.sleep(3600)
        assert (told := rig.told()) is not None and told.state is COMMITTED and told.restarts > 20

    play(tmp_path, work, {2: Script(Exit("exit status 7"), 70.0)})


def test_a_clean_stop_is_no_fall(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.want(rig.app(2))
        await rig.until_state(COMMITTED, 2)
        for _ in range(8):
            await rig.stop()
            await rig.start()
            await rig.until_state(COMMITTED, 2)

    play(tmp_path, work)


def test_a_stop_of_our_own_is_neither_a_fall_nor_a_failed_trial(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.scripts[2] = Script(stats={})
        rig.want(rig.app(2))
        await rig.until(lambda app: app.state is AppState.PROVISIONAL)
        for _ in range(7):
            await rig.stop()
            await rig.start()
            await rig.until(lambda app: app.running == 2)
        await rig.until_state(COMMITTED, 2)
        # New secrets, another variant: it is started anew.
        for _ in range(7):
            rig.alive["pi-1"][0].end(Exit("stopped", Cause.STOPPED))
            await rig.until(lambda app: app.running == 2)
        assert (told := rig.told()) is not None and told.state is COMMITTED and told.refused == []

    play(tmp_path, work)


def test_a_quiet_source_is_taken_as_it_is_and_a_finite_one_by_what_it_gave(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        rig.want(rig.app(1))
        await rig.start()
        told = await rig.until_state(COMMITTED, 1)
        assert "said nothing for 60 s" in told.reason
        rig.want(rig.app(2))
        told = await rig.until_state(COMMITTED, 2)
        assert (await rig.until(lambda app: "came to its end" in app.reason)).running is None
        # Over a restart, too: all of it would be recorded twice.
        starts = rig.starts["pi-1"].count(2)
        await rig.stop()
        await rig.start()
        await asyncio.sleep(60)
        assert rig.starts["pi-1"].count(2) == starts
        rig.want(rig.app(3))
        assert "every frame failed" in (await rig.until_state(ROLLED_BACK, 3)).reason

    end = Exit("its source came to its end", Cause.FINISHED)
    play(tmp_path, work, {1: Script(stats={}), 2: Script(end, 0.3), 3: Script(end, 0.3, FAILS.stats)})


def test_a_hold_changes_nothing_but_what_fails_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "_uptime_s", lambda: time.monotonic())  # virtual, too

    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.want(rig.app(2))
        await rig.until_state(COMMITTED, 2)
        hold.hold(rig.folder("pi-1"), 7200, "line 4 runs")
        rig.want(rig.app(3))
        for _ in range(2):
            told = await rig.until(lambda app: app.version == 3 and "held until" in app.reason)
            assert told.state is PENDING and "line 4 runs" in told.reason
            assert rig.reports["pi-1"].held is not None
            await asyncio.sleep(60)
            assert (told := rig.told()) is not None and told.state is PENDING and told.running == 2
            await rig.stop()
            await rig.start()
        # What fails goes back all the same.
        await rig.until(lambda app: app.running == 2)
        rig.scripts[2] = CRASHES
        rig.alive["pi-1"][0].end(Exit("exit status 7"))
        await rig.until(lambda app: app.running == 1 and app.state is PENDING and app.refused == [2])
        hold.release(rig.folder("pi-1"))
        assert (await rig.until_state(COMMITTED, 3)).back == 1
        assert rig.reports["pi-1"].held is None
        # Removal waits too; and a hold ends by itself.
        hold.hold(rig.folder("pi-1"), 100, "")
        rig.want()
        await asyncio.sleep(50)
        assert running(rig) == [3]
        await asyncio.sleep(60)
        assert running(rig) == []
        await asyncio.sleep(10)

    rig = play(tmp_path, work)
    told = [(e.what, e.reason) for e in rig.journal() if e.what in (What.HOLD, What.RELEASE)]
    assert [what for what, _ in told] == [What.HOLD, What.RELEASE, What.HOLD, What.RELEASE]
    assert "line 4 runs" in told[0][1] and told[3][1] == "its time was over"


def test_a_hold_that_begins_while_a_version_is_brought_starts_nothing(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.doubt = NotReady("no connection to the broker")
        rig.want(rig.app(2))
        await rig.until(lambda app: app.reason == "no connection to the broker")
        hold.hold(rig.folder("pi-1"), None, "line 4 runs")
        rig.doubt = None
        told = await rig.until(lambda app: "line 4 runs" in app.reason and app.state is AppState.FETCHED)
        await asyncio.sleep(60)
        assert told.running == 1 and 2 not in rig.starts["pi-1"]
        hold.release(rig.folder("pi-1"))
        await rig.until_state(COMMITTED, 2)

    play(tmp_path, work)


def test_what_is_wanted_again_before_it_was_removed_stays(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        hold.hold(rig.folder("pi-1"), None, "line 4 runs")
        rig.want()
        await rig.until(lambda app: "line 4 runs" in app.reason)
        rig.want(rig.app(1))
        await asyncio.sleep(5)
        hold.release(rig.folder("pi-1"))
        await asyncio.sleep(60)
        assert running(rig) == [1] and (await rig.until_state(COMMITTED, 1)).reason == ""

    play(tmp_path, work)


def test_five_agents_live_in_one_process(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        devices = [f"pi-{n}" for n in range(5)]
        for device in devices:
            rig.want(rig.app(1), device=device)
            await rig.start(device)
        await asyncio.gather(*(rig.until_state(COMMITTED, 1, device) for device in devices))
        for device in devices:
            rig.want(rig.app(2), device=device)
        await asyncio.gather(*(rig.until_state(COMMITTED, 2, device) for device in devices))
        await rig.stop("pi-3")
        assert all(running(rig, device) == ([] if device == "pi-3" else [2]) for device in devices)

    play(tmp_path, work)


# ---------------------------------------------------------------- killed anywhere


@pytest.mark.parametrize(
    "scripts",
    [{}, {2: FAILS}, {2: CRASHES}, {2: Script(Exit("exit status 7"), 3.0)}],
    ids=["good", "fails on trial", "crashes on trial", "crashes once committed"],
)
def test_killed_at_every_write_the_old_or_the_new_version_runs_and_the_journal_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[int, Script]
) -> None:
    """The folder as it is before and after each record, and each line's way into the outbox: a new agent goes on."""
    cuts: dict[str, Path] = {}  # what is in each, so that none is tried twice
    moments = 0
    armed = False
    rig = Rig(tmp_path, scripts)

    def cut() -> None:
        nonlocal moments
        if armed:
            moments += 1
            place = tmp_path / f"cut-{moments}"
            rig.copy("pi-1", place)
            cuts.setdefault(content(place), place)

    save, bring = Folder.save_record, Journal.bring

    def saved(self: Folder, record: Any) -> None:
        cut()
        save(self, record)
        cut()

    async def brought(self: Journal, *given: Any) -> None:
        cut()
        await bring(self, *given)
        cut()

    async def first() -> None:
        nonlocal armed
        await rig.open()
        await with_first(rig)
        armed = True
        rig.want(rig.app(2))
        await rig.until(lambda app: app.version == 2 and app.state in (COMMITTED, ROLLED_BACK))
        if scripts:
            await rig.until_state(ROLLED_BACK, 2)
        await asyncio.sleep(5)
        armed = False
        await rig.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "save_record", saved)
        patch.setattr(Journal, "bring", brought)
        virtual.run(first)
    expected = 1 if scripts else 2
    assert moments >= 20 and len(cuts) >= 10

    async def again(place: Path) -> None:
        rig = await Rig(tmp_path, scripts).open()
        rig.want(rig.app(1))
        rig.want(rig.app(2))
        for app in rig.folder(place.name).records().values():
            assert app.runs is not None and app.runs.version in (1, 2)
        await rig.start("pi-1", Folder(place))
        await rig.until(
            lambda app: app.running == expected and app.version == 2 and app.state in (COMMITTED, ROLLED_BACK)
        )
        await asyncio.sleep(10)
        assert running(rig) == [expected]
        await rig.delivered()
        whole(rig.journal())
        await rig.stop()

    for place in cuts.values():
        virtual.run(lambda place=place: again(place))  # type: ignore[misc]


def content(folder: Path) -> str:
    """A digest of every file in it."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def whole(lines: list[Entry]) -> None:
    """Of each record every line once, in order, each state following from the one before."""
    assert len({line.id for line in lines}) == len(lines)
    serials = [line.serial for line in lines]
    assert serials == list(range(serials[0], serials[0] + len(serials)))
    moves = [line for line in lines if line.what is What.MOVED]
    for before, after in itertools.pairwise(moves):
        assert after.origin is before.to or (after.origin is COMMITTED and after.to is ROLLED_BACK)


def test_a_worker_killed_at_every_moment_of_its_trial(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        version = 1
        for after_s in (0.05, 0.15, 0.25, 0.4, 0.9, 1.35, 1.5):
            version += 1
            rig.want(rig.app(version))
            starts = len(rig.starts["pi-1"])
            while len(rig.starts["pi-1"]) == starts:
                await asyncio.sleep(0.01)
            await asyncio.sleep(after_s)
            victim = next((life for life in rig.alive["pi-1"] if life.spec.version == version), None)
            assert victim is not None
            victim.end(Exit("killed by SIGKILL"))
            await rig.until(lambda app, version=version: app.running == version and app.state is COMMITTED)

    play(tmp_path, work)


# ---------------------------------------------------------------- room


def test_two_apps_that_do_not_fit_together_and_what_is_collected_for_room(device_disk: Path) -> None:
    """48 MB, of which 32 MB are kept for the outbox: one of them fits."""

    async def work(rig: Rig) -> None:
        big, other = rig.app(1, size=11_000_000), rig.app(1, "other", size=11_000_004)
        rig.want(big)
        await rig.start()
        await rig.until_state(COMMITTED, 1)
        rig.fetched = 0
        rig.want(big, other)
        while (told := rig.told(name="other")) is None or "too full" not in told.reason:
            await asyncio.sleep(0.1)
        await asyncio.sleep(60)
        told = rig.told(name="other")
        assert told is not None and told.state is PENDING and told.refused == []
        assert rig.fetched <= 1, "of what does not fit only the page that says what it needs is fetched"
        rig.want(other)
        await asyncio.sleep(30)
        told = rig.told(name="other")
        assert told is not None and told.state is COMMITTED

    play(device_disk, work)


def test_what_is_kept_is_what_runs_and_one_step_back(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        for version in (2, 3):
            rig.want(rig.app(version))
            await rig.until_state(COMMITTED, version)
        rig.scripts[4] = FAILS
        rig.want(rig.app(4))
        await rig.until_state(ROLLED_BACK, 4)
        await asyncio.sleep(10)
        here = {place.name for place in (tmp_path / "pi-1" / "blobs").iterdir()}
        assert here == {file.sha256 for n in (2, 3) for file in rig.app(n).files.files}

    play(tmp_path, work)


async def test_nothing_is_collected_that_is_just_being_brought(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    old, new = rig.app(1), rig.app(2)
    bundles = Bundles(tmp_path, reserve_bytes=0)
    bundles.make()
    for app in (old, new):
        for file in app.files.files:
            bundles.partial(file).write_bytes(rig.blobs[file.sha256])
            bundles.accept(file)
    ground = Ground(
        folder=Folder(tmp_path), bundles=bundles, fetcher=None, bus=None, device="pi-1", needed=lambda: [old]
    )  # type: ignore[arg-type]
    async with ground.files(new):
        await ground.sweep()
        assert bundles.missing([new.files]) == []
        sweeping = asyncio.create_task(ground.sweep())
    await sweeping
    await ground.sweep()
    assert bundles.missing([old.files]) == [] and bundles.missing([new.files])


@pytest.mark.parametrize("state", [AppState.FETCHED, AppState.VERIFIED, AppState.PROVISIONAL])
def test_a_trial_goes_on_after_a_reboot_without_a_link(tmp_path: Path, state: AppState) -> None:
    """Its signature was checked once: there is nobody to ask now, and no need to."""

    async def work(rig: Rig) -> None:
        app = rig.app(1)
        rig.want(app)
        await rig.start()
        await rig.until_state(COMMITTED, 1)
        await rig.stop()
        folder = rig.folder("pi-1")
        record = folder.records()["gate"]
        folder.save_record(record.model_copy(update={"state": state, "committed": None, "tries": 1}))
        rig.doubt = NotReady("no connection to the broker")
        await rig.start()
        await rig.until_state(COMMITTED, 1)
        # Another document of the same version was never believed.
        rig.want(app.model_copy(update={"secrets": ["pin"]}))
        told = await rig.until_state(PENDING, 1)
        await asyncio.sleep(60)
        assert told.running == 1 and rig.told().reason == "no connection to the broker"  # type: ignore[union-attr]

    play(tmp_path, work)


def test_what_is_proven_starts_without_a_link_and_runs_while_a_trial_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Retryable("the disk is too full")

    async def work(rig: Rig) -> None:
        await with_first(rig)
        await rig.stop()
        rig.doubt = NotReady("no connection to the broker")
        await rig.start()
        await rig.until(lambda app: app.running == 1)
        rig.doubt = None
        rig.want(rig.app(2))
        await rig.until_state(COMMITTED, 2)
        await rig.stop()
        # On trial when the device went down; and what it needs is gone since.
        folder = rig.folder("pi-1")
        record = folder.records()["gate"]
        trying = {"state": AppState.PROVISIONAL, "committed": rig.app(1), "previous": None, "tries": 1}
        folder.save_record(record.model_copy(update=trying))
        (data,) = (file for file in rig.app(2).files.files if file not in rig.app(1).files.files)
        (folder.path / "blobs" / data.sha256).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(Room, "take", full)
            await rig.start()
            told = await rig.until(lambda app: app.running == 1)
            assert told.state is AppState.PROVISIONAL and "too full" in told.reason
        await rig.until_state(COMMITTED, 2)

    play(tmp_path, work)


def test_what_nobody_vouched_for_waits_after_a_reboot_too(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        rig.doubt = NotReady("no connection to the broker")
        rig.want(rig.app(1))
        for _ in range(2):
            await rig.start()
            await rig.until(lambda app: app.reason == "no connection to the broker")
            assert rig.told().state is PENDING  # type: ignore[union-attr]
            await rig.stop()
        assert rig.fetched == 0 and "pi-1" not in rig.starts

    play(tmp_path, work)


def test_what_is_not_believed_is_asked_for_ever_more_rarely(tmp_path: Path) -> None:
    """Each time may cost the link all of the metadata."""

    async def work(rig: Rig) -> None:
        rig.report_every_s = 60.0
        rig.doubt = Untrusted("nobody signed it", threat=Threat.UNSIGNED)
        rig.want(rig.app(1))
        await rig.start()
        await asyncio.sleep(2 * 3600)
        assert 12 <= rig.asked < 24
        await rig.delivered()

    told = [entry.reason for entry in play(tmp_path, work).journal() if entry.what is What.UNTRUSTED]
    assert told == ["unsigned: nobody signed it"]


def test_what_comes_and_is_not_what_was_signed_is_fetched_ever_more_rarely(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        app = rig.app(1)
        for digest, body in list(rig.blobs.items()):
            rig.blobs[digest] = bytes(len(body))
        rig.want(app)
        rig.report_every_s = 60.0
        await rig.start()
        await asyncio.sleep(2 * 3600)
        assert 12 <= rig.fetched < 60 and rig.told().state is PENDING  # type: ignore[union-attr]

    play(tmp_path, work)


def test_what_is_too_large_for_any_device_is_given_up_once_it_is_known_who_wants_it(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        before = rig.fetched
        huge = File(path="weights", sha256="a" * 64, size_bytes=9_000_000_000)
        many = [File(path=f"f/{n}", sha256="a" * 64, size_bytes=1) for n in range(10_001)]
        for version, files, words in ((2, [huge], "a device takes 8"), (3, many, "10001 files; a device takes 10000")):
            app = rig.app(version).model_copy(update={"files": Manifest(files=files)})
            rig.doubt = Untrusted("nobody signed it", threat=Threat.UNSIGNED)
            rig.want(app)
            told = await rig.until(lambda app: "unsigned" in app.reason)
            await asyncio.sleep(60)
            assert told.state is PENDING and told.refused == [2][: version - 2]
            rig.doubt = None
            told = await rig.until_state(ROLLED_BACK, version)
            assert words in told.reason and version in told.refused and told.running == 1
        assert rig.fetched == before

    play(tmp_path, work)


FULL = Exit("the outbox cannot be written: database or disk is full", Cause.DISK)


@pytest.mark.parametrize("proven", [False, True], ids=["on trial", "proven"])
def test_what_ails_the_device_is_no_fault_of_a_version(tmp_path: Path, proven: bool) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.scripts[2] = Script() if proven else Script(FULL)
        rig.want(rig.app(2))
        if proven:
            await rig.until_state(COMMITTED, 2)
            rig.scripts[2] = Script(FULL)
            rig.alive["pi-1"][0].end(FULL)
        before = rig.starts["pi-1"].count(2)
        while rig.starts["pi-1"].count(2) < before + 12:
            await asyncio.sleep(0.5)
            told = rig.told()
            assert told is not None and told.refused == [] and told.state is not ROLLED_BACK
        told = await rig.until(lambda app: app.reason == FULL.reason)
        if not proven:
            # What was proven runs as long as it waits.
            await rig.until(lambda app: app.running == 1)
        rig.scripts.clear()
        told = await rig.until(lambda app: app.state is COMMITTED and app.version == 2 and app.running == 2)
        await rig.delivered()

    rig = play(tmp_path, work)
    ailing = [entry for entry in rig.journal() if entry.what is What.AILING]
    assert [(entry.version, entry.reason) for entry in ailing] == [(2, FULL.reason)]
    assert not any(entry.what in (What.CRASH, What.REFUSED) for entry in rig.journal())


def test_nothing_is_tried_on_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = True

    async def work(rig: Rig) -> None:
        nonlocal full
        await with_first(rig)
        monkeypatch.setattr(blame, "full", lambda *_: full)
        rig.scripts[2] = Script(FULL)
        rig.want(rig.app(2))
        await rig.until(lambda app: app.reason == FULL.reason and app.running == 1)
        await asyncio.sleep(600)
        assert rig.starts["pi-1"].count(2) == 1
        full = False
        rig.scripts.clear()
        await rig.until_state(COMMITTED, 2)

    play(tmp_path, work)


def test_a_disk_that_becomes_full_again_and_again_on_trial_ends_the_trial(tmp_path: Path) -> None:
    """There was room each time it started: somebody fills it, and that is the version, or near enough."""

    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.scripts[2] = Script(replace(FULL, filled=True))
        rig.want(rig.app(2))
        told = await rig.until_state(ROLLED_BACK, 2)
        assert "failed 5 times in a row; last: the outbox cannot be written" in told.reason and told.running == 1

    play(tmp_path, work)


def test_a_device_that_cannot_begin_a_process_gives_nothing_up(tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await with_first(rig)
        rig.unable = Retryable("cannot start a worker for gate: Resource temporarily unavailable")
        rig.want(rig.app(2))
        told = await rig.until(lambda app: "temporarily" in app.reason)
        await asyncio.sleep(300)
        assert running(rig) == [1] and told.refused == []
        rig.unable = None
        await rig.until_state(COMMITTED, 2)
        rig.unable = Retryable("cannot start a worker for gate: Resource temporarily unavailable")
        rig.alive["pi-1"][0].end(CRASHES.ends)  # type: ignore[arg-type]
        await asyncio.sleep(1800)
        told = rig.told()
        assert told is not None and (told.state, told.version, told.refused) == (COMMITTED, 2, [])
        rig.unable = None
        await rig.until(lambda app: app.running == 2)

    play(tmp_path, work)
