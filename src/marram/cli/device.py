"""`marram device`: the devices of a cloud."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._options import parsed
from marram.schema.device import Chosen, Device
from marram.schema.errors import Missing, Retryable
from marram.schema.units import format_rate, format_size, parse_duration

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List devices, show one, ask why.")
Id = Annotated[str, typer.Argument(help="The device's name.")]


@app.command("list")
def list_(
    labels: Annotated[str, typer.Argument(help="Only devices with these labels: site=shanghai.")] = "all",
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Every device: state, when it was last heard, apps, outbox."""
    with connect(url, token) as api:
        found = api.devices(labels)
    if json:
        print_json(found)
        return
    if not found:
        print("No devices yet. Make a token for one: marram token create" if labels == "all" else f"None has {labels}.")
        return
    rows = _show.table("device", "state", "heard", "apps", ">outbox", "labels", "machine")
    for device in found:
        depth = f"{device.reported.outbox_depth:,}" if device.reported else "–"
        machine = " ".join(part for part in (device.info.machine, _cores(device)) if part) or "–"
        rows.add_row(
            device.id,
            _show.state(device.state.value),
            _show.ago(device.seen_s),
            _show.plain(_show.device_apps(device)),
            depth,
            _show.labels(device.labels),
            _show.plain(machine),
        )
    _show.console().print(rows)


@app.command()
def show(id: Id, json: Json = False, url: Url = None, token: Token = None) -> None:
    """One device: what it should run, what it says it runs, its figures."""
    with connect(url, token) as api:
        device = api.device(id)
    if json:
        print_json(device)
        return
    out = _show.console()
    out.print(Text.assemble((device.id, "bold"), "  ", _show.state(device.state.value)))
    memory = format_size(device.info.memory_bytes) if device.info.memory_bytes else ""
    machine = ", ".join(p for p in (device.info.machine, device.info.system, _cores(device), memory) if p)
    facts = [("heard", _show.ago(device.seen_s)), ("joined", _show.ago(device.joined_s))]
    python = ", ".join(p for p in (f"Python {device.info.python}" if device.info.python else "", device.info.libc) if p)
    facts += [("machine", machine or "–"), ("marram", device.info.marram or "–"), ("platform", python or "–")]
    if device.reported:
        waiting = f"{device.reported.outbox_depth:,} events, {format_size(device.reported.outbox_bytes)}"
        facts += [("outbox", waiting + (f", {device.reported.dropped:,} given up" if device.reported.dropped else ""))]
        facts += [("memory", format_size(device.reported.memory_bytes))]
        facts += [("workers", device.reported.isolation or "–")]
        facts += [("held", device.reported.held.removeprefix("held "))] if device.reported.held else []
    rows = _show.table("", "")
    rows.show_header = False
    rows.add_row("labels", _show.labels(device.labels))
    for name, value in facts:
        rows.add_row(Text(name, style="dim"), _show.plain(value))
    out.print(rows)
    _show_apps(device)


def _show_apps(device: Device) -> None:
    out = _show.console()
    said = {app.name: app for app in device.reported.apps} if device.reported else {}
    wanted = {app.name: app.version for app in device.desired.apps}
    if not said and not wanted:
        out.print("No apps. Deploy one: marram deploy app.yaml --to all", markup=False)
    for name in sorted(wanted.keys() | said.keys()):
        app, version = said.get(name), wanted.get(name)
        should = "should not run" if version is None else f"should run {version}"
        if app is None:
            out.print(Text.assemble("\n", (name, "bold"), f"  {should}; it has not spoken of it yet"))
            continue
        head = Text.assemble("\n", (name, "bold"), f" {app.version}  ", _show.state(app.state.value))
        if version != app.version:
            head.append(f"  {should}", style="yellow")
        out.print(head)
        if app.reason:
            out.print(Text("  ").append_text(_show.plain(app.reason, 2000)))
        rows = _show.table("", "")
        rows.show_header = False
        for key, value in sorted(app.stats.items()):
            if value or key in _TOLD:
                rows.add_row(Text(f"  {_show.plain(key)}", style="dim"), _show.plain(_figure(key, value), 1000))
        if app.restarts:
            rows.add_row(Text("  restarts", style="dim"), str(app.restarts))
        out.print(rows)
        for each in app.chosen:
            _show.print_chosen(each, indent="  ")


@app.command()
def bench(
    id: Id,
    model: Annotated[str | None, typer.Argument(help="Of one model only.")] = None,
    timeout: Annotated[str, typer.Option(help="How long to wait for the figures.")] = "2 min",
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Have a device time the variants of its models anew; the best one then runs there."""
    ends_s = time.monotonic() + parsed(parse_duration, timeout, "--timeout")
    with connect(url, token) as api:
        before = {c.model: c.measured_s for c in _chosen(api.device(id), model)}
        if not before:
            what = f'{id} runs no model "{model}"' if model else f"{id} runs no model"
            raise Missing(what, hint=f"What it runs: marram device show {id}")
        api.bench(id, model)
        while True:
            found = _chosen(api.device(id), model)
            if found and all(c.measured_s is not None and c.measured_s != before.get(c.model) for c in found):
                break
            if time.monotonic() > ends_s:
                raise Retryable(f"{id} has not told its figures yet", hint=f"Look later: marram device show {id}")
            time.sleep(0.3)
    if json:
        print_json(found)
        return
    for each in found:
        _show.print_chosen(each)


def _chosen(device: Device, model: str | None) -> list[Chosen]:
    apps = device.reported.apps if device.reported else []
    found = {c.model: c for app in apps for c in app.chosen if model in (None, c.model.partition("@")[0])}
    return list(found.values())


@app.command()
def why(id: Id, json: Json = False, url: Url = None, token: Token = None) -> None:
    """Why a device runs what it runs: one cause for each app, the evidence, and what to type next."""
    with connect(url, token) as api:
        answer = api.why(id)
    if json:
        print_json(answer)
        return
    out = _show.console()
    if answer.sentence:
        out.print(_show.plain(answer.sentence, 500))
        if answer.next:
            out.print(Text(f"  {answer.next}", style="dim"))
    if not answer.apps and not answer.sentence:
        out.print(f"{id} runs nothing, and nothing is deployed to it: marram deploy app.yaml --to all", markup=False)
    for number, app_ in enumerate(answer.apps):
        if number or answer.sentence:
            out.print()
        out.print(_show.plain(app_.sentence, 1000))
        for line in app_.lines:
            # Beside the times: what wraps must not look like a line of its own.
            row = Table.grid(padding=(0, 2, 0, 1))
            row.add_row(Text(_show.clock(line.time_s), style="dim"), _show.plain(line.text, 500))
            out.print(row)
        if advice := " ".join(part for part in (app_.after, app_.next and f"→ {app_.next}") if part):
            out.print(_show.plain(advice, 500))


@app.command()
def remove(
    id: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Revoke a device: it is cut off at once and cannot come back without a new token. Its events stay."""
    with connect(url, token) as api:
        api.device(id)
        if not yes:
            typer.confirm(f"Revoke {id}? Events still waiting on it will not come", abort=True)
        api.remove_device(id)
    print(f"{id} is revoked; what it delivered stays")


def _cores(device: Device) -> str:
    return f"{device.info.cores} core{'s' if device.info.cores != 1 else ''}" if device.info.cores else ""


# Of all figures that a worker counts, those whose 0 says something. `--json` has every one.
_TOLD = ("frames", "fps", "errors")


def _figure(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("_ms"):
            return f"{value:.1f} ms"
        if key.endswith("_bit_s"):
            return format_rate(value)
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:.3g}"
    return str(value)
