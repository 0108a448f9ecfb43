"""`marram placement`: why inferences went where they went, from what each result says of it."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from marram.bus.http import CloudApi
from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect
from marram.schema.api import EventView
from marram.schema.errors import Invalid, Missing
from marram.schema.event import EventKind
from marram.schema.figures import figure_of
from marram.schema.units import format_rate, format_size
from marram.schema.words import file_fault

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Why inferences went where they went.")

# How many frames are told of at once at most.
_MOST = 1000
# The parts of a delay by their names in an event, as people call them.
_PARTS = {"edge": {"wait": "queue", "service": "inference"}, "split": {"front": "front"}}
_NAMES = {
    "wait": "link busy",
    "front": "encode",
    "transfer": "",
    "rtt": "rtt",
    "queue": "queue",
    "service": "inference",
}
# Figures of an app that are sentences about its placement.
_STATES = ("cascade", "cuts")
_STYLES = {"edge": "green", "cloud": "cyan", "split": "magenta", "peer": "blue"}


@app.callback()
def _group() -> None:
    """Keeps `explain` a command of its own while it is the only one."""


@app.command()
def explain(
    device: Annotated[str | None, typer.Argument(help="Only of this device.", metavar="[DEVICE]")] = None,
    app: Annotated[str | None, typer.Argument(help="Only of this app.", metavar="[APP]")] = None,
    frame: Annotated[int | None, typer.Option(min=0, help="Of the frame with this number.")] = None,
    last: Annotated[int, typer.Option(min=1, max=_MOST, help="Of the last so many frames.")] = 1,
    file: Annotated[
        Path | None, typer.Option(help="Of the results in this file, as a `jsonl` sink or `marram run --json` made it.")
    ] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """What was predicted of each way an inference could have gone, which one was taken, and how long it took."""
    told: list[str] = []
    if file is not None:
        found = list(_read(file))
    else:
        with connect(url, token) as api:
            found = _stored(api, device, app, frame, last)
            told = [] if json else _states(api, device, app)
    chosen = _chosen(found, frame, last, _of(device, app, file))
    if json:
        print(json_.dumps(chosen, indent=2, ensure_ascii=False))
        return
    out = _show.console()
    # Whose frame it is stands there where that was not asked for.
    named = ["device"] if device is None else []
    named += ["app"] if app is None and len({str(data.get("app")) for data in found}) > 1 else []
    for data in chosen:
        _print(out, data, named)
    for line in told:
        out.print(_show.plain(line, 1000))


def _of(device: str | None, app: str | None, file: Path | None) -> str:
    if file is not None:
        return f" in {file}"
    return (f" of {app}" if app else "") + (f" from {device}" if device else "")


def _chosen(found: list[dict[str, Any]], frame: int | None, last: int, of: str) -> list[dict[str, Any]]:
    """Those asked for, oldest first. Raises Missing where there are none."""
    placed = [data for data in found if isinstance(data.get("place"), str)]
    if not placed:
        raise Missing(f"no results{of} yet", hint="What runs where: marram device list")
    if frame is None:
        return placed[-last:]
    with_it = [data for data in placed if data.get("frame") == frame]
    if not with_it:
        raise Missing(
            f"no frame {frame} among the results{of}",
            hint="Which there are: marram results tail --kind result --json",
        )
    return with_it[-last:]


def _stored(api: CloudApi, device: str | None, app: str | None, frame: int | None, last: int) -> list[dict[str, Any]]:
    """The newest stored results, oldest first; before them as many of `frame` as they lack, wherever those are."""
    newest = api.events(app=app, device=device, kinds=(EventKind.RESULT,), limit=_MOST)
    older: list[EventView] = []
    before = newest[0].id if frame is not None and len(newest) == _MOST else None
    lack = last - sum(event.data.get("frame") == frame for event in newest)
    while frame is not None and before is not None and lack > len(older):
        looked = api.of_frame(frame, app=app, device=device, before=before, limit=lack - len(older))
        older, before = [*looked.results, *older], looked.before
    return [{"device": event.device, "app": event.app} | event.data for event in [*older, *newest]]


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """Raises Missing, Invalid."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise Missing("no such file", where=str(file)) from error
    except (OSError, UnicodeError) as error:
        raise Invalid(f"cannot read it: {file_fault(error)}", where=str(file)) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            document = json_.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "A jsonl sink writes them, and marram run --json."
            raise Invalid("not a result as a line of JSON", where=f"{file}:{number}", hint=hint) from error
        if isinstance(document, dict):
            inner = document.get("data")  # an event, as `marram results query --json` prints it
            yield document | inner if isinstance(inner, dict) else document


def _states(api: CloudApi, device: str | None, app: str | None) -> list[str]:
    """What the apps say of their cascades and cuts."""
    if device is None:
        return []
    reported = api.device(device).reported
    apps = [each for each in reported.apps if app in (None, each.name)] if reported is not None else []
    words = [(each.name, name, each.stats.get(name)) for each in apps for name in _STATES]
    return [f"{of}: {name}: {text}" for of, name, text in words if isinstance(text, str) and text]


# ---------------------------------------------------------------- in words


def _print(out: Console, data: dict[str, Any], named: list[str]) -> None:
    """One frame: a line of what happened, then one for each way, in columns."""
    out.print(_headline(data, named))
    why = data.get("why")
    listed = why.get("ways") if isinstance(why, dict) else None
    ways = [way for way in listed if isinstance(way, dict)] if isinstance(listed, list) else []
    if not ways:
        reason = data.get("reason")
        out.print(_show.plain(f" nothing was weighed: {reason}" if reason else " nothing was weighed"))
        return
    chosen = ways[0]
    # The edge first, as in T = min(edge, cloud), the rest by how soon.
    ways.sort(key=lambda way: (way.get("place") != "edge", figure_of(way, "total_ms") or 0.0))
    spending = any(_spent(way) for way in ways)
    rows = _show.table("", "", ">", *([""] if spending else []), "")
    rows.show_header = False
    for way in ways:
        total, words = figure_of(way, "total_ms"), _sum(way)
        if not words and not total:
            total, words = None, "not measured yet"
        mine = way is chosen
        excluded = way.get("excluded")
        rows.add_row(
            Text(" ").append_text(_show.plain(_name(way), 60)),
            _show.plain(excluded if isinstance(excluded, str) else words),
            Text("" if total is None else f"{_ms(total)} ms", style="bold" if mine else ""),
            *([Text(_spent(way))] if spending else []),
            Text("← ").append_text(_show.plain(data.get("reason") or "chosen")) if mine else Text(),
        )
    out.print(rows)


def _headline(data: dict[str, Any], named: list[str]) -> Text:
    """`frame 10417 → cloud   predicted 61 ms (48–90)   took 57 ms`, and what was out of the ordinary.

    In front of it the words of `data` that are `named` (device, app).
    """
    place = str(data.get("place"))
    whose = [_show.plain(data[name], 64).plain for name in named if isinstance(data.get(name), str)]
    line = Text.assemble(
        "".join(f"{word} " for word in whose),
        "frame ",
        _show.plain(data.get("frame", "?"), 20),
        " → ",
        (_show.plain(place, 20).plain, _STYLES.get(place, "")),
    )
    why = data.get("why") if isinstance(data.get("why"), dict) else {}
    assert isinstance(why, dict)
    replica = why.get("replica")
    if place != "edge" and isinstance(replica, str) and replica:
        line.append(f" ({_show.plain(replica, 64).plain})")
    predicted, took = figure_of(data, "predicted_ms"), figure_of(data, "latency_ms")
    low, high = figure_of(why, "low_ms"), figure_of(why, "high_ms")
    if predicted:
        line.append(f"   predicted {_ms(predicted)} ms")
        line.append(f" ({_ms(low)}–{_ms(high)})" if low is not None and high is not None and high > low else "")
    if took is not None:
        line.append(f"   took {_ms(took)} ms")
    for note in _notes(data):
        line.append(f"   {note}", style="yellow")
    return line


def _notes(data: dict[str, Any]) -> Iterator[str]:
    if data.get("hedged") is True:
        yield "the reply threatened to be late, so the edge began too"
    if data.get("fallback") is True:
        yield "the cloud did not answer in time"
    if data.get("escalated") is True:
        yield "the edge was not sure"
    if data.get("verified") is False:
        yield "unverified: the cloud could not say"


def _name(way: dict[str, Any]) -> str:
    """`cloud`; where there are several to one place, the codec tells them apart."""
    codec = way.get("codec")
    return f"{way.get('place')} {codec}" if isinstance(codec, str) and codec else str(way.get("place"))


def _sum(way: dict[str, Any]) -> str:
    """`12 kB at 6.2 Mbit/s 15 + rtt 31 + queue 2 + inference 13`."""
    own = _PARTS.get(str(way.get("place")), {})
    parts = []
    for part, usual in _NAMES.items():
        took = figure_of(way, f"{part}_ms")
        if took is None or not took:
            continue
        name = _sent(way, took) if part == "transfer" else own.get(part, usual)
        parts.append(f"{name} {_ms(took)}")
    if parts and not figure_of(way, "service_ms"):  # never asked: counted as nothing, so that it is tried
        parts.append("inference not measured yet")
    return " + ".join(parts)


def _spent(way: dict[str, Any]) -> str:
    """`83 % on time · 0.12 J · 0.0004`: what the choice went by besides the delay, where there is such a thing."""
    chance, energy, money = (figure_of(way, name) for name in ("on_time", "energy_j", "money"))
    told = [f"{100 * chance:.0f} % on time"] if chance is not None else []
    told += [f"{energy:.2g} J"] if energy else []
    told += [f"costs {money:g}"] if money else []
    return " · ".join(told)


def _sent(way: dict[str, Any], took_ms: float) -> str:
    size = figure_of(way, "bytes")
    if size is None or size <= 0:
        return "transfer"
    return f"{format_size(size)} at {format_rate(8e3 * size / took_ms)}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
