"""Rollouts go on by stages and past gates, whatever becomes of devices and of whoever runs the controller."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rollout.fleet import APP, NOTHING, TICK_S, Fleet, SimDevice, text

from marram.rollout import controller
from marram.rollout.controller import goals
from marram.schema.errors import Conflict, Invalid, Missing
from marram.schema.rollout import DeviceOutcome, Plan, RolloutState, at_once
from marram.store import OPEN, RolloutRow

QUICK = {"soak_s": 9.0, "silence_s": 60.0}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.store.close()


def running(fleet: Fleet, size: int, **more: object) -> list[SimDevice]:
    """A fleet of `size` that runs version 1."""
    devices = [fleet.add(SimDevice(f"pi-{n}", **more)) for n in range(size)]  # type: ignore[arg-type]
    row = fleet.deploy(1)
    assert row.state is RolloutState.COMPLETED
    fleet.tick(4)
    assert set(fleet.runs().values()) == {1}
    return devices


def outcomes(fleet: Fleet, rollout: int) -> dict[str, str]:
    return {name: device.outcome.value for name, device in fleet.store.rollouts.devices(rollout).items()}


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("stages", "size", "expected"),
    [
        (["1", "10%", "all"], 48, [1, 5, 48]),
        (["1", "10%", "all"], 3, [1, 2, 3]),
        (["10%", "all"], 10, [1, 10]),
        (["1", "1%", "2%", "all"], 10, [1, 2, 3, 10]),
        (["5", "all"], 2, [2, 2]),
        (["12.5%", "100%"], 8, [1, 8]),
        (["33%", "all"], 100, [33, 100]),
        (["1", "all"], 0, [0, 0]),
    ],
)
def test_a_stage_is_a_share_rounded_up_and_more_than_the_one_before(
    stages: list[str], size: int, expected: list[int]
) -> None:
    assert goals(Plan(stages=stages), size) == expected


def test_a_good_version_goes_through_every_stage(fleet: Fleet) -> None:
    running(fleet, 20)
    row = fleet.deploy(2, plan=QUICK)
    assert row.state is RolloutState.RUNNING and list(fleet.wanted().values()).count(2) == 1
    seen = set()
    for _ in range(60):
        fleet.tick()
        seen.add(list(fleet.wanted().values()).count(2))
    assert seen == {1, 2, 20}
    assert fleet.row(row.id).state is RolloutState.COMPLETED
    assert set(fleet.runs().values()) == {2}


def test_a_single_device_soaks_once(fleet: Fleet) -> None:
    """Its second and third stage have nobody further to reach."""
    running(fleet, 1)
    row = fleet.deploy(2, plan=QUICK | {"soak_s": 30.0})
    begun_s = fleet.now_s
    fleet.settle(row.id)
    ended_s = fleet.row(row.id).ended_s
    assert ended_s is not None and 30.0 <= ended_s - begun_s <= 45.0


def test_the_first_of_an_app_goes_to_all_at_once_and_never_back(fleet: Fleet) -> None:
    fleet.add(SimDevice("good"))
    fleet.add(SimDevice("bad", fate={1: "crash"}))
    row = fleet.deploy(1)
    assert row.state is RolloutState.COMPLETED
    fleet.tick(6)
    assert fleet.wanted() == {"good": 1, "bad": 1} and fleet.runs() == {"good": 1, "bad": None}


def test_what_is_said_of_the_plan_counts_also_the_first_time(fleet: Fleet) -> None:
    for n in range(4):
        fleet.add(SimDevice(f"pi-{n}"))
    fleet.tick()
    row = fleet.deploy(1, plan={"stages": ["1", "all"], "soak_s": 3.0})
    assert row.state is RolloutState.RUNNING and list(fleet.wanted().values()).count(1) == 1
    assert fleet.settle(row.id).state is RolloutState.COMPLETED


def test_the_very_same_again_is_no_new_rollout(fleet: Fleet) -> None:
    running(fleet, 4)
    first = fleet.deploy(2, plan=QUICK)
    assert fleet.deploy(2, plan=QUICK).id == first.id
    fleet.settle(first.id)
    assert fleet.deploy(2).id == first.id
    # To fewer devices, or after another version, it is another decision.
    assert fleet.deploy(2, {"site": "x"}).id != first.id
    third = fleet.deploy(3, plan=QUICK)
    assert fleet.deploy(2, plan=QUICK).id > third.id


def test_a_bad_version_is_taken_back_in_its_first_stage(fleet: Fleet) -> None:
    devices = running(fleet, 20)
    for device in devices:
        device.fate[2] = "crash"
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert (row.state, row.stage) == (RolloutState.ROLLED_BACK, 1) and "it crashed" in row.reason
    assert set(fleet.wanted().values()) == {1} and set(fleet.runs().values()) == {1}
    assert list(outcomes(fleet, row.id).values()) == ["failed"]


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        ("late_crash", "stopped by itself"),
        ("silent", "said nothing"),
        ("slow", "p95 3 × that of the rest > 1.5"),
        ("hot", "throttled, which it was not before"),
    ],
)
def test_whatever_is_wrong_with_it_shows_before_the_next_stage(fleet: Fleet, fate: str, words: str) -> None:
    for device in running(fleet, 10):
        device.fate[2] = fate
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert (row.state, row.stage) == (RolloutState.ROLLED_BACK, 1)
    assert words in row.reason
    assert set(fleet.wanted().values()) == {1}


def test_a_slow_class_shows_itself_before_all(fleet: Fleet) -> None:
    """One in ten has another machine, on which the new version is slow."""
    running(fleet, 36)
    for n in range(4):
        fleet.add(SimDevice(f"old-{n}", cores=1, fate={2: "slow"}))
    fleet.tick(4)
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert (row.state, row.stage) == (RolloutState.ROLLED_BACK, 2)
    assert "on aarch64, 1 cores" in row.reason or "1 cores" in row.reason


def test_a_halted_one_waits_for_a_person_who_may_go_on_or_bring_everybody_back(fleet: Fleet) -> None:
    devices = running(fleet, 5)
    for device in devices:
        device.fate[2] = "crash"
    row = fleet.settle(fleet.deploy(2, plan=QUICK | {"on_failure": "halt"}).id)
    assert row.state is RolloutState.HALTED
    (tried,) = [name for name, version in fleet.wanted().items() if version == 2]
    fleet.tick(50)
    assert fleet.row(row.id).state is RolloutState.HALTED
    for device in devices:
        device.fate[2] = "good"
    fleet.rollout.rollouts.promote(row.id, fleet.now_s)
    fleet.rollout.refresh()
    assert fleet.settle(row.id).state is RolloutState.COMPLETED
    assert fleet.runs() == {name: 1 if name == tried else 2 for name in fleet.devices}
    # The one that gave it up tries again when it is asked to.
    fleet.rollout.rollouts.retry(row.id, tried, fleet.now_s)
    fleet.rollout.refresh()
    fleet.tick(5)
    assert set(fleet.runs().values()) == {2}


def test_pause_reaches_nobody_and_judges_nobody_and_resume_goes_on(fleet: Fleet) -> None:
    devices = running(fleet, 6)
    row = fleet.deploy(2, plan=QUICK)
    fleet.rollout.rollouts.pause(row.id)
    for device in devices:
        device.fate[2] = "late_crash" if device.name not in outcomes(fleet, row.id) else "good"
    fleet.tick(100)
    assert fleet.row(row.id).state is RolloutState.PAUSED and list(fleet.wanted().values()).count(2) == 1
    for device in devices:
        device.fate[2] = "good"
    fleet.rollout.rollouts.resume(row.id)
    assert fleet.settle(row.id).state is RolloutState.COMPLETED


def test_abort_brings_everybody_back_also_those_it_had_not_judged(fleet: Fleet) -> None:
    running(fleet, 6)
    row = fleet.deploy(2, plan=QUICK)
    fleet.tick(3)
    fleet.rollout.rollouts.abort(row.id)
    fleet.rollout.refresh()
    fleet.tick(4)
    assert set(fleet.runs().values()) == {1}
    for act in (fleet.rollout.rollouts.promote, fleet.rollout.rollouts.resume, fleet.rollout.rollouts.pause):
        with pytest.raises(Conflict, match="is aborted"):
            act(row.id)
    with pytest.raises(Conflict, match="cannot be tried again"):
        fleet.rollout.rollouts.retry(row.id, "pi-0", fleet.now_s)


def test_promote_skips_the_soak(fleet: Fleet) -> None:
    running(fleet, 10)
    row = fleet.deploy(2, plan={"soak_s": 86400.0})
    fleet.tick(5)
    assert fleet.row(row.id).stage == 1
    for stage in (2, 3):
        fleet.rollout.rollouts.promote(row.id, fleet.now_s)
        fleet.rollout.refresh()
        assert fleet.row(row.id).stage == stage
    assert set(fleet.wanted().values()) == {2}
    fleet.rollout.rollouts.promote(row.id, fleet.now_s)
    assert fleet.row(row.id).state is RolloutState.COMPLETED


# ---------------------------------------------------------------- who is not there


def test_offline_devices_hold_nobody_up_and_get_it_when_they_come(fleet: Fleet) -> None:
    devices = running(fleet, 10)
    for device in devices[:4]:
        device.online = False
    fleet.tick(5)
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert row.state is RolloutState.COMPLETED
    assert list(fleet.runs().values()).count(2) == 6
    for device in devices:
        device.online = True
    fleet.tick(5)
    assert set(fleet.runs().values()) == {2}


def test_nobody_there_proves_nothing(fleet: Fleet) -> None:
    devices = running(fleet, 3)
    for device in devices:
        device.online = False
    fleet.tick(5)
    row = fleet.deploy(2, plan=QUICK)
    fleet.tick(300)
    assert fleet.row(row.id).state is RolloutState.RUNNING and set(fleet.wanted().values()) == {1}
    assert fleet.rollout.rollouts.look(row.id, fleet.now_s).step.verdict.waits == "a matching device that is online"
    devices[1].online = True
    assert fleet.settle(row.id).state is RolloutState.COMPLETED


def test_a_device_that_joins_late_gets_the_version_of_its_stage(fleet: Fleet) -> None:
    running(fleet, 10)
    row = fleet.deploy(2, plan=QUICK | {"soak_s": 3600.0})
    late = fleet.add(SimDevice("late"))
    fleet.rollout.refresh("late")
    fleet.tick(4)
    assert (late.runs, fleet.row(row.id).stage) == (1, 1)
    fleet.rollout.rollouts.promote(row.id, fleet.now_s)
    fleet.rollout.rollouts.promote(row.id, fleet.now_s)
    fleet.rollout.rollouts.promote(row.id, fleet.now_s)
    later = fleet.add(SimDevice("later"))
    fleet.rollout.refresh()
    fleet.tick(4)
    assert (late.runs, later.runs) == (2, 2)


def test_a_silent_canary_is_not_promoted_past_although_it_committed(fleet: Fleet) -> None:
    devices = running(fleet, 8)
    row = fleet.deploy(2, plan=QUICK)
    fleet.tick(2)
    (canary,) = outcomes(fleet, row.id)
    assert outcomes(fleet, row.id)[canary] == "committed"
    next(device for device in devices if device.name == canary).gone = True
    row = fleet.settle(row.id)
    assert (row.state, row.stage) == (RolloutState.ROLLED_BACK, 1) and "said nothing for 60 s" in row.reason


def test_one_that_goes_away_before_it_hears_of_it_says_nothing_against_it(fleet: Fleet) -> None:
    devices = running(fleet, 10)
    row = fleet.deploy(2, plan=QUICK)
    (canary,) = outcomes(fleet, row.id)
    away = next(device for device in devices if device.name == canary)
    away.online = False
    row = fleet.settle(row.id)
    assert row.state is RolloutState.COMPLETED and list(fleet.runs().values()).count(2) == 9
    known = fleet.store.rollouts.devices(row.id)[canary]
    assert (known.outcome, known.reason) == (DeviceOutcome.WAITING, "went away before it could hear of it")
    away.online = True
    fleet.tick(4)
    assert away.runs == 2


def test_of_a_large_fleet_one_may_be_switched_off_and_of_a_small_one_none(fleet: Fleet) -> None:
    """What heard of it and then fell silent counts; of hundreds a few always do, whatever the version."""
    for size, state in ((12, RolloutState.ROLLED_BACK), (240, RolloutState.COMPLETED)):
        site = {"size": str(size)}
        devices = [fleet.add(SimDevice(f"of-{size}-{n}", site)) for n in range(size)]
        fleet.tick(1)
        old = fleet.rollout.deploy(text(1), NOTHING, site, None, fleet.now_s)
        fleet.tick(3)
        plan = Plan.model_validate(QUICK | {"stages": ["all"]})
        row = fleet.rollout.deploy(text(2), NOTHING, site, plan, fleet.now_s)
        assert old.rollout is not None and row.rollout is not None
        devices[7].fate[row.deployment.version or 0] = "silent"
        ended = fleet.settle(row.rollout.id)
        assert ended.state is state, ended.reason
        known = fleet.store.rollouts.devices(row.rollout.id)[devices[7].name]
        assert known.outcome is DeviceOutcome.SILENT and known.reason.startswith("heard of it, and said nothing more")


def test_one_without_room_fails_and_the_reason_says_so(fleet: Fleet) -> None:
    devices = running(fleet, 4)
    for device in devices:
        device.fate[2] = "full"
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert row.state is RolloutState.ROLLED_BACK
    assert "came to no end in 60 s: pending, the disk is too full" in row.reason


def test_one_that_is_held_is_passed_over(fleet: Fleet) -> None:
    devices = running(fleet, 4)
    devices[0].held = "held until noon: we measure"
    fleet.tick(2)
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert row.state is RolloutState.COMPLETED
    assert fleet.runs() == {"pi-0": 1, "pi-1": 2, "pi-2": 2, "pi-3": 2}
    devices[0].held = None
    fleet.tick(4)
    assert devices[0].runs == 2


def test_one_that_is_held_just_as_it_is_reached_counts_as_not_reached(fleet: Fleet) -> None:
    devices = running(fleet, 4)
    row = fleet.deploy(2, plan=QUICK)
    (canary,) = outcomes(fleet, row.id)
    next(device for device in devices if device.name == canary).held = "held: we measure"
    row = fleet.settle(row.id)
    assert row.state is RolloutState.COMPLETED
    assert outcomes(fleet, row.id)[canary] == "waiting" and list(fleet.runs().values()).count(2) == 3


def test_a_removed_or_revoked_device_is_no_longer_counted(fleet: Fleet) -> None:
    running(fleet, 3)
    row = fleet.deploy(2, plan=QUICK)
    (canary,) = outcomes(fleet, row.id)
    fleet.store.devices.remove(canary)
    del fleet.devices[canary]
    row = fleet.settle(row.id)
    assert row.state is RolloutState.COMPLETED and set(fleet.runs().values()) == {2}


def test_a_fleet_that_shrinks_lets_nobody_in_before_their_stage(fleet: Fleet) -> None:
    running(fleet, 10)
    row = fleet.deploy(2, plan=QUICK | {"stages": ["50%", "all"], "soak_s": 600.0})
    fleet.tick(2)
    reached = set(outcomes(fleet, row.id))
    for name in sorted(set(fleet.devices) - reached)[:4]:
        fleet.store.devices.remove(name)
        del fleet.devices[name]
    fleet.tick(5)
    assert len(reached) == 5 and {name for name, version in fleet.wanted().items() if version == 2} == reached


# ---------------------------------------------------------------- several at once


def test_a_newer_one_for_the_same_devices_takes_the_place_of_one_that_runs(fleet: Fleet) -> None:
    running(fleet, 10)
    old = fleet.deploy(2, plan=QUICK | {"soak_s": 3600.0})
    fleet.tick(3)
    new = fleet.deploy(3, plan=QUICK)
    assert fleet.row(old.id).state is RolloutState.SUPERSEDED
    # Who had 2 keeps it until 3 comes.
    assert sorted(set(fleet.wanted().values()), key=str) == [1, 2, 3] or set(fleet.wanted().values()) == {1, 3}
    assert fleet.settle(new.id).state is RolloutState.COMPLETED
    assert set(fleet.runs().values()) == {3}


def test_one_that_cannot_be_taken_on_keeps_no_other_from_going_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(4):
        fleet.add(SimDevice(f"pi-{n}", {"site": "ab"[n % 2]}))
    fleet.deploy(1)
    fleet.tick(4)
    broken, sound = (fleet.deploy(n + 2, {"site": "ab"[n]}, QUICK).id for n in range(2))
    step = controller.step

    def fails(row: RolloutRow, *given: Any) -> controller.Step:
        if row.id == broken:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return step(row, *given)

    monkeypatch.setattr(controller, "step", fails)
    for _ in range(100):
        fleet.now_s += TICK_S
        fleet.live()
        fleet.steer()
        if fleet.row(sound).state is RolloutState.COMPLETED:
            break
    assert fleet.row(sound).state is RolloutState.COMPLETED and fleet.row(broken).state is RolloutState.RUNNING
    assert f"rollout {broken}" in caplog.text


def test_a_narrower_one_decides_over_its_own_devices_only(fleet: Fleet) -> None:
    for n in range(6):
        fleet.add(SimDevice(f"x-{n}", labels={"site": "x"}))
        fleet.add(SimDevice(f"y-{n}", labels={"site": "y"}))
    fleet.deploy(1)
    fleet.tick(4)
    wide = fleet.deploy(2, plan=QUICK | {"soak_s": 30.0})
    narrow = fleet.deploy(3, {"site": "y"}, plan=QUICK)
    fleet.tick(2)
    assert (fleet.row(wide.id).state, fleet.row(wide.id).stage) == (RolloutState.RUNNING, 1)
    assert len(fleet.rollout.rollouts.look(wide.id, fleet.now_s).seen) == 6
    fleet.settle(narrow.id)
    fleet.settle(wide.id)
    assert {name[0]: version for name, version in fleet.runs().items()} == {"x": 2, "y": 3}
    assert fleet.row(wide.id).state is fleet.row(narrow.id).state is RolloutState.COMPLETED


def test_a_removal_ends_what_is_under_way(fleet: Fleet) -> None:
    running(fleet, 4)
    row = fleet.deploy(2, plan=QUICK)
    fleet.rollout.remove("gate")
    assert fleet.row(row.id).state is RolloutState.SUPERSEDED
    fleet.tick(3)
    assert set(fleet.wanted().values()) == {None}


def test_after_a_removal_an_app_is_new_again_and_goes_to_all_at_once(fleet: Fleet) -> None:
    running(fleet, 3, labels={"site": "x"})
    fleet.add(SimDevice("other", labels={"site": "y"}))
    fleet.tick(4)
    fleet.rollout.remove(APP, {"site": "x"})
    fleet.tick(2)
    assert fleet.deploy(2, {"site": "x"}).state is RolloutState.COMPLETED
    fleet.rollout.remove(APP, {"site": "x"})
    # Where one still has another version, it is no first time.
    assert fleet.deploy(3).state is RolloutState.RUNNING


def test_whoever_is_told_to_run_nothing_is_asked_for_no_attempt(fleet: Fleet) -> None:
    (device,) = running(fleet, 1)
    device.fate[2] = "crash"
    row = fleet.settle(fleet.deploy(2, plan=QUICK | {"on_failure": "halt"}).id)
    fleet.rollout.rollouts.retry(row.id, device.name, fleet.now_s)
    fleet.rollout.refresh()
    assert fleet.store.states.desired(device.name).attempts == {APP: 1}
    fleet.rollout.remove(APP)
    told = fleet.store.states.desired(device.name)
    assert (told.apps, told.attempts) == ([], {})


def test_what_has_ended_is_shown_with_all_it_was_for_whoever_decides_since(fleet: Fleet) -> None:
    def seen(row: RolloutRow) -> set[str]:
        return {each.device for each in fleet.rollout.rollouts.look(row.id, fleet.now_s).seen}

    devices = running(fleet, 3, labels={"site": "x"})
    mine = {device.name for device in devices}
    fleet.add(SimDevice("other", labels={"site": "y"}))
    fleet.tick(4)
    good = fleet.settle(fleet.deploy(2, {"site": "x"}, plan=QUICK).id)
    fleet.add(SimDevice("late", labels={"site": "x"}))
    fleet.tick(4)
    assert (good.state, seen(good)) == (RolloutState.COMPLETED, mine | {"late"})
    for device in devices:
        device.fate[3] = "crash"
    bad = fleet.settle(fleet.deploy(3, {"site": "x"}, plan=QUICK).id)
    newest = fleet.deploy(4)
    fleet.add(SimDevice("later", labels={"site": "x"}))
    fleet.tick(2)
    # One that went through is for whom it reached; one that went back, for all that it might have reached.
    assert (bad.state, seen(bad)) == (RolloutState.ROLLED_BACK, mine | {"late", "later"})
    assert seen(good) == set(fleet.store.rollouts.devices(good.id)) == mine
    assert (newest.state, seen(newest)) == (RolloutState.RUNNING, mine | {"late", "later", "other"})


def test_a_version_given_up_before_is_tried_again_when_it_is_deployed_again(fleet: Fleet) -> None:
    devices = running(fleet, 3)
    for device in devices:
        device.fate[2] = "crash"
    bad = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert bad.state is RolloutState.ROLLED_BACK
    assert any(2 in device.refused for device in devices)
    for device in devices:
        device.fate[2] = "good"
    again = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert again.id > bad.id and again.state is RolloutState.COMPLETED
    assert set(fleet.runs().values()) == {2}


def test_one_that_gave_it_up_and_was_away_when_it_was_deployed_again_tries_it_when_it_comes(fleet: Fleet) -> None:
    devices = running(fleet, 3)
    for device in devices:
        device.fate[2] = "crash"
    assert fleet.settle(fleet.deploy(2, plan=QUICK).id).state is RolloutState.ROLLED_BACK
    gave_up = next(device for device in devices if 2 in device.refused)
    gave_up.online = False
    fleet.tick(5)
    for device in devices:
        device.fate[2] = "good"
    row = fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert row.state is RolloutState.COMPLETED and gave_up.runs == 1
    assert fleet.store.rollouts.devices(row.id)[gave_up.name].outcome is DeviceOutcome.WAITING
    gave_up.online = True
    fleet.tick(5)
    assert gave_up.runs == 2


@pytest.mark.parametrize("stages", [None, {**QUICK, "stages": ["1", "all"]}])
def test_a_removed_app_that_was_given_up_is_tried_again_each_time_it_is_deployed(
    fleet: Fleet, stages: dict[str, Any] | None
) -> None:
    """Once the app is removed its device says nothing of what it gave up, and keeps it."""
    bad, good = fleet.add(SimDevice("bad", fate={1: "crash"})), fleet.add(SimDevice("good"))
    fleet.deploy(1)
    fleet.tick(4)
    assert (bad.refused, bad.attempt) == ([1], 0)
    for attempt in (1, 2, 3):
        fleet.rollout.remove(APP)
        fleet.tick(2)
        assert (bad.state, bad.refused) == (None, [1])
        bad.fate = {1: "crash"} if attempt < 3 else {}
        row = fleet.deploy(1, plan=stages)
        fleet.tick(40)
        assert (bad.attempt, bad.refused) == (attempt, [1] if attempt < 3 else [])
        assert fleet.row(row.id).state is not RolloutState.RUNNING
    assert fleet.runs() == {"bad": 1, "good": 1} and good.attempt <= 3
    # Nobody gave the next version up, and nobody is asked for more.
    fleet.settle(fleet.deploy(2, plan=QUICK).id)
    assert fleet.runs() == {"bad": 2, "good": 2} and bad.attempt == 3


def test_a_window_is_waited_for(fleet: Fleet) -> None:
    running(fleet, 3)
    with pytest.raises(Invalid, match='no time zone "Mars/Base"'):
        fleet.deploy(2, plan={"window": {"zone": "Mars/Base"}})
    # 2027-01-15 08:00 UTC is 16:00 in Shanghai.
    plan = QUICK | {"window": {"hours": "22:00-05:00", "zone": "Asia/Shanghai"}}
    row = fleet.deploy(2, plan=plan)
    assert set(fleet.wanted().values()) == {1}
    fleet.now_s += 5.9 * 3600
    fleet.tick(2)
    assert set(fleet.wanted().values()) == {1}
    assert "22:00-05:00 Asia/Shanghai" in fleet.rollout.rollouts.look(row.id, fleet.now_s).step.verdict.waits
    fleet.now_s += 0.2 * 3600
    fleet.tick(3)
    assert 2 in fleet.wanted().values()
    assert fleet.settle(row.id).state is RolloutState.COMPLETED


# ---------------------------------------------------------------- any fleet, any death

FATES = st.sampled_from(["good"] * 6 + ["crash", "silent", "late_crash", "slow"])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_fleet_and_any_death_of_the_controller(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never more devices than the stage says, never a version that nobody decided, and always an end."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    size = data.draw(st.integers(1, 14), label="size")
    for n in range(size):
        fleet.add(SimDevice(f"pi-{n}", cores=data.draw(st.sampled_from([1, 4])), takes=data.draw(st.integers(1, 4))))
    fleet.deploy(1)
    fleet.tick(6)
    for device in fleet.devices.values():
        device.fate[2] = data.draw(FATES)
        device.online = data.draw(st.sampled_from([True, True, True, False]))
    fleet.devices["pi-0"].online = True
    stages = data.draw(st.sampled_from([["1", "10%", "all"], ["all"], ["2", "50%", "all"], ["34%", "all"]]))
    share = data.draw(st.sampled_from([0.0, 0.0, 0.3, None]))
    plan = QUICK | {"stages": stages, "gates": {"failures": share, "silent": share}}
    row = None
    with fleet.killed_after(data.draw(st.integers(0, 6))):
        row = fleet.deploy(2, plan=plan)
    row = fleet.deploy(2, plan=plan) if row is None else row  # a person whose command died types it again
    reached: set[str] = set()
    for tick in range(400):
        fleet.now_s += 3.0
        if data.draw(st.integers(0, 30)) == 0:
            some = fleet.devices[f"pi-{data.draw(st.integers(0, size - 1))}"]
            some.online = not some.online or some.name == "pi-0"
        fleet.live()
        if data.draw(st.booleans()) or tick > 60:
            with fleet.killed_after(data.draw(st.integers(0, 4)) if tick <= 60 else 99):
                fleet.steer()
        if tick % 7 == 0:
            with fleet.killed_after(data.draw(st.integers(0, 2))):
                fleet.rollout.refresh()
        now = fleet.row(row.id)
        told = {name for name, version in fleet.wanted().items() if version == 2}
        known = fleet.store.rollouts.devices(row.id)
        reached |= {name for name, device in known.items() if device.outcome is not DeviceOutcome.WAITING}
        if now.open:
            # Of those told, whoever went away before it heard of it is told no more, and another may be.
            assert len(told) <= goals(now.plan, size)[now.stage - 1] and told <= reached
        assert set(fleet.wanted().values()) <= {1, 2}
        if not now.open:
            break
    else:
        raise AssertionError(f"no end: {fleet.rollout.rollouts.look(row.id, fleet.now_s).step}")
    fleet.rollout.refresh()
    fleet.tick(8)
    expected = 2 if fleet.row(row.id).state is RolloutState.COMPLETED else 1
    assert set(fleet.wanted().values()) == {expected}
    if share == 0.0 and fleet.row(row.id).state is RolloutState.COMPLETED:
        ended = fleet.store.rollouts.devices(row.id).values()
        assert not any(d.outcome in (DeviceOutcome.FAILED, DeviceOutcome.SILENT) for d in ended)
    assert not math.isnan(fleet.now_s)
    fleet.store.close()


# ---------------------------------------------------------------- which word of a person's counts when


def test_what_a_person_may_say_of_a_rollout_in_each_state(fleet: Fleet) -> None:
    (device,) = running(fleet, 1)
    rollouts = fleet.rollout.rollouts
    row = fleet.deploy(2, plan=QUICK | {"on_failure": "halt"})

    def put(state: RolloutState) -> None:
        now = fleet.row(row.id)
        ended_s = None if state in OPEN else fleet.now_s
        assert fleet.store.rollouts.save(now, replace(now, state=state, stage=1, ended_s=ended_s))

    may = {
        RolloutState.RUNNING: {"pause", "promote", "abort", "resume"},
        RolloutState.PAUSED: {"pause", "resume", "abort"},
        RolloutState.HALTED: {"resume", "promote", "abort"},
        RolloutState.ABORTED: {"abort"},
        RolloutState.ROLLED_BACK: set(),
        RolloutState.COMPLETED: set(),
        RolloutState.SUPERSEDED: set(),
    }
    for state, words in may.items():
        for word in ("pause", "resume", "promote", "abort"):
            put(state)
            try:
                getattr(rollouts, word)(row.id)
            except Conflict:
                assert word not in words, (state, word)
                assert fleet.row(row.id).state is state
            else:
                assert word in words, (state, word)
    put(RolloutState.PAUSED)
    before_s = fleet.row(row.id).stage_s
    assert rollouts.resume(row.id).stage_s > before_s  # its stage soaks anew
    assert rollouts.abort(row.id).ended_s is not None
    # Trying again is for whom it holds, of those it reached.
    with pytest.raises(Conflict, match="is aborted and cannot be tried again"):
        rollouts.retry(row.id, device.name, fleet.now_s)
    fleet.add(SimDevice("other", {"site": "y"}))
    fleet.add(SimDevice("late", {"site": "z"}, online=False))
    narrow = fleet.deploy(3, {"site": "z"}, plan=QUICK | {"stages": ["1", "all"]})
    with pytest.raises(Conflict, match="its labels do not match"):
        rollouts.retry(narrow.id, "other", fleet.now_s)
    with pytest.raises(Conflict, match="has not reached late yet"):
        rollouts.retry(narrow.id, "late", fleet.now_s)
    with pytest.raises(Missing, match='no device "nobody"'):
        rollouts.retry(narrow.id, "nobody", fleet.now_s)


def test_each_retry_is_one_more_than_anybody_asked_or_the_device_has_seen(fleet: Fleet) -> None:
    (device,) = running(fleet, 1)
    device.fate[2] = "crash"
    row = fleet.settle(fleet.deploy(2, plan=QUICK | {"on_failure": "halt"}).id)
    kept = fleet.store.rollouts.devices(row.id)[device.name]
    assert [fleet.rollout.rollouts.retry(row.id, device.name, fleet.now_s).attempt for _ in range(3)] == [1, 2, 3]
    fleet.rollout.refresh()
    device.attempt = 7  # another cloud, before this one was restored from a backup, had asked more often
    fleet.tick(2)
    again = fleet.rollout.rollouts.retry(row.id, device.name, fleet.now_s)
    assert (again.attempt, again.stage, again.evidence) == (8, kept.stage, kept.evidence)


def test_what_was_superseded_is_no_decision_that_still_stands(fleet: Fleet) -> None:
    running(fleet, 3)
    old = fleet.deploy(2, plan=QUICK)
    newer = fleet.deploy(3, plan=QUICK)
    fleet.rollout.rollouts.abort(newer.id)
    again = fleet.rollout.deploy(text(2), NOTHING, {}, Plan.model_validate(QUICK), fleet.now_s)
    assert again.new and again.rollout is not None and again.rollout.id not in (old.id, newer.id)
    # One that is under way by stages is another decision than all at once.
    same = fleet.rollout.deploy(text(2), NOTHING, {}, Plan.model_validate(QUICK), fleet.now_s)
    assert not same.new and same.rollout is not None and same.rollout.id == again.rollout.id
    at_once_ = fleet.rollout.deploy(text(2), NOTHING, {}, at_once(), fleet.now_s)
    assert at_once_.new and at_once_.rollout is not None and at_once_.rollout.state is RolloutState.COMPLETED
    assert set(fleet.wanted().values()) == {2}
