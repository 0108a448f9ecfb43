"""`marram secret`: what apps need and nobody should read. A value is typed unseen, or piped in; never an option."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._options import parsed
from marram.schema.api import MAX_SECRET_BYTES
from marram.schema.errors import Invalid
from marram.schema.ids import check_secret, parse_labels

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Passwords and keys for apps: sealed here, opened on the devices."
)
Secret = Annotated[str, typer.Argument(help="As the app file writes it: A to Z, 0 to 9 and _.")]


@app.command("set")
def set_(
    name: Secret,
    to: Annotated[str, typer.Option(help="Which devices may have it: site=shanghai,line=3; all.")] = "all",
    url: Url = None,
    token: Token = None,
) -> None:
    """Set a secret, or change it. Its value comes from the keyboard, not shown, or from standard input."""
    parsed(check_secret, name, "NAME")
    labels = parsed(parse_labels, to, "--to")
    value = _value(name)
    with connect(url, token) as api:
        made = api.set_secret(name, value, labels)
    print(f"{name} is set for {_show.labels(made.selector).plain if made.selector else 'all devices'}")
    note = f"(apps that declare `secrets: [{name}]` get it; those that run start again with it)"
    _show.console().print(note, style="dim", markup=False)


@app.command("list")
def list_(json: Json = False, url: Url = None, token: Token = None) -> None:
    """Which secrets there are, and for whom; not what they are."""
    with connect(url, token) as api:
        found = api.secrets()
    if json:
        print_json(found)
        return
    if not found:
        print("No secrets. Set one: marram secret set NAME --to LABELS")
        return
    rows = _show.table("name", "to", "changed")
    for item in found:
        to = _show.labels(item.selector) if item.selector else "all"
        rows.add_row(item.name, to, _show.ago(item.changed_s))
    _show.console().print(rows)


@app.command()
def remove(name: Secret, url: Url = None, token: Token = None) -> None:
    """Devices forget it with their next report; apps that need it wait from their next start on."""
    with connect(url, token) as api:
        api.remove_secret(name)
    print(f"{name} is removed")


def _value(name: str) -> str:
    """From the keyboard where there is one, without echo; else all of standard input less its last line end."""
    if sys.stdin.isatty():
        value: str = typer.prompt(f"{name}", hide_input=True, confirmation_prompt=True, default="", show_default=False)
    else:
        value = sys.stdin.read(MAX_SECRET_BYTES + 2).removesuffix("\n").removesuffix("\r")
    if not value:
        raise Invalid("no value", where=name, hint=f"Type it, or pipe it in: marram secret set {name} < FILE")
    if len(value.encode()) > MAX_SECRET_BYTES:
        raise Invalid(f"longer than {MAX_SECRET_BYTES} bytes", where=name)
    return value
