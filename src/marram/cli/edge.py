"""`marram edge`: join this machine to a cloud as a device, run it, ask how it is."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from marram.cli import _show
from marram.cli._install import install, uninstall
from marram.cli._options import parsed
from marram.edge import hold as holding
from marram.edge.join import check_broker
from marram.edge.join import join as join_cloud
from marram.edge.measuring import measure_here
from marram.edge.state import Folder
from marram.edge.status import ask
from marram.schema import paths
from marram.schema.errors import Invalid
from marram.schema.ids import parse_labels
from marram.schema.units import format_duration, format_size, parse_duration

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Join this machine to a cloud as a device, and run it."
)

app.command()(install)
app.command()(uninstall)

FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="The device's folder (default: $MARRAM_HOME/edge).", show_default=False)
]
BrokerOption = Annotated[
    list[str] | None,
    typer.Option("--broker", help="Broker address nats://HOST:PORT instead of the cloud's own.", show_default=False),
]


@app.command()
def join(
    url: Annotated[str, typer.Argument(help="The cloud's address, https://HOST:PORT.")],
    token: Annotated[
        str,
        typer.Argument(
            envvar="MARRAM_JOIN_TOKEN",
            help="A join token, from `marram token create` in the cloud. Other users of this machine can see what is "
            "typed here: - reads it from standard input.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The device's name (default: the cloud makes one).")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label key=value; any number of times. Those of the token stand.")
    ] = None,
    folder: FolderOption = None,
    broker: BrokerOption = None,
) -> None:
    """Join a cloud: the token becomes this device's identity, kept in its folder."""
    labels = parsed(parse_labels, ",".join(label or []), "--label")
    if token == "-":
        token = sys.stdin.readline().strip()
        if not token:
            raise Invalid("no token on standard input", where="TOKEN", hint="Pipe it in: marram edge join URL - < FILE")
    join_cloud(
        Folder(folder or paths.edge()),
        url,
        token,
        name=name,
        labels=labels,
        brokers=broker,
        tell=lambda done: print(f"✓ {done}", flush=True),
    )
    print("next: " + _run_it(folder))


@app.command()
def run(
    folder: FolderOption = None,
    broker: BrokerOption = None,
    report_every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between reports.")] = 2.0,
) -> None:
    """Run this device: its agent, and a worker process for each app. Ends clean on Ctrl-C or SIGTERM."""
    for address in broker or []:
        check_broker(address)
    place = str((folder or paths.edge()).absolute())
    arguments = [sys.executable, "-P", "-m", "marram.edge", place, str(report_every), *(broker or [])]
    # One arena, trimmed: threads that only wait for the disk need no heaps of their own.
    environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"} | os.environ
    sys.stdout.flush()
    # A fresh interpreter in this same process: the agent stays for months and needs nothing the command line loaded.
    os.execve(sys.executable, arguments, environment)


@app.command()
def hold(
    for_: Annotated[
        str | None, typer.Option("--for", help="How long: 2 h, 3 days. Without it, until it is released.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at the fleet.")] = "",
    folder: FolderOption = None,
) -> None:
    """Change nothing on this device for now: new versions wait. What runs runs on; what fails still goes back."""
    place = Folder(folder or paths.edge())
    place.credentials()
    for_s = None if for_ is None else parsed(parse_duration, for_, "--for")
    print(holding.hold(place, for_s, reason).words())
    print("release it: marram edge release" + (f" --folder {folder}" if folder else ""))


@app.command()
def release(folder: FolderOption = None) -> None:
    """End `marram edge hold`: what waited goes on."""
    place = Folder(folder or paths.edge())
    place.credentials()
    holding.release(place)
    print("released")


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="Of one model only.")] = None,
    folder: FolderOption = None,
) -> None:
    """Time the variants of the models on this device, those whose files are here; the next start runs the best one."""
    place = Folder(folder or paths.edge())
    place.credentials()
    for each in asyncio.run(measure_here(place, model)):
        _show.print_chosen(each)


@app.command()
def status(folder: FolderOption = None) -> None:
    """How the device on this machine is: its link, its apps, what waits for the cloud."""
    place = Folder(folder or paths.edge())
    credentials = place.credentials()
    console = Console(highlight=False)
    holder = place.holder()
    answer = ask(place.path) if holder is not None else None
    console.print(f"device   {credentials.device}  {place.path}")
    console.print(f"cloud    {credentials.cloud or '-'}  ({', '.join(credentials.brokers)})")
    if answer is None:
        said = f"is not running; start it: {_run_it(folder)}" if holder is None else f"{holder} does not answer"
        console.print(f"agent    {said}")
        for name, record in place.records().items():
            console.print(f"app      {name} {record.target.version}  {record.state}  {record.reason}", markup=False)
        return
    reported: dict[str, Any] = answer["reported"]
    rtt = f", round trip {format_duration(answer['rtt_s'])}" if answer.get("rtt_s") else ""
    up, memory = format_duration(reported["uptime_s"]), format_size(reported["memory_bytes"])
    console.print(f"agent    process {holder}, up {up}, {memory} with its workers")
    console.print(f"link     {answer['link']}{rtt}", markup=False)
    console.print(
        f"outbox   {reported['outbox_depth']:,} events wait ({format_size(reported['outbox_bytes'])}), "
        f"{reported['dropped']:,} given up"
    )
    if reported.get("held"):
        console.print(f"held     {reported['held'].removeprefix('held ')}", markup=False)
    console.print(f"workers  {reported.get('isolation') or '-'}", markup=False)
    rows = [(_row(each), _note(each)) for each in reported["apps"]]
    if console.width < _WIDE:
        for row, note in rows:
            console.print()
            for title, text in row.items():
                console.print(f"{title:<9}{text}", markup=False)
            if note:
                console.print(f"{'reason':<9}{note}", markup=False)
    elif rows:
        table = Table(box=None, pad_edge=False)
        for title in rows[0][0]:
            table.add_column(title, justify="left" if title in ("app", "state") else "right")
        for row, _ in rows:
            table.add_row(*row.values())
        console.print(table, markup=False)
        for row, note in rows:
            if note:
                console.print(f"{row['app']} {row['version']}: {note}", markup=False)


# Columns below which a table of apps would be cut to pieces.
_WIDE = 80


def _run_it(folder: Path | None) -> str:
    return "marram edge run" + (f" --folder {folder}" if folder else "")


def _note(app: dict[str, Any]) -> str:
    """What runs in the place of a version that does not, and why."""
    running = app.get("running")
    meanwhile = f"{running} runs meanwhile" if running not in (None, app["version"]) else ""
    return "; ".join(part for part in (meanwhile, app["reason"] or app["stats"].get("last_error", "")) if part)


def _row(app: dict[str, Any]) -> dict[str, str]:
    stats, p50 = app["stats"], app["stats"].get("p50_ms")
    return {
        "app": app["name"],
        "version": str(app["version"]),
        "state": app["state"].replace("_", " "),
        "frames": f"{stats.get('frames', 0):,}",
        "frames/s": f"{stats.get('fps', 0):.1f}",
        "p50": f"{p50:.1f} ms" if p50 is not None else "-",
        "errors": f"{stats.get('errors', 0):,}",
        "restarts": str(app["restarts"]),
    }
