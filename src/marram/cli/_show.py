"""How the commands show things: tables, times, shares, events. What a device sent is made harmless before printing."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from marram.schema.api import EventView
from marram.schema.device import Chosen, Device, DeviceState
from marram.schema.figures import figure_of
from marram.schema.units import format_duration, format_size

STATE_STYLES = {
    "online": "green", "offline": "red", "new": "yellow",
    "committed": "green", "rolled_back": "red", "removed": "dim", "failed": "red", "silent": "red",
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """Standard output (or error). Not a terminal: plain text, as wide as it takes."""
    out = Console(highlight=False, stderr=stderr)
    return out if out.is_terminal else Console(highlight=False, stderr=stderr, width=200, no_color=True)


def table(*columns: str) -> Table:
    """A table without lines; a column whose name starts with `>` stands right. The first is kept whole."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        side: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        made.add_column(column.removeprefix(">"), justify=side, overflow="fold", no_wrap=number == 0)
    return made


def plain(value: object, longest: int = 200) -> Text:
    """Text from afar, unable to move the cursor or colour anything; control characters become �."""
    text = str(value)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return Text("".join(c if c.isprintable() else "�" for c in text))


def state(name: str) -> Text:
    return Text(name.replace("_", " "), style=STATE_STYLES.get(name, "cyan"))


def labels(pairs: dict[str, str]) -> Text:
    return plain(" ".join(f"{key}={value}" for key, value in sorted(pairs.items())) or "–")


def ago(then_s: float | None, now_s: float | None = None) -> str:
    """`12 s ago`; a time in the future (clocks differ) is `now`."""
    if then_s is None:
        return "never"
    past_s = (time.time() if now_s is None else now_s) - then_s
    if past_s < 1:
        return "now"
    if past_s >= 2 * 86400:
        return f"{past_s / 86400:.0f} days ago"
    return f"{format_duration(round(past_s))} ago"


def clock(time_s: float) -> str:
    """Local time of day; with the date where it is not today. A wild clock prints as it is."""
    try:
        when = datetime.fromtimestamp(time_s)
    except (OverflowError, ValueError, OSError):
        return f"{time_s:g}"
    return when.strftime("%H:%M:%S" if when.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S")


def milliseconds(value_ms: float | None) -> str:
    return "–" if value_ms is None else f"{value_ms:.0f} ms"


def shares(stats: dict[str, Any]) -> tuple[str, str]:
    """Edge and cloud share of the inferences placed, as `31 %`; dashes before the first."""
    edge, cloud = figure_of(stats, "edge") or 0.0, figure_of(stats, "cloud") or 0.0
    total = edge + cloud
    return (f"{100 * edge / total:.0f} %", f"{100 * cloud / total:.0f} %") if total else ("–", "–")


def answer(event: EventView) -> str:
    """What an event says, on one line: the result and where it came from, an alert's condition, a message's topic."""
    data = event.data
    inner = data.get("result")
    result: dict[str, Any] = inner if isinstance(inner, dict) else data
    words: list[str] = []
    if event.kind.value == "deployment":
        way = " → ".join(str(data[end]) for end in ("from", "to") if data.get(end))
        told = (f"version {data['version']}" if data.get("version") else "", way or str(data.get("what", "")))
        return "  ".join(filter(None, (*told, str(data.get("reason", "")))))
    if event.kind.value == "message" and "topic" in data:
        words += [str(data["topic"]), str(data.get("payload", ""))]
    # A result's own `reason` tells why it was placed there: for `--json`, not for a line.
    for key in ("condition", "state", "reason") if event.kind.value != "result" else ():
        if isinstance(data.get(key), str) and data[key]:
            words.append(data[key])
    words += _result_words(result)
    place = data.get("place")
    if isinstance(place, str):
        words.append(f"at the {place}" if place == "edge" else f"in the {place}" if place == "cloud" else place)
    latency = figure_of(data, "latency_ms")
    if latency is not None:
        words.append(f"{latency:.0f} ms")
    if not words:
        words = [f"{key}={value}" for key, value in data.items()]
    return "  ".join(words)


def _result_words(result: dict[str, Any]) -> list[str]:
    words: list[str] = []
    found = result.get("detections")
    if isinstance(found, list):
        names = [str(d.get("label")) for d in found if isinstance(d, dict)]
        counted = {name: names.count(name) for name in dict.fromkeys(names)}
        words.append(", ".join(f"{n} × {name}" for name, n in counted.items()) or "nothing found")
    elif result.get("label") is not None:
        words.append(str(result["label"]))
    if (confidence := figure_of(result, "confidence")) is not None:
        words.append(f"{confidence:.2f}")
    if (value := figure_of(result, "value")) is not None:
        words.append(f"{value:g} {result.get('unit') or ''}".strip())
    if (score := figure_of(result, "score")) is not None:
        threshold = figure_of(result, "threshold")
        words.append(f"score {score:.3g}" + (f" of {threshold:.3g}" if threshold is not None else ""))
    return words


def print_chosen(chosen: Chosen, indent: str = "") -> None:
    """A model's variants as they were measured on a device, the one that runs marked."""
    out = console()
    out.print(Text.assemble(indent, plain(chosen.model), "  ", chosen.variant, "  (", plain(chosen.why, 1000), ")"))
    if not chosen.measured:
        return
    rows = table("", "variant", ">p50", ">p95", ">load", ">memory", ">accuracy", "")
    for each in chosen.measured:

        def ms(value: float | None) -> str:
            if value is None:
                return "–"
            return f"{value:.3g} ms" if value < 999.5 else f"{value / 1e3:.3g} s"

        memory = "–" if each.memory_bytes is None else format_size(each.memory_bytes)
        accuracy = "–" if each.accuracy is None else f"{each.accuracy:.3f}"
        mark = f"{indent}→" if each.variant == chosen.variant else indent
        rows.add_row(mark, each.variant, ms(each.p50_ms), ms(each.p95_ms), ms(each.load_ms), memory, accuracy,
                     plain(each.fault, 300))  # fmt: skip
    out.print(rows)


def device_apps(device: Device) -> str:
    """`gate-camera 3` for each app it runs; `→ 4` where it should run another version."""
    wanted = {app.name: app.version for app in device.desired.apps}
    said = {app.name: app for app in device.reported.apps} if device.reported else {}
    parts = []
    for name in sorted(wanted.keys() | said.keys()):
        has, wants = said.get(name), wanted.get(name)
        part = name if has is None else f"{name} {has.version}"
        if wants is not None and (has is None or has.version != wants):
            part += f" → {wants}"
        if has is not None and has.state.value not in ("committed", "provisional"):
            part += f" ({has.state.value.replace('_', ' ')})"
        parts.append(part)
    return ", ".join(parts) or "–"


def online(device: Device) -> bool:
    return device.state is DeviceState.ONLINE
