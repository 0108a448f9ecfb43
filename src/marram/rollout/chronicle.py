"""What happened to one app on one device, line by line: the rollouts' decisions and the device's own journal, in order.

A device's clock may be wrong or jump, so its entries stand in the order in which it made them, at the cloud's times:
the device's, moved by what its clock is off, but never later than they were heard nor earlier than the one before.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from marram.schema.device import AppState, Device
from marram.schema.journal import Entry, What
from marram.schema.rollout import RolloutDevice, RolloutState
from marram.schema.why import WhyLine
from marram.store import RolloutRow

MOST_LINES = 20
# A reason of more characters (an exception, often) is said whole once.
_LONG = 60
# Steps of one version that follow each other so soon stand on one line.
_TOGETHER_S = 10.0
_STEPS = {
    AppState.PENDING: "told to run {version}",
    AppState.FETCHED: "fetched",
    AppState.VERIFIED: "verified",
    AppState.PROVISIONAL: "started on trial",
    AppState.COMMITTED: "committed",
    AppState.REMOVED: "removed",
}


@dataclass(frozen=True, slots=True)
class Noted:
    """One entry of a device's journal; `stream` and `sequence` are its place in the device's own order."""

    stream: str
    sequence: int
    received_s: float
    entry: Entry


def chronicle(
    app: str,
    journal: Sequence[Noted],
    rollouts: dict[int, RolloutRow],
    history: dict[int, RolloutDevice],
    device: Device,
) -> list[WhyLine]:
    """The lines, oldest first, the newest `MOST_LINES` of them."""
    lines: list[WhyLine] = []
    told = {noted.entry.reason for noted in journal}  # what the device says itself is said once
    for number, mine in history.items():
        rollout = rollouts.get(number)
        if rollout is None:
            continue
        if mine.reached_s is not None:
            again = f" again (attempt {mine.attempt})" if mine.attempt else ""
            where = f", stage {mine.stage}," if len(rollout.plan.stages) > 1 else ""
            lines.append(
                WhyLine(
                    time_s=mine.reached_s, text=f"rollout {number}{where} reached it{again}: {app} {rollout.version}"
                )
            )
        if mine.ended_s is not None and mine.reason and mine.reason not in told:
            lines.append(
                WhyLine(time_s=mine.ended_s, text=f"rollout {number} counts it as {mine.outcome.value}: {mine.reason}")
            )
        if rollout.ended_s is not None and mine.reached_s is not None and rollout.state is not RolloutState.COMPLETED:
            words = rollout.state.value.replace("_", " ")
            because = f": {rollout.reason}" if rollout.reason else ""
            lines.append(WhyLine(time_s=rollout.ended_s, text=f"rollout {number} {words}{because}"))
    # Of what comes at the same time, the cloud's decision was first.
    lines += _journal_lines(app, journal, device)
    lines = sorted(lines, key=lambda line: line.time_s)[-MOST_LINES:]
    return _once(lines, told | {mine.reason for mine in history.values()} | {each.reason for each in rollouts.values()})


def _once(lines: Iterable[WhyLine], reasons: Iterable[str]) -> list[WhyLine]:
    """The lines, each long reason whole the first time and only begun after that."""
    long = sorted({reason for reason in reasons if len(reason) > _LONG}, key=lambda reason: (len(reason), reason))
    said: set[str] = set()
    found = []
    for line in lines:
        text = line.text
        for reason in long:
            if reason in text and reason in said:
                text = text.replace(reason, reason[:_LONG].rstrip() + "…")
            elif reason in text:
                said.add(reason)
        found.append(line.model_copy(update={"text": text}))
    return found


def _journal_lines(app: str, journal: Iterable[Noted], device: Device) -> list[WhyLine]:
    lines: list[WhyLine] = []
    last: Entry | None = None
    for time_s, entry in timed(journal, device):
        words = _words(app, entry)
        if not words:
            continue
        joins = (
            last is not None
            and last.what is What.MOVED
            and entry.what is What.MOVED
            and last.version == entry.version
            and entry.to not in (AppState.ROLLED_BACK, AppState.PENDING)
            and time_s - lines[-1].time_s <= _TOGETHER_S
        )
        if joins:
            lines[-1] = WhyLine(time_s=lines[-1].time_s, text=f"{lines[-1].text}, {words}")
        else:
            lines.append(WhyLine(time_s=time_s, text=words))
        last = entry
    return lines


def timed(journal: Iterable[Noted], device: Device) -> list[tuple[float, Entry]]:
    """Each entry once, in the device's order, with its time on the cloud's clock."""
    seen: set[str] = set()
    order: list[Noted] = []
    begun: dict[str, float] = {}
    entries = list(journal)
    for noted in entries:  # an outbox that was made anew begins a new stream, after the one before
        begun[noted.stream] = min(noted.received_s, begun.get(noted.stream, noted.received_s))
    for noted in sorted(entries, key=lambda each: (begun[each.stream], each.stream, each.sequence)):
        if noted.entry.id and noted.entry.id in seen:
            continue
        seen.add(noted.entry.id)
        order.append(noted)
    off_s = _off_s(device)
    found: list[tuple[float, Entry]] = []
    before_s = device.joined_s
    for noted in order:
        at_s = min(noted.received_s, max(before_s, noted.entry.time_s + off_s))
        # A clock that was set since (it began at 1970) says nothing: then only the order is known.
        before_s = at_s
        found.append((at_s, noted.entry))
    return found


def _off_s(device: Device) -> float:
    """By how much the device's clock is behind the cloud's, from its last report."""
    if device.reported is None or device.seen_s is None or not device.reported.time_s:
        return 0.0
    return device.seen_s - device.reported.time_s


def _words(app: str, entry: Entry) -> str:
    """One entry in words; "" where another line says it already."""
    version, reason = entry.version, f": {entry.reason}" if entry.reason else ""
    if entry.what is What.MOVED and entry.to is not None:
        if entry.to is AppState.ROLLED_BACK:
            return f"{version} rolled back{reason}"
        if entry.to is AppState.COMMITTED and entry.origin is not AppState.PROVISIONAL:
            return f"back on {version}"  # proven here before, and not tried again
        step = _STEPS[entry.to].format(version=version)
        return step + (reason if entry.to is AppState.COMMITTED else "")
    if entry.what is What.GATE:
        return "" if entry.evidence.get("passed") else f"{version} broke its gate{reason}"
    return {
        What.RETRY: f"asked to try {version} again",
        What.UNTRUSTED: f"did not believe what it was sent{reason}",
        What.AILING: f"{version} waits for the device{reason}",
        What.CRASH: f"{version} stopped by itself{reason}",
        What.HOLD: f"held at the device{reason}",
        What.RELEASE: f"no longer held{reason}",
    }.get(entry.what, "")
