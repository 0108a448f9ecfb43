"""`marram deploy`: bring an app to devices, and watch it arrive: at once the first time, by stages ever after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from marram.bus.http import CloudApi
from marram.cli import _follow, _show
from marram.cli._appfile import AppFile
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._options import parsed
from marram.cli._plan import Typed, plan_of
from marram.cli._shipping import check, files_of, send_files, send_models
from marram.schema.api import Deployment, DeviceApp
from marram.schema.device import AppState, DeviceState
from marram.schema.errors import Invalid, Permanent, Retryable
from marram.schema.ids import parse_labels
from marram.schema.rollout_view import RolloutView
from marram.schema.units import parse_duration

app = typer.Typer(add_completion=False)

_LOOK_S = 0.3
_AT_ONCE_S = 120.0
_ROAD = [AppState.PENDING, AppState.FETCHED, AppState.VERIFIED, AppState.PROVISIONAL, AppState.COMMITTED]


@app.command(help="Put an app on devices, and watch it arrive.")
def deploy(
    file: Annotated[Path | None, typer.Argument(help="The app file (YAML).")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Which devices: labels (site=shanghai,line=3) or all.")] = None,
    stages: Annotated[str | None, typer.Option(help="How far each stage goes: 1,10%,all.")] = None,
    soak: Annotated[str | None, typer.Option(help="How long a stage must keep to the gates: 30s.")] = None,
    silence: Annotated[str | None, typer.Option(help="A device that says nothing for so long failed: 10min.")] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="What must hold: p95=150ms, errors=2%, silent=1% …; NAME=off. Repeatable.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="Reach devices only then: 22:00-05:00.")] = None,
    zone: Annotated[str | None, typer.Option(help="The window's time zone: Asia/Shanghai.")] = None,
    days: Annotated[str | None, typer.Option(help="The window's days: sat,sun.")] = None,
    halt: Annotated[bool, typer.Option("--halt", help="A failed gate stops and asks; none goes back.")] = False,
    now: Annotated[bool, typer.Option("--now", help="To all at once, without gates.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "--no-wait", help="Do not follow it.")] = False,
    timeout: Annotated[str | None, typer.Option(help="How long to follow it (at once: 2 min).")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is deployed, and end.")] = False,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="APP", help="Take an app off (--to, or all).")
    ] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Put FILE on every device that matches --to, those that join later included."""
    if sum([list_, remove is not None, file is not None]) != 1:
        raise Invalid("say one thing", hint="marram deploy app.yaml --to all | --list | --remove APP")
    with connect(url, token) as api:
        if list_:
            _list(api, json)
        elif remove is not None:
            parsed(parse_labels, to or "all", "--to")
            api.undeploy(remove, to or "all")
            print(f"{remove} goes off {'every device' if (to or 'all') == 'all' else f'devices with {to}'}")
        elif file is not None:
            wait_s = 0.0 if detach else None if timeout is None else parsed(parse_duration, timeout, "--timeout")
            typed = Typed(stages, soak, silence, tuple(gate or ()), window, zone, days, halt, now)
            _deploy(api, AppFile.read(file), _Wish(to, plan_of(typed), wait_s, json))


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for. `wait_s`: 0: follow nothing; None: as long as is usual."""

    to: str | None
    plan: dict[str, Any] | None
    wait_s: float | None
    json: bool


def _deploy(api: CloudApi, file: AppFile, wish: _Wish) -> None:
    if wish.to is None:
        raise Invalid("to which devices?", where="--to", hint="--to all, or labels: --to site=shanghai")
    selector = parsed(parse_labels, wish.to, "--to")
    warnings = check(file)
    files_of(file)  # a missing file is told before a model of a gigabyte travels
    out = Console(stderr=True, highlight=False) if wish.json else _show.console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        bar = bars.add_task("sending", total=None)
        notes: list[str] = []

        def advance(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        text = send_models(api, file, notes.append, advance)
        files = send_files(api, file, advance)
    for warning in warnings:
        out.print(warning, style="yellow", markup=False)
    for note in notes:
        out.print(note, style="dim", markup=False)
    made = api.deploy(text, files, selector, wish.plan)
    for note in made.notes:
        out.print(note, style="yellow", markup=False)
    rollout = api.rollout(made.rollout) if made.rollout is not None else None
    if rollout is not None and not rollout.plan.immediate and (made.new or rollout.state in _follow.OPEN):
        _stages(api, rollout, wish, out)
        return
    title = f"{made.app} {made.version} → {_count(made)}"
    known = "" if made.new else ", as before"
    out.print(Text(f"rollout {made.rollout} · {title}{known}" if made.rollout else f"{title}{known}", style="bold"))
    if not made.devices:
        out.print(f"No device matches {wish.to} yet; it will run on those that join.", style="yellow", markup=False)
    elif wish.wait_s != 0.0:
        made = _watch(api, made, _AT_ONCE_S if wish.wait_s is None else wish.wait_s, out)
    if wish.json:
        print_json(made)
    _verdict(made)


def _stages(api: CloudApi, rollout: RolloutView, wish: _Wish, out: Console) -> None:
    """Follow a rollout that goes by stages. Raises Permanent where it was rolled back or halted."""
    out.print(_follow.title(rollout))
    if wish.wait_s != 0.0:
        rollout = _follow.follow(api, rollout.id, out, wish.wait_s)
    if wish.json:
        print_json(rollout)
    line = _follow.verdict(rollout)
    out.print(line, markup=False)


def _watch(api: CloudApi, made: Deployment, wait_s: float, out: Console) -> Deployment:
    """Show where it stands on each device until every one that is online has it, or has rolled it back."""
    ends_s = time.monotonic() + wait_s
    online = _online(api)
    with Live(_picture(made, online), console=out, auto_refresh=False) as live:
        while True:
            live.update(_picture(made, online), refresh=True)
            # What is not online gets it when it is back; nobody waits for that.
            if all(_settled(d) or d.device not in online for d in made.devices) or time.monotonic() > ends_s:
                break
            time.sleep(_LOOK_S)
            try:
                now, online = api.deployment(made.app), _online(api)
            except Retryable:
                continue  # the deployment goes on by itself; a cloud that restarts is looked at again
            if now.version == made.version:
                made = now
    if not out.is_terminal:
        out.line()
    going = [d.device for d in made.devices if not _settled(d)]
    if going:
        away = [name for name in going if name not in online]
        late = [name for name in going if name in online]
        if away:
            out.print(f"{_names(away)}: offline; gets it when it is back", style="yellow", markup=False)
        if late:
            out.print(f"{_names(late)}: not there yet, and goes on by itself: marram deploy --list", markup=False)
    return made


def _online(api: CloudApi) -> set[str]:
    return {d.id for d in api.devices() if d.state is DeviceState.ONLINE}


def _here(device: DeviceApp) -> bool:
    return device.version == device.wanted


def _settled(device: DeviceApp) -> bool:
    return _here(device) and device.state in (AppState.COMMITTED, AppState.ROLLED_BACK)


def _picture(made: Deployment, online: set[str]) -> RenderableType:
    rows = _show.table("", "", "", "")
    rows.show_header = False
    for device in made.devices[:40]:
        state = device.state if _here(device) else AppState.PENDING
        note = _show.plain(device.reason, 300) if _here(device) and device.reason else Text("")
        if device.device not in online:
            note = Text("offline", style="yellow")
        rows.add_row(f" {device.device}", _road(state), note)
    if len(made.devices) > 40:
        return Group(rows, Text(f" … and {len(made.devices) - 40} more", style="dim"))
    return rows


def _road(state: AppState) -> Text:
    """`fetched · verified · provisional · committed`, as far as it came."""
    if state not in _ROAD:
        return _show.state(state.value)
    done = _ROAD[1 : _ROAD.index(state) + 1]
    if not done:
        return Text("pending", style="dim")
    style = "green" if state is AppState.COMMITTED else ""
    return Text(" · ".join(step.value for step in done), style=style)


def _verdict(made: Deployment) -> None:
    """Raises Permanent where a device refused it: the command then ends with status 2."""
    back = [d for d in made.devices if _here(d) and d.state is AppState.ROLLED_BACK]
    if back:
        by_reason: dict[str, list[str]] = {}
        for device in back:
            by_reason.setdefault(device.reason.rstrip(".") or "no reason given", []).append(device.device)
        reasons = "; ".join(
            reason if len(names) == len(made.devices) > 1 else f"{_names(names)}: {reason}"
            for reason, names in list(by_reason.items())[:5]
        )
        raise Permanent(
            f"{made.app} {made.version} was rolled back on {len(back)} of {len(made.devices)}: {reasons}",
            hint=f"Mend it and deploy again; what runs there now: marram device why {back[0].device}",
        )


def _list(api: CloudApi, json: bool) -> None:
    found = api.deployments()
    if json:
        print_json(found)
        return
    if not found:
        print("Nothing is deployed. Deploy an app: marram deploy app.yaml --to all")
        return
    rows = _show.table("app", ">version", "to", "made", "devices")
    for item in found:
        states = [d.state.value if _here(d) else "pending" for d in item.devices]
        summary = ", ".join(f"{states.count(s)} {s.replace('_', ' ')}" for s in dict.fromkeys(states)) or "none yet"
        to = _show.labels(item.selector) if item.selector else "all"
        rows.add_row(item.app, str(item.version), to, _show.ago(item.created_s), summary)
    _show.console().print(rows)


def _count(made: Deployment) -> str:
    return f"{len(made.devices)} device{'s' if len(made.devices) != 1 else ''}"


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
