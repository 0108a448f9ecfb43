"""Rollouts as HTML: how far each stage is, what the gates say, and which devices made trouble. Pure, as `draw`.

Everything that came from a device or a person passes `escape`.
"""

from __future__ import annotations

import time
from html import escape

from marram.schema.rollout import DeviceOutcome, GateVerdict, RolloutState
from marram.schema.rollout_view import RolloutDeviceView, RolloutView
from marram.schema.units import format_duration

# So many devices are named on a card.
_NAMED = 6
_SHADES = {
    RolloutState.COMPLETED: "ok",
    RolloutState.ROLLED_BACK: "bad",
    RolloutState.HALTED: "bad",
    RolloutState.ABORTED: "bad",
    RolloutState.PAUSED: "sample",
}
_TROUBLE = (DeviceOutcome.FAILED, DeviceOutcome.SILENT)


def rollouts(views: list[RolloutView]) -> str:
    """The rollouts that are under way or ended lately; "" where there are none."""
    return "".join(_rollout(view) for view in views)


def _rollout(view: RolloutView) -> str:
    who = ", ".join(f"{key}={value}" for key, value in sorted(view.selector.items())) or "all devices"
    before = f"{', '.join(map(str, view.before))} → " if view.before else ""
    head = (
        f"<header><h2>{escape(view.app)} {before}{view.version}</h2>"
        f'<span class="chip {_SHADES.get(view.state, "message")}" data-figure="state">'
        f"{escape(view.state.value.replace('_', ' '))}</span>"
        f'<span class="heard">rollout {view.id} · {escape(who[:120])} · {_ago(view.created_s)}</span></header>'
    )
    body = _stages(view) + _gates(view.gates)
    if view.reason:
        shade = "waits" if view.state in (RolloutState.SUPERSEDED, RolloutState.PAUSED) else "fault"
        body += f'<p class="{shade}">{escape(view.reason[:400])}</p>'
    if view.waits:
        body += f'<p class="waits">waits for {escape(view.waits[:300])}</p>'
    return f'<article class="card rollout" data-rollout="{view.id}">{head}{body}{_devices(view)}</article>'


def _stages(view: RolloutView) -> str:
    """A bar for each stage: how many of its devices committed, failed, or are on their way."""
    if not view.matching or view.state is RolloutState.SUPERSEDED:
        return ""
    parts = []
    below = 0
    for number, stage in enumerate(view.stages, 1):
        here = [device for device in view.devices if device.stage == number]
        size = max(stage.goal - below, 1)
        done = sum(device.outcome is DeviceOutcome.COMMITTED for device in here)
        bad = sum(device.outcome in _TROUBLE for device in here)
        going = sum(device.outcome is DeviceOutcome.REACHED for device in here)
        if view.state is RolloutState.COMPLETED and len(view.stages) == 1:
            done = view.counts.get(DeviceOutcome.COMMITTED, 0)
            bad = sum(view.counts.get(outcome, 0) for outcome in _TROUBLE)
            going = 0
        if stage.goal <= below and view.state is RolloutState.COMPLETED:
            done, size = 1, 1  # it had nobody further to reach
        now = " now" if number == view.stage and view.ended_s is None else ""
        bars = "".join(
            f'<i class="{shade}" style="width:{min(100.0, 100 * count / size):.1f}%"></i>'
            for shade, count in (("done", done), ("bad", bad), ("going", going))
            if count
        )
        words = f"stage {number}, {stage.stage}: {done} committed, {bad} failed, {going} on their way, of {size}"
        parts.append(
            f'<div class="stage{now}" title="{escape(words, quote=True)}" role="img" '
            f'aria-label="{escape(words, quote=True)}"><div class="track">{bars}</div>'
            f"<span>{escape(stage.stage)} · {stage.goal:,} of {view.matching:,}</span></div>"
        )
        below = stage.goal
    return f'<div class="stages">{"".join(parts)}</div>'


def _gates(gates: list[GateVerdict]) -> str:
    if not gates:
        return ""
    return '<div class="gates">' + "".join(_gate(gate) for gate in gates) + "</div>"


def _gate(gate: GateVerdict) -> str:
    sign, shade = ("–", "") if gate.judged is None else ("✓", "ok") if gate.judged else ("✗", "bad")
    name = escape(gate.gate, quote=True)
    return f'<span class="chip {shade}" data-gate="{name}">{escape(gate.said[:160])} {sign}</span>'


def _devices(view: RolloutView) -> str:
    """Those that made trouble, each with the way to its whole story."""
    bad = [device for device in view.devices if device.outcome in _TROUBLE]
    rows = "".join(_device(device) for device in bad[:_NAMED])
    more = f'<p class="waits">and {len(bad) - _NAMED:,} more</p>' if len(bad) > _NAMED else ""
    counts = " · ".join(
        f"{view.counts[outcome]:,} {outcome.value}" for outcome in DeviceOutcome if view.counts.get(outcome)
    )
    return f"{rows}{more}<footer><span>{counts or 'no device matches yet'}</span></footer>"


def _device(device: RolloutDeviceView) -> str:
    reason = f": {escape(device.reason[:200])}" if device.reason else ""
    return (
        f'<p class="trouble"><b>{escape(device.device)}</b> {device.outcome.value}{reason} '
        f"<code>marram device why {escape(device.device)}</code></p>"
    )


def _ago(then_s: float) -> str:
    past_s = max(1, round(time.time() - then_s))
    return f"{past_s // 86400} days ago" if past_s >= 2 * 86400 else f"{format_duration(past_s)} ago"
