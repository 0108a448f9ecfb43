"""`marram rollout`, `device why`, and a deployment followed by its stages: what a person reads, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.fleet import Terminal
from tests.rollout.fleet import APP, SimDevice, text

from marram.bus.http import CloudApi
from marram.cli import _follow, _plan, _show, rollout
from marram.schema.errors import Invalid
from marram.schema.rollout import DeviceOutcome, GateVerdict, Plan, RolloutState, Verdict
from marram.schema.rollout_view import RolloutDeviceView, RolloutView, StageView
from marram.schema.why import Why, WhyApp, WhyLine

World = Callable[..., list[SimDevice]]


@pytest.fixture
def world(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> World:
    """Devices that live on whenever a command waits: `world(3, fate="crash")`; version 1 runs there."""
    state = marram_.served.state
    devices: list[SimDevice] = []

    def tick(_: float = 0.0) -> None:
        for device in devices:
            desired = state.store.states.desired(device.name)
            wanted = next((app.version for app in desired.apps if app.name == APP), None)
            device.live(wanted, desired.attempts.get(APP, 0))
            state.store.states.report(device.name, device.report(desired.version, 0.0))
        if state.rollout.rollouts.advance_all():
            state.rollout.refresh()

    monkeypatch.setattr(_follow.time, "sleep", tick)

    def make(size: int, fate: str = "good") -> list[SimDevice]:
        for n in range(size):
            devices.append(SimDevice(f"pi-{n}", fate={2: fate}, takes=1))
            marram_.served.add_device(f"pi-{n}")
        marram_("deploy", page(1), "--to", "all", "--detach")
        tick()
        tick()
        return devices

    folder = Path(str(state.scratch))

    def page(version: int) -> str:
        file = folder / "gate.yaml"
        file.write_text(text(version))
        return str(file)

    make.page = page  # type: ignore[attr-defined]
    make.tick = tick  # type: ignore[attr-defined]
    return make


def test_a_deployment_is_followed_through_its_stages(marram_: Terminal, world: Any) -> None:
    world(3)
    shown = marram_("deploy", world.page(2), "--to", "all", "--soak", "0s")
    assert "rollout 2 · gate 2 → 3 devices, 1 → 10% → all" in shown
    assert "stage 1 of 3: 1 of 3 devices" in shown and "promoting" in shown
    assert "failed 0 of 1 ✓" in shown and "completed: gate 2 on 3 of 3" in shown
    assert not shown.startswith("\n") and "\n completed" not in shown  # said once, and nothing empty above
    # Again: nothing to do, and it says so.
    assert "rollout 2 · gate 2 → 3 devices, as before" in marram_("deploy", world.page(2), "--to", "all", "--detach")
    listed = marram_("rollout", "list")
    assert "completed" in listed and "3 of 3" in listed
    assert marram_.json("rollout", "list", "--app", "nothing") == []


def test_a_bad_one_is_taken_back_and_says_why(marram_: Terminal, world: Any) -> None:
    world(3, "crash")
    fault = marram_.fault("deploy", world.page(2), "--to", "all", "--soak", "0s")
    assert fault.startswith("rollout 2 was rolled back in stage 1: failed 1 of 1: pi-")
    assert "marram rollout show 2" in fault
    world.tick()
    shown = marram_("rollout", "show", "2")
    assert "rolled back" in shown and "it crashed" in shown and "failed" in shown
    (tried,) = [d["device"] for d in marram_.json("rollout", "show", "2")["devices"] if d["outcome"] == "failed"]
    why = marram_("device", "why", tried)
    assert f"{tried} runs gate 1, not 2: 2 was tried here and failed (it crashed)" in why
    assert "rollout 2, stage 1, reached it: gate 2" in why and "→ marram rollout show 2" in why
    assert "cannot be tried again" in marram_.fault("rollout", "retry", "2", tried)


def test_a_person_halts_promotes_retries_pauses_and_aborts(marram_: Terminal, world: Any) -> None:
    devices = world(3, "crash")
    fault = marram_.fault("deploy", world.page(2), "--to", "all", "--soak", "0s", "--halt")
    assert "halted in stage 1" in fault and "marram rollout promote 2" in fault
    refused = marram_.fault("rollout", "pause", "2")
    assert "is halted and cannot be paused. marram rollout promote 2 goes on all the same, abort 2 brings" in refused
    assert "rollout 2 is running" in marram_("rollout", "promote", "2")
    assert "rollout 2 is paused, stage 2 of 3" in marram_("rollout", "pause", "2")
    (tried,) = [d.name for d in devices if 2 in d.refused]
    for device in devices:
        device.fate = {}
    assert f"{tried} tries gate 2 again" in marram_("rollout", "retry", "2", tried)
    assert "rollout 2 is running" in marram_("rollout", "resume", "2")
    assert "completed: gate 2 on 3 of 3" in marram_("rollout", "follow", "2")
    assert f"{tried} has gate 2 committed: there is nothing to try again" in marram_.fault(
        "rollout", "retry", "2", tried
    )
    assert "is completed and cannot be paused" in marram_.fault("rollout", "pause", "2")
    marram_("deploy", world.page(3), "--to", "all", "--detach")
    assert "rollout 3 is aborted" in marram_("rollout", "abort", "3")
    assert "no rollout 9" in marram_.fault("rollout", "show", "9")


def test_stopping_to_follow_stops_nothing_else(marram_: Terminal, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world(3)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_follow.time, "sleep", interrupted)
    shown = marram_("deploy", world.page(2), "--to", "all", status=130)
    assert "Rollout 2 goes on by itself: marram rollout follow 2" in shown
    assert marram_.json("rollout", "show", "2")["state"] == "running"
    assert "goes on by itself" in marram_("deploy", world.page(3), "--to", "all", "--timeout", "0.001 ms")


def test_now_goes_to_all_at_once(marram_: Terminal, world: Any) -> None:
    world(3)
    marram_("deploy", world.page(2), "--to", "all", "--now", "--detach")
    assert {d["desired"]["apps"][0]["version"] for d in marram_.json("device", "list")} == {2}
    first = marram_("rollout", "show", "1")
    assert "none: newer deployments decide" in first and "outcome" not in first
    assert "Leave the other options out" in marram_.fault("deploy", world.page(2), "--to", "all", "--now", "--halt")


def test_why_says_what_is_wrong_with_the_device_first(marram_: Terminal) -> None:
    marram_.served.add_device("pi-1")
    assert "pi-1 joined and was never heard." in marram_("device", "why", "pi-1")
    assert "no device" in marram_.fault("device", "why", "pi-2")
    assert marram_.json("device", "why", "pi-1")["apps"] == []


@pytest.mark.parametrize(
    ("typed", "plan"),
    [
        (_plan.Typed(), None),
        (_plan.Typed(stages="1, 10 %,all"), {"stages": ["1", "10 %", "all"]}),
        (_plan.Typed(soak="2 min", silence="1 h"), {"soak_s": 120.0, "silence_s": 3600.0}),
        (
            _plan.Typed(gates=("p95=150ms", "p95=2x", "errors=5 %", "silent=off", "throttling=off", "temperature=80C")),
            {"gates": {"p95_ms": 150.0, "p95_ratio": 2.0, "errors": 0.05, "silent": None, "throttling": False,
                       "temperature_c": 80.0}},
        ),
        (_plan.Typed(gates=("confidence=0.05", "disagreement=3%", "failures=10%")),
         {"gates": {"confidence_shift": 0.05, "disagreement": 0.03, "failures": 0.1}}),
        (_plan.Typed(window="22:00-05:00", zone="Asia/Shanghai", days="Saturday, sun"),
         {"window": {"hours": "22:00-05:00", "zone": "Asia/Shanghai", "days": ["sat", "sun"]}}),
        (_plan.Typed(halt=True), {"on_failure": "halt"}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_typed_of_a_plan(typed: _plan.Typed, plan: dict[str, Any] | None) -> None:
    assert _plan.plan_of(typed) == plan
    if plan is not None:
        Plan.model_validate(plan)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (_plan.Typed(stages="1,10%"), '--stages: the last stage is "all"'),
        (_plan.Typed(stages="some,all"), '"some" is no stage'),
        (_plan.Typed(soak="30"), "--soak"),
        (_plan.Typed(now=True, soak="30 s"), "--now: goes to all at once, without gates"),
        (_plan.Typed(gates=("p59=150ms",)), 'did you mean "p95"'),
        (_plan.Typed(gates=("p95",)), '"p95" is not a gate'),
        (_plan.Typed(gates=("errors=200%",)), "--gate errors"),
        (_plan.Typed(gates=("errors=2",)), "--gate errors"),
        (_plan.Typed(gates=("temperature=hot",)), "write 80C"),
        (_plan.Typed(gates=("throttling=maybe",)), "neither on nor off"),
        (_plan.Typed(zone="UTC"), "belongs to a --window"),
        (_plan.Typed(window="25:00-26:00"), '--window: "25:00-26:00" is no window. Write 22:00-05:00'),
        (_plan.Typed(window="22:00-05:00", days="sat,funday"), '--days: "sat,funday" are no days. Write sat,sun.'),
    ],
    ids=str,
)
def test_what_is_typed_wrong_names_the_option(typed: _plan.Typed, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        _plan.plan_of(typed)
    assert words in str(caught.value)


def test_a_long_reason_is_one_line_of_the_table_of_devices(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "ValueError: " + "on and on " * 30
    device = RolloutDeviceView(device="pi-0", stage=1, outcome=DeviceOutcome.FAILED, reason=reason)
    view = RolloutView(
        id=2, app=APP, version=2, state=RolloutState.ROLLED_BACK, stage=1, plan=Plan(), created_s=1.0, matching=1,
        devices=[device],
    )  # fmt: skip
    rollout._show_one(view)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "on and on" in line]
    assert line.startswith("pi-0") and line.rstrip().endswith("…")


GATES = [
    GateVerdict(gate="failures", passed=True, words="failed 0 of 1", figures={"share": 0.0}),
    GateVerdict(gate="silent", passed=True, words="silent 0 of 1 (at most 1 %)", figures={"share": 0.0}),
    GateVerdict(gate="p95_ratio", passed=True, words="p95 compared: no device to compare with"),
    GateVerdict(gate="disagreement", passed=None, words="disagreement not judged: 3 frames", figures={"frames": 3}),
]


def test_a_gate_that_compared_nothing_is_not_ticked() -> None:
    line = _follow.gates_line(GATES, Console(force_terminal=False, width=40), "promoting").plain
    assert line == (
        " gates     failed 0 of 1 ✓   silent 0 of 1 (at most 1 %) ✓   p95 compared: no device to compare with, "
        "not judged –   disagreement not judged: 3 frames –   promoting"
    )


def test_on_a_terminal_a_line_of_gates_ends_between_two_of_them() -> None:
    lines = _follow.gates_line(GATES, Console(force_terminal=True, width=80), "promoting").plain.splitlines()
    assert lines == [
        " gates     failed 0 of 1 ✓   silent 0 of 1 (at most 1 %) ✓",
        "           p95 compared: no device to compare with, not judged –",
        "           disagreement not judged: 3 frames –   promoting",
    ]


def test_a_failure_is_told_once_where_it_halts() -> None:
    devices = [RolloutDeviceView(device="pi-0", stage=1, outcome=DeviceOutcome.FAILED, reason="it crashed")]
    view = RolloutView(
        id=2, app=APP, version=2, state=RolloutState.HALTED, stage=1, stages=[StageView(stage="all", goal=1)],
        plan=Plan(), created_s=1.0, matching=1, devices=devices, last=Verdict(stage=1, gates=GATES[:1]),
    )  # fmt: skip
    lines = [line.plain for line in _follow.Progress(Console(force_terminal=False)).take(view)]
    assert len([line for line in lines if "it crashed" in line]) == 1


def test_stages_that_went_by_between_two_looks_are_told_too() -> None:
    stages = [StageView(stage=stage, goal=goal) for stage, goal in (("1", 1), ("10%", 2), ("all", 2))]
    devices = [RolloutDeviceView(device="pi-0", stage=2, outcome=DeviceOutcome.COMMITTED)]
    view = RolloutView(
        id=2, app=APP, version=2, state=RolloutState.COMPLETED, stage=3, stages=stages, plan=Plan(), created_s=1.0,
        matching=1, devices=devices, last=Verdict(stage=3, gates=GATES[:1]),
    )  # fmt: skip
    lines = [line.plain for line in _follow.Progress(Console(force_terminal=False)).take(view)]
    assert lines == [" stage 3   pi-0 committed", " gates     failed 0 of 1 ✓   completed"]


def test_one_that_goes_at_once_and_failed_says_so_in_the_list(marram_: Terminal, world: Any) -> None:
    world(2, fate="crash")
    marram_("deploy", world.page(2), "--to", "all", "--now", status=2)
    assert "rolled back on 2 of 2" in marram_("rollout", "list")


def test_why_keeps_a_long_line_beside_its_time(monkeypatch: pytest.MonkeyPatch, marram_: Terminal) -> None:
    evidence = WhyLine(time_s=1.0, text="word " * 40)
    app = WhyApp(app=APP, cause="running", sentence="pi-0 runs gate 1.", lines=[evidence])
    marram_.served.add_device("pi-0")
    monkeypatch.setattr(CloudApi, "why", lambda self, name: Why(device="pi-0", apps=[app]))
    monkeypatch.setattr(_show, "console", lambda **_: Console(width=60))
    shown = [line for line in marram_("device", "why", "pi-0").splitlines() if "word" in line]
    assert len(shown) > 2
    begins = shown[0].index("word")
    assert all(line.index("word") == begins for line in shown)
