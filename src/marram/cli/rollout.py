"""`marram rollout`: how versions come to devices, a stage at a time, and a person's say in it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from marram.cli import _follow, _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.schema.ids import check_name
from marram.schema.rollout import DeviceOutcome
from marram.schema.rollout_view import RolloutView
from marram.schema.units import format_duration

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Follow and steer rollouts.")
Id = Annotated[int, typer.Argument(help="The rollout's number.", min=1)]


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Option("--app", help="Only rollouts of this app.")] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """The newest rollouts: state, stage, why."""
    with connect(url, token) as api:
        found = api.rollouts(app=name)
    if json:
        print_json(found)
        return
    if not found:
        print("No rollouts yet. Deploy an app: marram deploy app.yaml --to all")
        return
    rows = _show.table(">rollout", "app", ">version", "to", "state", "stage", "made", "reason")
    for view in found:
        rows.add_row(
            str(view.id),
            view.app,
            str(view.version),
            _show.labels(view.selector) if view.selector else "all",
            _follow.state(view),
            f"{view.stage} of {len(view.stages)}",
            _show.ago(view.created_s),
            _show.plain(view.reason or _gave_up(view), 80),
        )
    _show.console().print(rows)


@app.command()
def show(id: Id, json: Json = False, url: Url = None, token: Token = None) -> None:
    """One rollout: stages, gates, and how each device stands."""
    with connect(url, token) as api:
        view = api.rollout(id)
    if json:
        print_json(view)
    else:
        _show_one(view)


@app.command()
def follow(id: Id, url: Url = None, token: Token = None) -> None:
    """Watch a rollout until it is over; Ctrl-C stops the watching only."""
    out = _show.console()
    with connect(url, token) as api:
        out.print(_follow.title(api.rollout(id)))
        view = _follow.follow(api, id, out)
    out.print(_follow.verdict(view), markup=False)


@app.command()
def pause(id: Id, url: Url = None, token: Token = None) -> None:
    """It reaches no further device and judges none, until it is resumed."""
    with connect(url, token) as api:
        _said(api.steer(id, "pause"))


@app.command()
def resume(id: Id, url: Url = None, token: Token = None) -> None:
    """Go on from where it was paused or halted."""
    with connect(url, token) as api:
        _said(api.steer(id, "resume"))


@app.command()
def promote(id: Id, url: Url = None, token: Token = None) -> None:
    """Into the next stage now, without the rest of its soak; past the gates that halted it."""
    with connect(url, token) as api:
        _said(api.steer(id, "promote"))


@app.command()
def abort(id: Id, url: Url = None, token: Token = None) -> None:
    """End it: every device goes back to what it had."""
    with connect(url, token) as api:
        _said(api.steer(id, "abort"))


@app.command()
def retry(
    id: Id,
    device: Annotated[str, typer.Argument(help="The device's name.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Let one device try again what it gave up."""
    check_name(device)
    with connect(url, token) as api:
        view = api.retry(id, device)
    print(f"{device} tries {view.app} {view.version} again: marram device why {device}")


def _gave_up(view: RolloutView) -> str:
    """Of one that has no reason to tell: how many rolled it back by themselves. What goes at once is never stopped."""
    failed = view.counts.get(DeviceOutcome.FAILED, 0)
    return f"rolled back on {failed} of {view.matching}" if failed else ""


def _said(view: RolloutView) -> None:
    out = _show.console()
    where = f", stage {view.stage} of {len(view.stages)}" if view.ended_s is None else ""
    out.print(Text.assemble(f"rollout {view.id} is ", _follow.state(view), where))


def _show_one(view: RolloutView) -> None:
    out = _show.console()
    out.print(Text.assemble(_follow.title(view), "   ", _follow.state(view)))
    if view.reason:
        out.print(Text(" reason    ").append_text(_show.plain(view.reason, 1000)))
    if view.before:
        out.print(f" before    {', '.join(map(str, view.before))}", markup=False)
    for number, stage in enumerate(view.stages, 1):
        mark = "→" if number == view.stage and view.ended_s is None else " "
        out.print(f" stage {number} {mark} {stage.stage}: {stage.goal} of {view.matching} devices", markup=False)
    if view.gates:
        out.print(_follow.gates_line(view.gates, out), soft_wrap=True)
    if view.waits:
        out.print(f" waits for {view.waits}", markup=False)
    if not view.devices:
        out.print(
            " devices   none: newer deployments decide, or nobody has its labels (marram deploy --list)", markup=False
        )
        return
    rows = _show.table("device", "stage", "outcome", "reached", "took", "says", "reason")
    for device in view.devices:
        took = "–"
        if device.reached_s is not None and device.ended_s is not None:
            took = format_duration(max(0.001, device.ended_s - device.reached_s))
        says = "–" if device.version is None or device.state is None else f"{device.version} {device.state.value}"
        rows.add_row(
            device.device,
            str(device.stage) if device.stage else "–",
            _show.state(device.outcome.value)
            if device.outcome is not DeviceOutcome.WAITING
            else Text("–", style="dim"),
            _show.clock(device.reached_s) if device.reached_s is not None else "–",
            took,
            says.replace("_", " ") + ("" if device.online else ", offline"),
            _show.plain(device.reason, 80),  # `device why` says all of it
        )
    out.print(rows)
    rest = view.matching - len(view.devices)
    if rest > 0:
        out.print(f" … and {rest:,} more", markup=False)
