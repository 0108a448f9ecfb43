"""How the demo looks: a live table on a terminal, plain lines anywhere else. It shows; it never decides or measures."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.terminal_theme import MONOKAI
from rich.text import Text

from marram.lab.demo_device import Reading
from marram.schema.errors import Permanent
from marram.schema.units import format_duration, format_rate

_PLAIN_EVERY_S = 15.0
# Where there is no terminal, what takes long says so this often: a log that stands still looks like a demo that does.
STILL_EVERY_S = 5.0


class Still:
    """Says again, every few seconds, what is being waited for, until told to stop; in a thread of its own.

    Whoever waits may be deep in a computation that reports nothing.
    """

    def __init__(self, say: Callable[[str], None], every_s: float) -> None:
        self._say, self._every_s = say, every_s
        self._name, self._what = "", ""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def waits(self, name: str, what: str) -> None:
        """Said at once where `name` is new, and from then on the newest words every few seconds."""
        self._what = what
        if name == self._name:
            return
        self.stop()
        self._name, self._over = name, threading.Event()
        self._say(f"{name:<9} {what} …")
        self._thread = threading.Thread(target=self._go_on, name="still", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """It came, or will not come; any number of times."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._name, self._thread = "", None

    def _go_on(self) -> None:
        begun_s = time.monotonic()
        while not self._over.wait(self._every_s):
            self._say(f"{self._name:<9} {self._what} … ({format_duration(round(time.monotonic() - begun_s))})")


class View:
    """Lines that stay, and below them one table that changes. `no_color` turns colours off, not the layout."""

    def __init__(self, *, no_color: bool = False, picture: Path | None = None) -> None:
        out = Console(highlight=False, no_color=no_color or None, record=picture is not None)
        self._live_terminal = out.is_terminal
        if not self._live_terminal:
            out = Console(highlight=False, no_color=picture is None, width=120, record=picture is not None)
        self.out, self._picture = out, picture
        self._live: Live | None = None
        self._plain_due_s = 0.0
        # Past the console, which would keep these lines for the picture.
        self._still = Still(lambda line: print(line, file=out.file, flush=True), STILL_EVERY_S)

    def say(self, line: str, style: str = "") -> None:
        """A line that stays."""
        self._still.stop()
        self.out.print(Text.from_markup(line) if not style else Text(line, style=style), soft_wrap=True)

    def step(self, name: str, what: str) -> None:
        """One step of setting up: `cloud     console http://…`."""
        self._still.stop()
        self.out.print(Text(f"{name:<9} ", style="bold").append(what, style="not bold"), soft_wrap=True)

    def wait(self, name: str, what: str) -> None:
        """What is being waited for: gone with the next line on a terminal, said every few seconds anywhere else."""
        if self._live_terminal:
            self._show(Text(f"{name:<9} {what} …", style="dim"))
        else:
            self._still.waits(name, what)

    def table(self, readings: Sequence[Reading], note: str = "") -> None:
        """The devices now."""
        if self._live_terminal:
            self._show(Group(Text(""), devices(readings), Text(note, style="dim")))
        elif time.monotonic() >= self._plain_due_s:
            self._plain_due_s = time.monotonic() + _PLAIN_EVERY_S
            self.out.print()
            self.out.print(devices(readings))

    def done(self) -> None:
        """End the changing part and leave nothing of it. Any number of times."""
        self._still.stop()
        if self._live is not None:
            self._live.update(Text(""), refresh=True)
            self._live.stop()
            self._live = None

    def final(self, table: RenderableType) -> None:
        """What stays at the end."""
        self.done()
        self.out.print(table)

    def save(self) -> None:
        """Write what was shown as a picture (SVG), where one was asked for. Raises Permanent."""
        if self._picture is None:
            return
        svg = self.out.export_svg(title="marram demo", theme=MONOKAI, font_aspect_ratio=0.61)
        # Rich's picture asks a font of a server elsewhere; any monospaced one does.
        svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
        try:
            self._picture.write_text(svg, encoding="utf-8")
        except OSError as error:
            raise Permanent(f"cannot write it: {error.strerror}", where=str(self._picture)) from error

    def _show(self, what: RenderableType) -> None:
        if self._live is None:
            self._live = Live(what, console=self.out, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(what, refresh=True)


def devices(readings: Sequence[Reading]) -> Table:
    """The table of the live view."""
    rows = _table(
        "device", "link", ">frames/s", ">edge", ">cloud", ">p50", ">p95", ">all-edge", ">all-cloud", ">outbox"
    )
    for reading in readings:
        stats = reading.stats
        rows.add_row(
            reading.name,
            _link(reading.link),
            f"{stats['fps']:.1f}" if stats.get("fps") else "-",
            *_shares(stats.get("edge", 0), stats.get("cloud", 0)),
            *(milliseconds(stats.get(k)) for k in ("p50_ms", "p95_ms", "always_edge_p50_ms", "always_cloud_p50_ms")),
            f"{reading.waiting:,}",
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> Table:
    """The table that stays: the figures of the JSON."""
    table = _table("device", ">frames", ">edge", ">cloud", ">p50", ">p95", ">all-edge", ">all-cloud", ">while away")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['frames']:,}",
            *_shares(row["edge"], row["cloud"]),
            *(milliseconds(row[k]) for k in ("p50_ms", "p95_ms", "always_edge_p50_ms", "always_cloud_p50_ms")),
            f"{row['results_during_outage']:,}",
        )
    return table


def milliseconds(value: float | None) -> str:
    """24.13 -> `24 ms`; None -> `-`."""
    return "-" if value is None else f"{value:.0f} ms"


def _shares(edge: int, cloud: int) -> tuple[str, str]:
    placed = edge + cloud
    return (f"{edge / placed:.0%}", f"{cloud / placed:.0%}") if placed else ("-", "-")


def _link(link: dict[str, Any]) -> Text:
    if not link:
        return Text("-")
    if link["cut"]:
        return Text("✂ cut", style="red")
    return Text(f"{format_rate(link['up_bit_s'])} {link['rtt_s'] * 1000:.0f} ms")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column[0] == ">" else "left", no_wrap=True)
    return table
