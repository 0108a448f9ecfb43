"""`marram token`: tokens that let devices join."""

from __future__ import annotations

from typing import Annotated

import typer

from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._lifetime import lifetime
from marram.cli._options import parsed
from marram.schema.ids import parse_labels
from marram.schema.units import format_duration

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make tokens that let devices join.")


@app.command()
def create(
    labels: Annotated[str, typer.Option(help="Labels its devices get: site=shanghai,line=3.")] = "",
    uses: Annotated[int, typer.Option(min=1, help="How many devices may join with it.")] = 1,
    ttl: Annotated[str, typer.Option(help="How long it can be used: 30 min, 1 h, 7 d; 366 d at most.")] = "1 h",
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make a join token: told once, here. Prints the command to type on the device."""
    ttl_s = lifetime(ttl, "--ttl")
    with connect(url, token) as api:
        made = api.create_token(parsed(parse_labels, labels, "--labels"), uses=uses, ttl_s=ttl_s)
        if json:
            print_json(made)
            return
        print(made.join or f"marram edge join {api.url} {made.token}")
        times = "once" if made.uses == 1 else f"{made.uses} times"
        note = f"({times}, within {format_duration(ttl_s)}; only told here; revoke: marram token revoke {made.id})"
        _show.console().print(note, style="dim", markup=False)


@app.command("list")
def list_(json: Json = False, url: Url = None, token: Token = None) -> None:
    """Tokens that can still be used."""
    with connect(url, token) as api:
        found = api.tokens()
    if json:
        print_json(found)
        return
    if not found:
        print("No tokens that can be used. Make one: marram token create")
        return
    rows = _show.table("id", "labels", ">uses left", "made", "expires")
    for item in found:
        left = f"{item.uses_left} of {item.uses}"
        rows.add_row(
            item.id, _show.labels(item.labels), left, _show.ago(item.created_s), f"at {_show.clock(item.expires_s)}"
        )
    _show.console().print(rows)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="Its id, as `marram token list` shows it.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Nobody joins with it any more; devices that did stay."""
    with connect(url, token) as api:
        api.revoke_token(id)
    print(f"token {id} is revoked")
