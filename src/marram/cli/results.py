"""`marram results`: what devices answered, from the cloud's database."""

from __future__ import annotations

import json as json_
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from marram.bus.http import CloudApi
from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect
from marram.cli._options import parsed
from marram.schema.api import EventView
from marram.schema.errors import Retryable
from marram.schema.event import EventKind
from marram.schema.units import parse_duration

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Follow or query what devices answered.")

App = Annotated[str | None, typer.Option("--app", help="Only of this app.")]
Device = Annotated[str | None, typer.Option("--device", help="Only from this device.")]
Kinds = Annotated[list[EventKind] | None, typer.Option("--kind", help="Only of this kind; repeat for several.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="At most so many.")]

_PAGE = 1000
_LOOK_S = 0.5
_STYLES = {"alert": "bold red", "sample": "magenta", "dropped": "red", "metric": "dim"}


@app.command()
def tail(
    app: App = None,
    device: Device = None,
    kind: Kinds = None,
    limit: Limit = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as new ones come; Ctrl-C ends it.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """The newest events; with --follow, those that come from now on, too."""
    with connect(url, token) as api:
        out = _show.console()
        found = api.events(app=app, device=device, kinds=kind or (), limit=min(limit, _PAGE))
        _print(out, found, json)
        if not follow:
            if not found and not json:
                print(_nothing(app, device))
            return
        last = found[-1].id if found else _newest_id(api)
        while True:
            try:
                found = api.events(app=app, device=device, kinds=kind or (), after=last, limit=_PAGE)
            except Retryable as error:
                Console(stderr=True, highlight=False).print(str(error), style="red", markup=False)
                time.sleep(4 * _LOOK_S)
                continue
            _print(out, found, json)
            last = found[-1].id if found else last
            if len(found) < _PAGE:
                time.sleep(_LOOK_S)


@app.command()
def query(
    app: App = None,
    device: Device = None,
    kind: Kinds = None,
    since: Annotated[str | None, typer.Option(help="Received within the last: 10 min, 2 h.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Only after the event with this id.")] = None,
    limit: Limit = 100,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Stored events, oldest first; with --json one JSON object a line."""
    since_s = None
    if since is not None:
        since_s = time.time() - parsed(parse_duration, since, "--since")
    with connect(url, token) as api:
        out, left, last = _show.console(), limit, after
        if last is None and since_s is not None:
            last = 0
        while left > 0:
            found = api.events(
                app=app, device=device, kinds=kind or (), after=last, limit=min(left, _PAGE), since_s=since_s
            )
            _print(out, found, json)
            left -= len(found)
            if len(found) < _PAGE or last is None:
                break
            last = found[-1].id
        if left == limit and not json:
            print(_nothing(app, device))


def _newest_id(api: CloudApi) -> int:
    """Where "from now on" begins when nothing matches the filter yet."""
    newest = api.events(limit=1)
    return newest[-1].id if newest else 0


def _print(out: Console, events: list[EventView], json: bool) -> None:
    for event in events:
        if json:
            print(json_.dumps(event.model_dump(mode="json"), ensure_ascii=False))
        else:
            out.print(_line(event))
    out.file.flush()  # a program that reads our lines (`tail --follow --json | …`) gets them as they come


def _line(event: EventView) -> Text:
    return Text.assemble(
        (_show.clock(event.time_s), "dim"),
        "  ",
        (f"{event.device:<12}", "cyan"),
        "  ",
        _show.plain(f"{event.app:<14}", 63),
        "  ",
        (f"{event.kind.value:<10}", _STYLES.get(event.kind.value, "")),
        "  ",
        _show.plain(_show.answer(event), 400),
    )


def _nothing(app: str | None, device: str | None) -> str:
    what = " ".join(part for part in (f"of {app}" if app else "", f"from {device}" if device else "") if part)
    return f"No events{f' {what}' if what else ''} yet. What runs where: marram device list"
