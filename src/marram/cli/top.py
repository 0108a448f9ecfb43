"""`marram top`: the fleet, live: where each device's inferences run, how long they take, how its link is."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from marram.bus.http import CloudApi
from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._options import parsed
from marram.schema.api import Status
from marram.schema.device import Device, ReportedApp
from marram.schema.errors import Retryable
from marram.schema.figures import figure_of
from marram.schema.units import format_rate, parse_duration

app = typer.Typer(add_completion=False)


@app.command(help="Watch the fleet live.")
def top(
    labels: Annotated[str, typer.Argument(help="Only devices with these labels: site=shanghai.")] = "all",
    every: Annotated[str, typer.Option(help="How often to ask.")] = "1 s",
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Watch the fleet live; Ctrl-C ends it."""
    every_s = max(0.2, parsed(parse_duration, every, "--every"))
    with connect(url, token) as api:
        if json:
            print_json(api.devices(labels))
            return
        out = _show.console()
        first = _page(api, labels, out.width)
        if once or not out.is_terminal:
            out.print(first)
            return
        with Live(first, console=out, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                try:
                    live.update(_page(api, labels, out.width), refresh=True)
                except Retryable as error:
                    # The cloud may be restarting: say so and keep looking.
                    live.update(Text(str(error), style="red"), refresh=True)


_COLUMNS = (
    "device", "state", "app", "link", ">frames/s", ">edge", ">cloud", ">p50", ">p95", ">all-edge", ">all-cloud",
    ">outbox",
)  # fmt: skip
# On a terminal narrower than this the first to go are these.
_WIDE = 110
_DISPENSABLE = (">frames/s", ">all-edge", ">all-cloud")


def _page(api: CloudApi, labels: str, width: int) -> RenderableType:
    return page(api.devices(labels), api.status(), width)


def page(devices: list[Device], status: Status, width: int = _WIDE) -> RenderableType:
    """The whole picture as one table and a line of totals, for a terminal of `width` columns."""
    shown = [number for number, name in enumerate(_COLUMNS) if width >= _WIDE or name not in _DISPENSABLE]
    rows = _show.table(*(_COLUMNS[number] for number in shown))
    for device in devices:
        apps: list[ReportedApp | None] = [*device.reported.apps] if device.reported else []
        for row, item in enumerate(apps or [None]):
            cells = _row(device, item, first=row == 0)
            rows.add_row(*(cells[number] for number in shown), style=None if _show.online(device) else "dim")
    checks = [check for check in status.checks if not check.ok]
    totals = Text(
        f"\n{status.online} of {status.devices} devices online · {status.events:,} events stored · "
        f"{status.samples:,} samples",
        style="dim",
    )
    for check in checks:
        totals.append(f"\n{check.name}: {check.detail}", style="red")
    for words in status.warnings:
        totals.append("\n").append_text(_show.plain(words)).stylize("yellow", -len(words))
    if not devices:
        return Group(Text("No devices yet. Make a token for one: marram token create"), totals)
    return Group(rows, totals)


def _row(device: Device, item: ReportedApp | None, *, first: bool) -> list[str | Text]:
    name: str | Text = device.id if first else ""
    state: str | Text = _show.state(device.state.value) if first else ""
    outbox = f"{device.reported.outbox_depth:,}" if device.reported and first else ""
    if item is None:
        return [name, state, Text("no app", style="dim"), *["–"] * 8, outbox]
    stats = item.stats
    fps = figure_of(stats, "fps")
    label = Text(f"{item.name} {item.version}")
    if item.state.value != "committed":
        label.append(" ").append_text(_show.state(item.state.value))
    errors = figure_of(stats, "errors")
    if errors and not figure_of(stats, "frames"):  # it runs, and answers nothing: why is in `marram device show`
        label.append(f" {errors:,.0f} errors", style="red")
    return [
        name,
        state,
        label,
        link(stats),
        "–" if fps is None else f"{fps:.1f}",
        *_show.shares(stats),
        _show.milliseconds(figure_of(stats, "p50_ms")),
        _show.milliseconds(figure_of(stats, "p95_ms")),
        _show.milliseconds(figure_of(stats, "always_edge_p50_ms")),
        _show.milliseconds(figure_of(stats, "always_cloud_p50_ms")),
        outbox,
    ]


def link(stats: dict[str, Any]) -> Text:
    """`6.1 Mbit/s 48 ms`; `down` where placement sees it so."""
    if stats.get("link_up") is False:
        return Text("down", style="red")
    rate, rtt = figure_of(stats, "link_rate_bit_s"), figure_of(stats, "link_rtt_ms")
    parts = [format_rate(rate)] if rate is not None else []
    parts += [f"{rtt:.0f} ms"] if rtt is not None else []
    return Text(" ".join(parts) or "–")
