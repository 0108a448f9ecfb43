"""One step of the controller at its edges: to the second, to the device, to the word. No store, no clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from marram.rollout import controller
from marram.rollout.controller import goals, told
from marram.rollout.observation import Observation
from marram.schema.device import AppState
from marram.schema.rollout import DeviceOutcome, Gates, Plan, RolloutDevice, RolloutState, Window, at_once
from marram.store import RolloutRow

BEGUN_S = 1_800_000_000.0  # 2027-01-15 08:00 UTC
SOAK_S, SILENCE_S = 10.0, 60.0
GATES = Gates(failures=0.0, silent=0.0, errors=None, p95_ratio=None, confidence_shift=None, throttling=False)
PLAN = Plan(stages=["1", "3", "all"], soak_s=SOAK_S, silence_s=SILENCE_S, gates=GATES)


def row(**more: Any) -> RolloutRow:
    plan = PLAN.model_copy(update=more.pop("plan", {}))
    return replace(RolloutRow(7, "gate", 2, {}, BEGUN_S, stage_s=BEGUN_S, plan=plan), **more)


def at(name: str = "pi", **more: Any) -> Observation:
    """A device that is there and runs version 1, heard a second after the rollout began."""
    usual = {"online": True, "seen_s": BEGUN_S + 1, "version": 1, "state": AppState.COMMITTED, "running": 1}
    return Observation(name, **(usual | more))


def has(name: str = "pi", **more: Any) -> Observation:
    """One that says that it has come to its end with version 2."""
    return at(name, **({"version": 2, "running": 2} | more))


def known(name: str = "pi", outcome: str = "reached", **more: Any) -> RolloutDevice:
    usual = {"device": name, "stage": 1, "outcome": DeviceOutcome(outcome), "reached_s": BEGUN_S}
    if outcome not in ("reached", "waiting"):
        usual["ended_s"] = BEGUN_S + 2
    return RolloutDevice(**(usual | more))


def step(rollout: RolloutRow, devices: list[RolloutDevice], seen: list[Observation], after_s: float) -> controller.Step:
    return controller.step(rollout, {each.device: each for each in devices}, seen, BEGUN_S + after_s)


def becomes(device: RolloutDevice, seen: Observation, after_s: float = 5.0, **plan: Any) -> RolloutDevice:
    """What `device`, alone in its rollout, counts as then."""
    changed = {each.device: each for each in step(row(plan=plan), [device], [seen], after_s).devices}
    return changed.get(device.device, device)


# ---------------------------------------------------------------- one device


@pytest.mark.parametrize(
    ("device", "seen", "after_s", "outcome", "reason"),
    [
        (known(), has(), 5, "committed", ""),
        # What it said before it was told, or about an attempt before this one, is no answer.
        (known(), has(seen_s=BEGUN_S), 5, "reached", ""),
        (known(attempt=2), has(attempt=1), 5, "reached", ""),
        (known(attempt=2), has(attempt=2), 5, "committed", ""),
        (known(), at(state=AppState.ROLLED_BACK), 5, "reached", ""),
        (known(), has(state=AppState.ROLLED_BACK, reason="it crashed"), 5, "failed", "it crashed"),
        (known(), has(state=AppState.ROLLED_BACK), 5, "failed", "rolled back by itself"),
        (known(), at(), SILENCE_S, "reached", ""),
        (known(), at(), SILENCE_S + 1, "silent", "did not begin in 60 s"),
        (known(), at(online=False), SILENCE_S + 1, "silent", "heard of it, and said nothing more within 60 s"),
        (known(), at(seen_s=BEGUN_S, online=False), SILENCE_S, "reached", ""),
        (known(), at(seen_s=BEGUN_S, online=False), SILENCE_S + 1, "waiting", "went away before it could hear of it"),
        (
            known(),
            has(state=AppState.PENDING, reason="no room"),
            SILENCE_S + 1,
            "silent",
            "came to no end in 60 s: pending, no room",
        ),
        (
            known(),
            has(state=AppState.PROVISIONAL),
            SILENCE_S + 1,
            "silent",
            "came to no end in 60 s: still on trial",
        ),
        # A person at the device: it goes on as it was, but what is under way there ends first.
        (known(), at(held="held"), 5, "waiting", "held"),
        (known(), has(state=AppState.PENDING, held="held"), 5, "reached", ""),
        (known(), has(state=AppState.PENDING, held="held"), 2 * SILENCE_S, "reached", ""),
        # Silent is not for ever; failed is.
        (known(outcome="silent", reason="quiet"), at(), 3 * SILENCE_S, "silent", "quiet"),
        (known(outcome="silent"), has(seen_s=BEGUN_S + 90), 91, "committed", ""),
        (known(outcome="failed", reason="it crashed"), has(), 5, "failed", "it crashed"),
        (known(outcome="failed", reason="first"), has(state=AppState.ROLLED_BACK, reason="2nd"), 5, "failed", "first"),
    ],
)
def test_where_a_device_stands(
    device: RolloutDevice, seen: Observation, after_s: float, outcome: str, reason: str
) -> None:
    after = becomes(device, seen, after_s)
    assert (after.outcome.value, after.reason) == (outcome, reason)
    ended = outcome in ("committed", "failed", "silent")
    assert (after.ended_s is not None) == ended
    if ended and after != device:
        assert after.ended_s == BEGUN_S + after_s


@pytest.mark.parametrize(
    ("seen", "after_s", "outcome", "reason"),
    [
        (has(restarts=3), 5, "committed", ""),
        (has(restarts=4, reason="exit status 7"), 5, "failed", "stopped by itself: exit status 7"),
        (has(restarts=0), 5, "committed", ""),  # its agent began anew, and counts anew
        (has(restarts=1), 5, "failed", "stopped by itself: no reason given"),
        (has(throttled=True), 5, "failed", "throttled, which it was not before"),
        (has(temperature_c=81.0), 5, "failed", "81 °C, above 80 °C"),
        (has(state=AppState.ROLLED_BACK, reason="it hung"), 5, "failed", "it hung"),
        (has(), SILENCE_S + 1, "committed", ""),
        (has(), SILENCE_S + 2, "silent", "said nothing for 60 s"),
        # What it said last was of before it was reached: the silence begins when it was.
        (at(seen_s=BEGUN_S - 50), SILENCE_S, "committed", ""),
        (at(seen_s=BEGUN_S - 50), SILENCE_S + 1, "silent", "said nothing for 60 s"),
    ],
)
def test_one_that_has_committed_must_keep_to_it(seen: Observation, after_s: float, outcome: str, reason: str) -> None:
    device = known(outcome="committed", evidence={"restarts": 3, "before": {"throttled": False}})
    gates = GATES.model_copy(update={"throttling": True, "temperature_c": 80.0})
    after = becomes(device, seen, after_s, gates=gates)
    assert (after.outcome.value, after.reason) == (outcome, reason)


def test_the_count_of_restarts_begins_where_it_committed() -> None:
    assert becomes(known(), has(restarts=3)).evidence == {"restarts": 3}


# ---------------------------------------------------------------- a stage


def test_a_share_of_many_is_not_one_more_for_how_numbers_are_kept() -> None:
    assert goals(Plan(stages=["16.1%", "all"]), 1000) == [161, 1000]


def test_only_a_plan_that_leaves_nothing_to_wait_for_or_to_judge_is_over_at_once() -> None:
    plan = at_once()
    assert plan.immediate
    assert not plan.model_copy(update={"window": Window()}).immediate
    assert not plan.model_copy(update={"stages": ["1", "all"]}).immediate
    assert not plan.model_copy(update={"gates": plan.gates.model_copy(update={"throttling": True})}).immediate
    assert not plan.model_copy(update={"gates": plan.gates.model_copy(update={"errors": 0.0})}).immediate


def test_a_stage_ends_with_its_soak_to_the_second() -> None:
    device, seen = known(outcome="committed", ended_s=BEGUN_S + 5), has(seen_s=BEGUN_S + 15)
    others = [at(f"pi-{n}") for n in range(4)]
    early = step(row(), [device], [seen, *others], 14)
    assert not early.changed and early.verdict.waits == "the end of its soak, 1 s"
    after = step(row(), [device], [seen, *others], 15)
    assert (after.rollout.stage, after.rollout.stage_s, after.acts) == (2, BEGUN_S + 15, ["stage 1 passed"])
    last = step(row(stage=3, plan={"stages": ["1", "3", "all"]}), [replace_stage(device, 3)], [seen], 15)
    assert last.rollout.state is RolloutState.COMPLETED and last.rollout.ended_s == BEGUN_S + 15


def replace_stage(device: RolloutDevice, stage: int) -> RolloutDevice:
    return device.model_copy(update={"stage": stage})


def test_a_soak_begins_anew_with_the_stage_and_with_each_that_commits() -> None:
    one, two = known("a", "committed"), known("b", "committed", stage=2, ended_s=BEGUN_S + 30)
    seen = [has("a", seen_s=BEGUN_S + 40), has("b", seen_s=BEGUN_S + 40), at("c", online=False)]
    second = row(stage=2, stage_s=BEGUN_S + 20)
    assert step(second, [one, two], seen, 39).verdict.waits == "the end of its soak, 1 s"
    assert step(second, [one, two], seen, 40).rollout.stage == 3
    # Nobody further to reach: it has soaked with the stage before.
    lone = [has("a", seen_s=BEGUN_S + 12), at("c", online=False)]
    assert step(row(stage=2, stage_s=BEGUN_S + 12), [one], lone, 12).rollout.stage == 3


@pytest.mark.parametrize(
    ("devices", "seen", "waits"),
    [
        ([], [at(online=False)], "a matching device that is online"),
        ([], [at(held="held")], "a matching device that is not held"),
        ([known("a")], [at("a"), at("b")], "a to come to an end with it"),
        ([known("a", "committed")], [has("a"), at("b")], "a word of a"),
    ],
)
def test_what_a_stage_waits_for(devices: list[RolloutDevice], seen: list[Observation], waits: str) -> None:
    assert step(row(), devices, seen, 20).verdict.waits == waits


def test_where_nobody_matches_there_is_nothing_to_wait_for() -> None:
    assert step(row(stage=3), [], [], 1).rollout.state is RolloutState.COMPLETED


def test_one_that_is_held_on_its_way_keeps_nobody_waiting() -> None:
    devices = [known("a", "committed"), known("b")]
    seen = [has("a", seen_s=BEGUN_S + 12), has("b", state=AppState.PENDING, held="held"), at("c", online=False)]
    assert step(row(stage=2), [*devices], seen, 12).rollout.stage == 3


def test_whoever_comes_long_after_a_stage_began_does_not_hold_it_open() -> None:
    in_time = known("b", reached_s=BEGUN_S + SILENCE_S)
    late = known("b", reached_s=BEGUN_S + SILENCE_S + 1)
    now_s = SILENCE_S + 20
    first = known("a", "committed")
    seen = [has("a", seen_s=BEGUN_S + now_s), at("b"), at("c", online=False)]
    assert step(row(stage=2), [first, in_time], seen, now_s).verdict.waits == "b to come to an end with it"
    assert step(row(stage=2), [first, late], seen, now_s).rollout.stage == 3


def test_it_reaches_as_many_as_the_stage_says_of_those_that_can_be_reached() -> None:
    seen = [at(f"pi-{n}") for n in range(5)] + [at("off", online=False), at("held", held="held")]
    first = step(row(), [], seen, 1)
    assert len(first.devices) == 1 and first.rollout.stage_s == BEGUN_S + 1
    (canary,) = first.devices
    second = step(row(stage=2, stage_s=BEGUN_S + 20), [canary.model_copy(update={"outcome": "committed"})], seen, 20)
    assert len(second.devices) == 2 and canary.device not in {each.device for each in second.devices}
    assert all(each.stage == 2 and each.reached_s == BEGUN_S + 20 for each in second.devices)
    every = step(row(stage=3), [], seen, 20)
    assert {each.device for each in every.devices} == {f"pi-{n}" for n in range(5)}


def test_a_fleet_that_shrank_below_its_stage_lets_nobody_in() -> None:
    devices = [known(name, "committed") for name in "abc"]
    seen = [has(name) for name in "abc"] + [at("d"), at("e"), at("f")]
    assert not step(row(stage=1), devices, seen, 3).devices


def test_a_stage_soaks_also_where_all_it_reached_failed_as_they_might() -> None:
    lenient = row(stage=2, stage_s=BEGUN_S + 20, plan={"gates": GATES.model_copy(update={"failures": 1.0})})
    devices = [known("a", "committed"), known("b", "failed", stage=2, ended_s=BEGUN_S + 21)]
    seen = [has("a", seen_s=BEGUN_S + 30), has("b", seen_s=BEGUN_S + 30), at("c", online=False)]
    assert step(lenient, devices, seen, 29).verdict.waits == "the end of its soak, 1 s"
    assert step(lenient, devices, seen, 30).rollout.stage == 3


def test_a_stage_begins_when_it_reaches_its_first_and_not_again_with_those_that_come_later() -> None:
    devices, seen = [known("a", "committed", stage=2)], [has("a"), at("b")]
    after = step(row(stage=2), devices, seen, 9)
    assert [each.device for each in after.devices] == ["b"] and after.rollout.stage_s == BEGUN_S


def test_it_asks_each_kind_of_hardware_early_the_commonest_first() -> None:
    seen = [at(f"a-{n}", hardware="a") for n in range(2)] + [at(f"b-{n}", hardware="b") for n in range(3)]
    seen += [at("c-0", hardware="c")]
    (canary,) = step(row(), [], seen, 1).devices
    assert canary.device.startswith("b-")
    more = step(row(stage=2), [canary.model_copy(update={"outcome": "committed"})], seen, 1).devices
    assert [each.device[0] for each in more] == ["a", "c"]


def test_outside_its_window_it_reaches_nobody_and_says_so() -> None:
    shut = row(plan={"window": Window(hours="09:00-10:00")})
    after = step(shut, [], [at()], 60)
    assert not after.devices and after.verdict.waits == "its window, 09:00-10:00 UTC"
    assert step(shut, [], [at()], 3600).devices
    # With nobody left to reach it does not wait for its window.
    done = step(shut, [known(outcome="committed")], [has(seen_s=BEGUN_S + 20)], 20)
    assert done.rollout.stage == 2


# ---------------------------------------------------------------- gates


def test_a_failed_device_stops_it_at_once_and_a_figure_when_the_stage_has_soaked() -> None:
    device = known("a", "committed")
    failed = [device, known("b", "failed", reason="it crashed")]
    assert step(row(stage=2), failed, [has("a"), has("b")], 3).rollout.state is RolloutState.ROLLED_BACK
    slow = has("a", seen_s=BEGUN_S + 12, stats={"p95_ms": 300.0, "delays": 1000})
    strict = row(plan={"gates": GATES.model_copy(update={"p95_ms": 200.0})})
    assert not step(strict, [device], [slow, at("b")], 11).changed
    stopped = step(strict, [device], [slow, at("b")], 12)
    assert (stopped.rollout.state, stopped.rollout.ended_s) == (RolloutState.ROLLED_BACK, BEGUN_S + 12)
    assert stopped.rollout.reason == "p95 300 ms > 200 ms" and stopped.rollout.verdict.stage == 1
    # While one is on its way no figure decides.
    going = [device, known("b")]
    assert not step(replace(strict, stage=2), going, [slow, at("b"), at("c", online=False)], 12).changed
    halted = step(row(plan={"on_failure": "halt"}), failed, [has("a"), has("b")], 3)
    assert (halted.rollout.state, halted.rollout.ended_s) == (RolloutState.HALTED, None)


def test_figures_that_are_too_few_are_waited_for_one_more_soak() -> None:
    few = has("a", seen_s=BEGUN_S + 60, stats={"delays": 5, "frames": 5})
    usual = row(plan={"gates": GATES.model_copy(update={"errors": 0.02})})
    waits = step(usual, [known("a", "committed")], [few, at("b")], 21).verdict.waits
    assert waits == "more frames: errors not judged: 5 frames of the 30 it takes"
    assert step(usual, [known("a", "committed")], [few, at("b")], 22).rollout.stage == 2


def test_a_gate_that_was_asked_for_lets_nothing_pass_unjudged() -> None:
    device, ends_s = known("a", "committed"), 2 + SOAK_S + SILENCE_S
    few = has("a", seen_s=BEGUN_S + ends_s, stats={"p95_ms": 300.0, "delays": 5, "frames": 5})
    strict = row(plan={"gates": GATES.model_copy(update={"p95_ms": 200.0, "errors": 0.02})})
    waits = step(strict, [device], [few, at("b")], ends_s - 1).verdict.waits
    assert waits == "more frames: p95 not judged: 5 frames of the 100 it takes"
    halted = step(strict, [device], [few, at("b")], ends_s).rollout
    assert (halted.state, halted.ended_s, halted.stage) == (RolloutState.HALTED, None, 1)
    assert halted.reason == "p95 not judged: 5 frames of the 100 it takes"
    # A person may let it pass: that gate asks no more, the others do.
    went_on = controller.promote(halted, {"a": device}, [few, at("b")], BEGUN_S + ends_s + 1).rollout
    assert (went_on.state, went_on.stage) == (RolloutState.RUNNING, 2)
    assert (went_on.plan.gates.p95_ms, went_on.plan.gates.errors) == (None, 0.02)
    # With nobody to judge there is nothing to ask anybody.
    assert step(row(stage=3, plan={"gates": strict.plan.gates}), [], [], ends_s).rollout.state is RolloutState.COMPLETED


def test_only_figures_of_the_new_version_are_judged_against_those_of_the_one_before() -> None:
    figures = {"frames": 1000, "errors": 500}
    gates = row(plan={"gates": GATES.model_copy(update={"errors": 0.02})})

    def errors(devices: list[RolloutDevice], *seen: Observation) -> str:
        return next(each.words for each in step(gates, devices, list(seen), 5).verdict.gates if each.gate == "errors")

    committed, fine = known("a", "committed"), has("a", stats={"frames": 1000, "errors": 0})
    assert errors([committed], fine, at("b", stats=figures)) == "errors 0 % ≤ 35 % (33 % on the rest)"
    # Those on trial, or that were never told to run any version, are no side of it.
    assert errors([committed], fine, at("b", stats=figures, state=AppState.PROVISIONAL)) == "errors 0 % ≤ 2 %"
    assert errors([committed], fine, at("b", stats=figures, version=2)) == "errors 0 % ≤ 2 %"
    assert errors([committed, known("b")], fine, at("b", stats=figures)) == "errors 0 % ≤ 2 %"
    # Nor does a device count that has not committed, or whose figures are still those of the version before.
    assert errors([known("a")], at("a", stats=figures)).startswith("errors not judged: 0 frames")
    on_trial = has("a", stats=figures, state=AppState.PROVISIONAL)
    assert errors([known("a")], on_trial).startswith("errors not judged: 0 frames")
    assert errors([committed], at("a", stats=figures)).startswith("errors not judged: 0 frames")
    before = {"before": {"stats": {"frames": 1000, "errors": 500}}}
    itself = committed.model_copy(update={"evidence": before})
    assert errors([itself], fine) == "errors 0 % ≤ 35 % (33 % on the rest)"


def test_whoever_left_is_neither_counted_nor_judged() -> None:
    devices = [known("a", "committed"), known("gone", "failed", reason="it crashed")]
    assert step(row(), devices, [has("a")], 5).rollout.state is RolloutState.RUNNING


def test_one_that_does_not_run_decides_nothing() -> None:
    for state in (RolloutState.PAUSED, RolloutState.HALTED, RolloutState.COMPLETED, RolloutState.ROLLED_BACK):
        after = step(row(state=state), [known("a", "failed")], [has("a"), at("b")], 100)
        assert not after.changed and after.rollout.state is state


def test_a_person_lets_pass_what_halted_it_and_only_that() -> None:
    gates = GATES.model_copy(update={"errors": 0.02})
    devices = {"a": known("a", "failed", reason="it crashed")}
    halted = row(state=RolloutState.HALTED, plan={"gates": gates, "on_failure": "halt"}, reason="it crashed")
    after = controller.promote(halted, devices, [has("a"), at("b")], BEGUN_S + 5).rollout
    assert (after.state, after.stage, after.reason) == (RolloutState.RUNNING, 2, "")
    assert after.plan.gates == gates.model_copy(update={"failures": None})
    running = replace(halted, state=RolloutState.RUNNING)
    assert controller.promote(running, devices, [has("a"), at("b")], BEGUN_S + 5).rollout.plan.gates == gates


# ---------------------------------------------------------------- told


@pytest.mark.parametrize(
    ("seen", "before", "attempt"),
    [
        (at(), None, 0),
        (at(refused=(2,)), None, 1),
        (at(refused=(3,)), None, 0),
        (at(refused=(2,), attempt=4), None, 5),
        (at(refused=(2,), asked=6), None, 7),
        (has(state=AppState.ROLLED_BACK), None, 1),
        (at(state=AppState.ROLLED_BACK), None, 0),
        # It says nothing of the app: where the version is not new, it may have given it up.
        (Observation("pi", asked=0), None, 1),
        (Observation("pi", state=AppState.REMOVED, version=1, asked=2), None, 3),
        (Observation("pi"), None, 0),
        (at(), known(attempt=3), 3),
        (at(refused=(2,)), known(attempt=3), 3),
    ],
)
def test_what_was_given_up_is_asked_for_again(seen: Observation, before: RolloutDevice | None, attempt: int) -> None:
    made = told(row(stage=2), before, seen, BEGUN_S + 9)
    assert (made.attempt, made.stage, made.reached_s, made.outcome.value) == (attempt, 2, BEGUN_S + 9, "reached")


def test_what_a_device_was_like_before_is_remembered() -> None:
    stats = {"frames": 10, "errors": 1, "delays": 9, "p95_ms": 8.0, "confidence_mean": 0.7, "confidence_frames": 6}
    seen = at(stats=stats | {"fps": 5}, throttled=False)
    assert told(row(), None, seen, 0).evidence == {"before": {"version": 1, "throttled": False, "stats": stats}}
    on_trial = at(stats=stats, state=AppState.PROVISIONAL)
    assert "stats" not in told(row(), None, on_trial, 0).evidence["before"]
    assert "stats" not in told(row(), None, has(stats=stats), 0).evidence["before"]


def test_a_class_that_is_away_for_a_moment_keeps_its_place() -> None:
    """Whoever reports first after an outage of the cloud is not the whole fleet."""
    usual = [at(name, hardware="pc") for name in ("a", "b", "c")]
    away = at("slow", hardware="pi", online=False, seen_s=BEGUN_S + 1)
    wide = row(plan={"stages": ["2", "all"]})
    assert len(step(wide, [], [*usual, away], 2).devices) == 1
    canary = known("a", "committed")
    seen = [has("a", hardware="pc", seen_s=BEGUN_S + 50), *usual[1:], away]
    waits = step(wide, [canary], seen, 50)
    assert (waits.devices, waits.verdict.waits) == ([], "a device with pi, heard a moment ago")
    there = step(wide, [canary], [*seen[:-1], at("slow", hardware="pi")], 50)
    assert [each.device for each in there.devices] == ["slow"]
    # Not for ever, nor where a person holds it, nor once all are reached.
    for gone in (
        at("slow", hardware="pi", online=False, seen_s=BEGUN_S + 49 - SILENCE_S),
        at("slow", hardware="pi", online=False, held="line 4 is running"),
    ):
        assert len(step(wide, [canary], [*seen[:-1], gone], 50).devices) == 1
    assert len(step(replace(wide, stage=2), [canary], seen, 50).devices) == 2
