"""A rollout followed as it goes: a line for each stage and what its gates said, as they are decided.

What it says is a pure function of what it has seen (`Progress`); `follow` does the asking and the showing. Whoever
stops following stops nothing else: the cloud goes on by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from marram.bus.http import CloudApi
from marram.cli import _show
from marram.schema.errors import Permanent, Retryable
from marram.schema.rollout import DeviceOutcome, GateVerdict, RolloutState
from marram.schema.rollout_view import RolloutDeviceView, RolloutView
from marram.schema.units import format_duration

_LOOK_S = 0.4
OPEN = (RolloutState.RUNNING, RolloutState.PAUSED)
_STYLES = {
    RolloutState.COMPLETED: "green",
    RolloutState.ROLLED_BACK: "red",
    RolloutState.HALTED: "red",
    RolloutState.ABORTED: "yellow",
    RolloutState.PAUSED: "yellow",
}
_ENDS = {
    DeviceOutcome.COMMITTED: "green",
    DeviceOutcome.FAILED: "red",
    DeviceOutcome.SILENT: "red",
    DeviceOutcome.REACHED: "cyan",
    DeviceOutcome.WAITING: "dim",
}


def title(view: RolloutView) -> Text:
    """`rollout 12 · gate-camera 3 → 48 devices, 1 → 10% → all`."""
    devices = f"{view.matching} device{'s' if view.matching != 1 else ''}"
    stages = " → ".join(stage.stage for stage in view.stages)
    return Text.assemble((f"rollout {view.id} · {view.app} {view.version} → {devices}", "bold"), f", {stages}")


def state(view: RolloutView) -> Text:
    return Text(view.state.value.replace("_", " "), style=_STYLES.get(view.state, "cyan"))


def gates_line(gates: Iterable[GateVerdict], out: Console, then: str = "") -> Text:
    """` gates     failed 0 of 1 ✓   p95 138 ms ≤ 150 ms ✓   promoting`.

    On a terminal a line ends between two gates; anywhere else it is one line, for whoever searches it.
    """
    phrases = []
    for gate in gates:
        sign, style = ("–", "dim") if gate.judged is None else ("✓", "green") if gate.judged else ("✗", "red")
        phrases.append(_show.plain(gate.said, 200).append(f" {sign}", style=style))
    if then:
        phrases.append(Text(then, style="dim"))
    lines = [Text(" gates     ")]
    begins = lines[0].cell_len
    for phrase in phrases:
        line = lines[-1]
        if line.cell_len > begins:
            if out.is_terminal and line.cell_len + 3 + phrase.cell_len > out.width:
                lines.append(line := Text(" " * begins))
            else:
                line.append("   ")
        line.append_text(phrase)
    return Text("\n").join(lines)


def devices_line(devices: list[RolloutDeviceView]) -> Text:
    """`pi-7f3a committed 2.8 s, pi-91c2 failed`, or `4 committed, 1 failed` of many."""
    if len(devices) <= 3:
        parts = []
        for device in devices:
            took = ""
            if device.reached_s is not None and device.ended_s is not None:
                took = f" {format_duration(max(0.001, device.ended_s - device.reached_s))}"
            word = device.outcome.value
            if device.outcome is DeviceOutcome.REACHED and device.state is not None and device.version is not None:
                word = device.state.value.replace("_", " ")
            parts.append(Text.assemble(f"{device.device} ", (word, _ENDS[device.outcome]), took))
        return Text(", ").join(parts)
    outcomes = [device.outcome for device in devices]
    counted = [(outcome, outcomes.count(outcome)) for outcome in DeviceOutcome if outcome in outcomes]
    return Text(", ").join(Text.assemble(f"{count} ", (outcome.value, _ENDS[outcome])) for outcome, count in counted)


class Progress:
    """What has been told already. `take` returns the lines that a new look adds."""

    def __init__(self, out: Console) -> None:
        """`out`: where it is told. Where that is no terminal, nothing shows the devices meanwhile: each is told too."""
        self._out = out
        self._every_device = not out.is_terminal
        self._stage = 0
        self._told: set[tuple[str, DeviceOutcome]] = set()
        self._state: RolloutState | None = None
        self._passed = 0

    def take(self, view: RolloutView) -> list[Text]:
        lines: list[Text] = []
        ended = view.state not in (*OPEN, RolloutState.HALTED)
        last = view.last.stage
        if last > self._passed and (last < view.stage or view.state not in OPEN):
            lines += self._left(view, self._passed, last)
            self._passed = last
        if self._every_device and not ended:
            lines += self._devices(view)
        if view.state is not self._state:
            # How it ended is for `verdict` to say.
            if view.state is RolloutState.PAUSED or (self._state is not None and view.state in OPEN):
                lines.append(Text.assemble(" ", state(view), f": {view.reason}" if view.reason else ""))
            self._state = view.state
        return lines

    def _left(self, view: RolloutView, told: int, stage: int) -> list[Text]:
        """A stage that is over, and any that went by since `told` was: who was in it, and what the gates said."""
        here = [device for device in view.devices if told < device.stage <= stage]
        lines = [Text(f" stage {stage:<3} ").append_text(devices_line(here))] if here else []
        for device in here:
            if device.outcome in (DeviceOutcome.FAILED, DeviceOutcome.SILENT) and device.reason:
                self._told.add((device.device, device.outcome))
                lines.append(Text(f"   {device.device}: ").append_text(_show.plain(device.reason, 300)))
        follows = "promoting" if view.state in OPEN else view.state.value.replace("_", " ")
        if view.last.gates:
            lines.append(gates_line(view.last.gates, self._out, follows))
        return lines

    def _devices(self, view: RolloutView) -> list[Text]:
        lines = []
        if view.stage != self._stage and view.stages:
            goal = view.stages[view.stage - 1].goal
            lines.append(Text(f" stage {view.stage} of {len(view.stages)}: {goal} of {view.matching} devices"))
            self._stage = view.stage
        for device in view.devices:
            key = (device.device, device.outcome)
            if device.outcome is DeviceOutcome.WAITING or key in self._told:
                continue
            self._told.add(key)
            reason = f": {device.reason}" if device.reason else ""
            line = Text.assemble(f"   {device.device} ", (device.outcome.value, _ENDS[device.outcome]))
            lines.append(line.append_text(_show.plain(reason, 300)))
        return lines


def picture(view: RolloutView, out: Console) -> RenderableType:
    """The stage it is in, as it is now."""
    here = [device for device in view.devices if device.stage == view.stage]
    lines: list[RenderableType] = [
        Text(f" stage {view.stage:<3} ").append_text(devices_line(here) if here else Text("–"))
    ]
    if view.gates:
        lines.append(gates_line(view.gates, out))
    if view.waits:
        lines.append(Text(f" waits for {view.waits}", style="dim"))
    return Group(*lines)


def follow(api: CloudApi, id: int, out: Console, wait_s: float | None = None) -> RolloutView:
    """Show the rollout until it is over or a person has to decide, or `wait_s` passed; its last look.

    Ctrl-C is passed on, after saying that the rollout goes on.
    """
    ends_s = None if wait_s is None else time.monotonic() + wait_s
    progress = Progress(out)
    view = api.rollout(id)
    try:
        with Live(Text(""), console=out, auto_refresh=False, transient=True) as live:
            while True:
                for line in progress.take(view):
                    live.console.print(line, soft_wrap=True)
                if view.state not in OPEN or (ends_s is not None and time.monotonic() > ends_s):
                    return view
                if out.is_terminal:
                    live.update(picture(view, out), refresh=True)
                time.sleep(_LOOK_S)
                try:
                    view = api.rollout(id)
                except Retryable:
                    continue  # a cloud that restarts goes on with it; it is looked at again
    except KeyboardInterrupt:
        out.print(f"Rollout {id} goes on by itself: marram rollout follow {id}   (or pause, abort)", markup=False)
        raise


def verdict(view: RolloutView) -> str:
    """The last line of one that went well. Raises Permanent where it did not."""
    if view.state is RolloutState.ROLLED_BACK:
        raise Permanent(
            f"rollout {view.id} was rolled back in stage {view.stage}: {view.reason}",
            hint=f"Every device goes back to what it had: marram rollout show {view.id}",
        )
    if view.state is RolloutState.HALTED:
        raise Permanent(
            f"rollout {view.id} halted in stage {view.stage}: {view.reason}",
            hint=f"marram rollout promote {view.id} goes on all the same, abort {view.id} brings everybody back",
        )
    done = view.counts.get(DeviceOutcome.COMMITTED, 0)
    words = {
        RolloutState.COMPLETED: f"completed: {view.app} {view.version} on {done} of {view.matching}"
        + ("" if done == view.matching else "; the others get it when they come"),
        RolloutState.ABORTED: f"rollout {view.id} was aborted; every device goes back to what it had",
        RolloutState.SUPERSEDED: f"rollout {view.id} ends here: {view.reason}",
    }
    return words.get(view.state, f"rollout {view.id} goes on by itself: marram rollout follow {view.id}")
