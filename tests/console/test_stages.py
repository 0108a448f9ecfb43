"""Rollouts on the page: how far each stage is, what gates said, who made trouble, and nothing that could run."""

from __future__ import annotations

import re
from typing import Any

from marram.console import stages
from marram.schema.rollout import DeviceOutcome, GateVerdict, Plan, RolloutState
from marram.schema.rollout_view import RolloutDeviceView, RolloutView, StageView


def words(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def view(**more: Any) -> RolloutView:
    devices = [
        RolloutDeviceView(device="pi-1", stage=1, outcome=DeviceOutcome.COMMITTED),
        RolloutDeviceView(device="pi-2", stage=2, outcome=DeviceOutcome.FAILED, reason="it <b>crashed</b>"),
        RolloutDeviceView(device="pi-3", stage=2, outcome=DeviceOutcome.REACHED),
    ]
    known: dict[str, Any] = {
        "id": 12, "app": "gate", "version": 3, "before": [2], "state": RolloutState.RUNNING, "stage": 2,
        "stages": [StageView(stage="1", goal=1), StageView(stage="10%", goal=5), StageView(stage="all", goal=48)],
        "plan": Plan(), "created_s": 1.0, "matching": 48, "devices": devices, "waits": "pi-3 to come to an end with it",
        "gates": [GateVerdict(gate="failures", passed=False, words="failed 1 of 3"),
                  GateVerdict(gate="p95_ms", passed=True, words="p95 138 ms ≤ 150 ms", figures={"p95_ms": 138}),
                  GateVerdict(gate="errors", passed=None, words="errors not judged")],
        "counts": {DeviceOutcome.COMMITTED: 1, DeviceOutcome.FAILED: 1, DeviceOutcome.REACHED: 1},
    }  # fmt: skip
    return RolloutView.model_validate(known | more)


def test_a_rollout_shows_its_stages_its_gates_and_who_made_trouble() -> None:
    card = stages.rollouts([view()])
    shown = words(card)
    assert "gate 2 → 3 running rollout 12 · all devices" in shown
    assert "1 · 1 of 48" in shown and "10% · 5 of 48" in shown and "all · 48 of 48" in shown
    assert 'aria-label="stage 2, 10%: 0 committed, 1 failed, 1 on their way, of 4"' in card
    assert card.count('class="stage now"') == 1
    assert "failed 1 of 3 ✗" in shown and "p95 138 ms ≤ 150 ms ✓" in shown and "errors not judged –" in shown
    assert "waits for pi-3 to come to an end with it" in shown
    assert "marram device why pi-2" in shown and "1 reached · 1 committed · 1 failed" in shown


def test_what_devices_and_people_wrote_is_text() -> None:
    nasty = '<script>alert(1)</script>"'
    made = view(reason=nasty, waits=nasty, selector={"site": nasty}, gates=[
        GateVerdict(gate=nasty, passed=False, words=nasty)
    ])  # fmt: skip
    card = stages.rollouts([made])
    assert "<script" not in card and "<b>crashed" not in card and "it &lt;b&gt;crashed" in card


def test_no_rollouts_are_no_section_and_one_without_devices_says_so() -> None:
    assert stages.rollouts([]) == ""
    empty = view(matching=0, devices=[], counts={}, gates=[], waits="", state=RolloutState.COMPLETED)
    assert "no device matches yet" in stages.rollouts([empty]) and 'class="stages"' not in stages.rollouts([empty])


def test_a_stage_that_had_nobody_further_to_reach_is_done() -> None:
    goals = [StageView(stage="1", goal=1), StageView(stage="10%", goal=2), StageView(stage="all", goal=2)]
    each = RolloutDeviceView(device="pi", stage=1, outcome=DeviceOutcome.COMMITTED)
    made = view(
        state=RolloutState.COMPLETED, ended_s=2.0, stages=goals, matching=2,
        devices=[each, each.model_copy(update={"device": "po", "stage": 2})],
    )  # fmt: skip
    assert stages.rollouts([made]).count('<i class="done" style="width:100.0%">') == 3
