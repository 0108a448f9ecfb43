"""Rollouts as rows, on both databases: whole transactions, compare and set, what holds for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marram.schema.device import DesiredApp, DeviceInfo, Reported
from marram.schema.errors import Missing
from marram.schema.model import Manifest
from marram.schema.rollout import DeviceOutcome, GateVerdict, Plan, RolloutDevice, RolloutState, Verdict
from marram.store import DeploymentRow, Store, auditing

NOTHING = Manifest(files=[])


def device(name: str, outcome: DeviceOutcome = DeviceOutcome.REACHED, **more: object) -> RolloutDevice:
    return RolloutDevice.model_validate({"device": name, "stage": 1, "outcome": outcome, "reached_s": 5.0, **more})


def test_what_is_put_in_comes_out(store: Store) -> None:
    made = store.rollouts.start("gate", 3, {"site": "x"}, Plan(stages=["2", "all"]), now_s=7.0)
    assert store.rollouts.get(made.id) == made and made.state is RolloutState.RUNNING
    assert store.deployments.list("gate") == [DeploymentRow(made.id, "gate", 3, {"site": "x"}, 7.0)]
    verdict = Verdict(stage=1, gates=[GateVerdict(gate="p95_ms", passed=None, words="too few", figures={"n": 3})])
    after = replace(made, stage=2, stage_s=9.0, verdict=verdict, reason="because")
    one = device("pi", evidence={"before": {"version": 2, "stats": {"p95_ms": 1.5}}}, attempt=2, reason="r")
    assert store.rollouts.save(made, after, [one])
    assert store.rollouts.get(made.id) == replace(after, revision=2)
    assert store.rollouts.devices(made.id) == {"pi": one}
    assert store.rollouts.history("pi") == [(replace(after, revision=2), one)]
    assert store.rollouts.history("pi", "other") == [] == store.rollouts.history("po")
    with pytest.raises(Missing, match="no rollout 99"):
        store.rollouts.get(99)


def test_of_two_who_decide_at_once_one_wins_whole(store: Store) -> None:
    made = store.rollouts.start("gate", 1, {}, Plan())
    assert store.rollouts.save(made, replace(made, stage=2), [device("pi")])
    with auditing("rollout:1", "rollout.advance", "gate 1"):
        assert not store.rollouts.save(made, replace(made, stage=3), [device("pi", stage=3), device("po")])
    assert store.audit.list() == []  # what came too late is nobody's act
    assert store.rollouts.get(made.id).stage == 2
    assert store.rollouts.devices(made.id) == {"pi": device("pi")}


def test_a_newer_one_ends_those_it_covers_and_no_other(store: Store) -> None:
    wide = store.rollouts.start("gate", 1, {}, Plan())
    narrow = store.rollouts.start("gate", 2, {"site": "x", "line": "1"}, Plan())
    other = store.rollouts.start("lamp", 1, {"site": "x"}, Plan())
    done = store.rollouts.start("gate", 9, {"site": "x", "line": "2"}, Plan(), state=RolloutState.COMPLETED)
    newest = store.rollouts.start("gate", 3, {"site": "x"}, Plan())
    states = {row.id: row.state.value for row in store.rollouts.all()}
    assert states == {
        wide.id: "running",
        narrow.id: "superseded",
        other.id: "running",
        done.id: "completed",
        newest.id: "running",
    }
    # Whoever decided from what it read before has lost.
    assert not store.rollouts.save(narrow, replace(narrow, stage=2))
    assert [row.id for row in store.rollouts.open()] == [newest.id, other.id, wide.id]
    assert [row.id for row in store.rollouts.all("gate", 2)] == [newest.id, done.id]


def test_what_holds_for_whom(store: Store) -> None:
    old = store.deployments.add("gate", 1, {})
    # Whom a superseded one had reached goes on with it, until a newer one comes there.
    over = store.rollouts.start("gate", 3, {}, Plan())
    store.rollouts.save(over, replace(over, state=RolloutState.SUPERSEDED), [device("pi")])
    given_up = store.rollouts.start("gate", 4, {"site": "x"}, Plan())
    store.rollouts.save(given_up, replace(given_up, state=RolloutState.ABORTED), [device("pi")])
    running = store.rollouts.start("gate", 2, {}, Plan())
    store.rollouts.save(running, running, [device("pi"), device("po", DeviceOutcome.WAITING)])
    dead = store.rollouts.start("lamp", 1, {}, Plan())
    store.rollouts.save(dead, replace(dead, state=RolloutState.ROLLED_BACK), [device("pi")])
    done = store.rollouts.start("lamp", 2, {}, Plan(), state=RolloutState.COMPLETED)
    found = {each.deployment.id: each for each in store.rollouts.standings()}
    assert list(found) == [done.id, running.id, over.id, old.id]
    holds = {id: (each.holds_for("pi"), each.holds_for("po")) for id, each in found.items()}
    reached_one = (True, False)
    assert holds == {done.id: (True, True), running.id: reached_one, over.id: reached_one, old.id: (True, True)}


def test_attempts_are_the_most_that_anybody_asked_for(store: Store) -> None:
    for attempt in (2, 3, 1):
        row = store.rollouts.start("gate", attempt, {}, Plan())
        store.rollouts.save(row, row, [device("pi", attempt=attempt), device("po")])
    assert store.rollouts.attempts() == {"pi": {"gate": 3}}


def test_desired_states_of_many_change_together_and_only_where_they_differ(store: Store) -> None:
    app = DesiredApp(name="gate", version=1, files=NOTHING)
    for name in ("a", "b"):
        store.devices.add(name, {}, DeviceInfo())
    wanted = {"a": ([app], {"gate": 1}), "b": ([app], dict[str, int]()), "ghost": ([app], dict[str, int]())}
    assert store.states.desire_many(wanted) == ["a", "b"]
    assert store.states.desire_many(wanted) == []
    first = store.states.desired("a")
    assert (first.version, first.attempts) == (1, {"gate": 1})
    # Another attempt is a change; the same again is none, however it is written.
    assert store.states.desire("a", [app], {"gate": 2}) is not None
    assert store.states.desired_texts()["a"] == store.states.desired("a").model_dump_json()
    assert store.states.desire("a", [app], {"gate": 2}) is None


def test_a_sighting_is_the_last_report_and_when_it_came(store: Store) -> None:
    store.devices.add("pi", {"site": "x"}, DeviceInfo(machine="aarch64", cores=4), now_s=1.0)
    (new,) = store.states.sightings(now_s=100.0)
    assert (new.said, new.seen_s, new.state.value) == (None, None, "new")
    store.states.report("pi", Reported(held="held"), now_s=95.0)
    (seen,) = store.states.sightings("pi", now_s=100.0)
    assert (seen.labels, seen.info["cores"], seen.state.value, seen.seen_s) == ({"site": "x"}, 4, "online", 95.0)
    assert seen.said is not None and seen.said["held"] == "held"
    assert store.states.sightings("po") == []
