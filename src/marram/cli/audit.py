"""`marram audit`: who changed what; whether anybody changed that."""

from __future__ import annotations

import json as json_
import re
import sys
import time
from typing import Annotated

import typer

from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._options import parsed
from marram.schema.errors import Threat, Untrusted
from marram.schema.people import AuditView
from marram.schema.units import parse_duration

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Who changed what; whether anybody changed that.")

_PAGE = 1000
_TIMES = ("expires_s",)
Actor = Annotated[str | None, typer.Option(help="Who: user:ann, device:pi-1, rollout:12, machine, cloud.")]
Action = Annotated[str | None, typer.Option(help="What: device.remove, or all below a word: device.")]
Target = Annotated[str | None, typer.Option(help="On what: a device, an app, a person.")]
Since = Annotated[str | None, typer.Option(help="Within the last so long: 30 min, 7 d.")]


@app.command("list")
def list_(
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest.")] = 50,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """The newest changes, oldest first."""
    with connect(url, token) as api:
        found = api.audit(actor=actor, action=action, target=target, since_s=_since(since), limit=limit)
    if json:
        print_json(found)
        return
    rows = _show.table(">row", "when", "who", "did", "to", "")
    for each in found:
        rows.add_row(
            str(each.id),
            _show.clock(each.time_s),
            *(_show.plain(words) for words in (each.actor, each.action, _short(each.target), _detail(each))),
        )
    _show.console().print(rows)


@app.command()
def verify(
    kept: Annotated[
        str | None, typer.Option(help="ROW:DIGEST as an earlier `verify` printed it: it must still be there.")
    ] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Check every row against the one before it; status 2, naming the first that is broken."""
    expected = None if kept is None else parsed(_kept, kept, "--kept")
    with connect(url, token, timeout_s=600) as api:
        found = api.check_audit(expected)
    if found.broken is not None:
        if json:
            print_json(found)
        raise Untrusted(
            f"row {found.broken} of the audit log is broken: {found.why}",
            threat=Threat.TAMPERED,
            hint=f"The {found.rows:,} rows before it hold.",
        )
    if json:
        print_json(found)
        return
    print(f"{found.rows:,} changes, none touched")
    if found.rows:
        print(f"keep this somewhere else, and check it later with --kept: {found.rows}:{found.head}")


@app.command()
def export(
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    since: Since = None,
    after: Annotated[int, typer.Option(min=0, help="Go on after this row.")] = 0,
    url: Url = None,
    token: Token = None,
) -> None:
    """Every change as a line of JSON, oldest first, to standard output."""
    since_s = _since(since)
    with connect(url, token) as api:
        while found := api.audit(actor=actor, action=action, target=target, since_s=since_s, after=after, limit=_PAGE):
            for each in found:
                # ASCII: what somebody wrote into a name moves no cursor and hides no letter.
                sys.stdout.write(json_.dumps(each.model_dump(mode="json"), separators=(",", ":")) + "\n")
            after = found[-1].id


def _detail(row: AuditView) -> str:
    """Its details as a person would write them: `labels site=a; uses 3`. `export` has them as they are."""
    told = []
    for key, value in row.detail.items():
        if value in (None, "", [], {}, False) or value == row.target:
            continue
        if isinstance(value, dict):
            value = " ".join(f"{name}={one}" for name, one in sorted(value.items()))
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif key in _TIMES and isinstance(value, int | float):
            key, value = key.removesuffix("_s"), _show.clock(value)
        told.append(key if value is True else f"{key} {_short(str(value))}")
    return "; ".join(told)


def _short(text: str) -> str:
    """A digest by its first twelve letters."""
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _since(text: str | None) -> float | None:
    return None if text is None else time.time() - parsed(parse_duration, text, "--since")


def _kept(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"([1-9]\d{0,17}):([0-9a-f]{64})", text.strip())
    if found is None:
        raise ValueError(f'"{text}" is not what `marram audit verify` prints: write ROW:DIGEST')
    return int(found[1]), found[2]
