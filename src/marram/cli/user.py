"""`marram user`: people who use the cloud, their roles, their API tokens."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer

from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.cli._lifetime import lifetime
from marram.cli._options import one_of, parsed
from marram.schema.errors import Invalid
from marram.schema.people import Permission, Role

app = typer.Typer(no_args_is_help=True, add_completion=False, help="People, their roles and API tokens.")
tokens = typer.Typer(no_args_is_help=True, help="API tokens: what programs, and people's scripts, come with.")
app.add_typer(tokens, name="token")

Name = Annotated[str, typer.Argument(help="The person's name.")]
Stdin = Annotated[
    str | None, typer.Argument(metavar="[-]", help="-: read the password from standard input; else it is asked for.")
]
RoleOption = Annotated[
    Role,
    typer.Option(help="viewer sees; operator also changes; admin also says who may.", **one_of(Role, "role")),
]
# Longer than any password that is taken, so that one that is too long is told, not cut.
_MOST_READ = 4096


@app.command()
def add(name: Name, stdin: Stdin = None, role: RoleOption = Role.VIEWER, url: Url = None, token: Token = None) -> None:
    """Add a person. The first one, on the cloud's machine: marram user add NAME --role admin"""
    with connect(url, token) as api:
        made = api.add_user(name, role, _new_password(stdin, name, "add"))
        print(f"{made.name} is {_a(made.role)}; sign in at {api.url}")


@app.command("list")
def list_(json: Json = False, url: Url = None, token: Token = None) -> None:
    """Everybody, by name."""
    with connect(url, token) as api:
        found = api.users()
    if json:
        print_json(found)
        return
    if not found:
        print("Nobody yet. Add somebody: marram user add NAME --role admin")
        return
    rows = _show.table("name", "role", "since", "")
    for each in found:
        rows.add_row(each.name, each.role.value, _show.ago(each.created_s), "disabled" if each.disabled else "")
    _show.console().print(rows)


@app.command()
def role(
    name: Name,
    role: Annotated[Role, typer.Argument(help="viewer, operator or admin.", **one_of(Role, "role"))],
    url: Url = None,
    token: Token = None,
) -> None:
    """Give a person another role: it counts at once, for live sessions and tokens too."""
    with connect(url, token) as api:
        made = api.change_user(name, role=role)
    print(f"{made.name} is {_a(made.role)}")


@app.command()
def passwd(
    name: Annotated[str | None, typer.Argument(help="Whose; without one, your own.")] = None,
    stdin: Stdin = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Set a new password; ends the person's sessions. API tokens stay: marram user token list"""
    if name == "-":
        raise Invalid("whose password is it?", hint="Write marram user passwd NAME -")
    with connect(url, token) as api:
        if name is None:
            mine = api.me().user
            if mine is None:
                raise Invalid("this machine's token has no password", hint="Name a person: marram user passwd NAME")
            old = getpass.getpass("Your present password: ")
            api.change_own_password(old, _new_password(None, mine, "passwd"))
            name = mine
        else:
            api.change_user(name, password=_new_password(stdin, name, "passwd"))
    print(f"{name} has a new password, and is signed out everywhere")


@app.command()
def disable(name: Name, url: Url = None, token: Token = None) -> None:
    """Shut a person out, at once; nothing of theirs is lost."""
    with connect(url, token) as api:
        made = api.change_user(name, disabled=True)
    print(f"{made.name} is disabled and signed out; tokens of theirs work again when they are enabled")


@app.command()
def enable(name: Name, url: Url = None, token: Token = None) -> None:
    """Let a disabled person in again."""
    with connect(url, token) as api:
        made = api.change_user(name, disabled=False)
    print(f"{made.name} may sign in again, as {made.role.value}")


@app.command()
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Forget a person, with their sessions and API tokens. The audit log remembers."""
    with connect(url, token) as api:
        if not yes:
            typer.confirm(f"Remove {name}, with their API tokens?", abort=True)
        api.remove_user(name)
    print(f"{name} is removed")


@tokens.command("create")
def create_token(
    owner: Annotated[str | None, typer.Argument(help="Whose it is; without one, yours.")] = None,
    name: Annotated[str, typer.Option(help="What it is for, as `list` shows it.")] = "a script",
    scopes: Annotated[
        str, typer.Option(help=f"What it may do, some of {','.join(Permission)}; default: all that its owner may.")
    ] = "",
    ttl: Annotated[str, typer.Option(help="How long it is good: 12 h, 90 d; 366 d at most.")] = "90 d",
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make an API token: told once, here. It never does more than its owner may."""
    ttl_s = lifetime(ttl, "--ttl")
    wanted = parsed(_scopes, scopes, "--scopes")
    with connect(url, token) as api:
        made = api.create_api_token(name, owner=owner, scopes=wanted, ttl_s=ttl_s)
    if json:
        print_json(made)
        return
    print(made.token)
    may = "all that its owner may" if made.scopes is None else ", ".join(made.scopes)
    until = _show.clock(made.expires_s or 0.0)
    note = f"({may}; until {until}; only told here; revoke: marram user token revoke {made.id})"
    _show.console(stderr=True).print(note, style="dim", markup=False)


@tokens.command("list")
def list_tokens(
    owner: Annotated[str | None, typer.Argument(help="Whose; default: all that you may see.")] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """API tokens and sessions, without the tokens themselves."""
    with connect(url, token) as api:
        found = api.api_tokens(owner)
    if json:
        print_json(found)
        return
    rows = _show.table("id", "whose", "for", "may", "made", "until")
    for each in found:
        may = "all of its owner's" if each.scopes is None else ", ".join(each.scopes)
        until = "revoked" if each.revoked else _show.clock(each.expires_s) if each.expires_s else "–"
        rows.add_row(
            each.id, each.owner or "this machine", _show.plain(each.name), may, _show.ago(each.created_s), until
        )
    _show.console().print(rows)


@tokens.command("revoke")
def revoke_token(
    id: Annotated[str, typer.Argument(help="Its id, as `marram user token list` shows it.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """It is good for nothing from now on; ends a session, too."""
    with connect(url, token) as api:
        api.revoke_api_token(id)
    print(f"{id} is revoked")


def _new_password(stdin: str | None, name: str, command: str) -> str:
    """From standard input where that was asked for, else typed twice without being shown. `command`: who asks."""
    if stdin is not None:
        if stdin != "-":
            # What is typed on a command line, every user of this machine can see.
            raise Invalid("a password does not belong on a command line", hint="Leave it out: it is asked for.")
        return sys.stdin.readline(_MOST_READ).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise Invalid("there is no terminal to ask for a password", hint=f"… | marram user {command} {name} -")
    first = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("Once more: ") != first:
        raise Invalid("the two are not the same", hint="Nothing was changed; try again.")
    return first


def _scopes(text: str) -> list[Permission] | None:
    names = [part.strip() for part in text.split(",") if part.strip()]
    known = ", ".join(each.value for each in Permission)
    for name in names:
        if name not in set(Permission):
            raise ValueError(f'"{name}" is not a scope; use some of {known}')
    return [Permission(name) for name in names] or None


def _a(role: Role) -> str:
    return f"an {role.value}" if role.value[0] in "ao" else f"a {role.value}"
