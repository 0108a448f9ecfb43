"""`marram login`: sign in to a cloud that runs elsewhere, so that the commands here talk to it.

Its authority is believed because a person compared its fingerprint, once; from then on nobody else can pose as it, and
neither a password nor a token goes to anybody who is not it.
"""

from __future__ import annotations

import getpass
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from marram.bus.http import CloudApi
from marram.bus.http_wire import check_url, fetch_authority, is_local
from marram.cli._context import Known, load, save
from marram.schema.errors import Invalid, Refused
from marram.trust import identity

app = typer.Typer(add_completion=False)


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="The cloud's address, https://HOST:PORT.")],
    user: Annotated[str | None, typer.Option(help="Your name there; asked for where it is not given.")] = None,
    token: Annotated[
        str | None, typer.Option(help="An API token instead of name and password; - reads it from standard input.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="Of the cloud's authority, as `marram cloud init` shows it there: then nothing is asked."),
    ] = None,
) -> None:
    """Sign in to a cloud on another machine: the commands here then talk to it."""
    url = _address(url)
    if fingerprint is not None and not url.startswith("https:"):
        raise Invalid(
            f"{url} shows no fingerprint", where="--fingerprint", hint="Use the https:// address, or leave it out."
        )
    authority = _authority(url, fingerprint) if url.startswith("https:") else None
    if token == "-":
        token = _line("API token")
    if token is None:
        name = user or _line("name" if not sys.stdin.isatty() else "Name: ")
        password = getpass.getpass(f"Password of {name}: ") if sys.stdin.isatty() else _line("password")
        with CloudApi(url, authority=authority) as api:
            token = api.sign_in(name, password).token
    with CloudApi(url, token, authority=authority) as api:
        me = api.me()
    file = save(Known(url, token, authority))
    print(f"signed in to {url} as {me.user or 'its own machine'}; kept in {file}")


def _address(text: str) -> str:
    url = check_url(text, "https")
    if url.startswith("http:") and not is_local(urlsplit(url).hostname or ""):
        raise Invalid(
            f"nothing secret goes to {url} unencrypted", hint="Use the https:// address that `marram cloud` shows."
        )
    return url


def _authority(url: str, fingerprint: str | None) -> str:
    """The authority of the cloud at `url`, where it is the one that a person means.

    Raises Untrusted (another one), Refused (nobody says that it is the right one).
    """
    pem = fetch_authority(url)
    found = identity.fingerprint_of(pem)
    known = load()
    if fingerprint is not None:
        return identity.check_cloud(pem, fingerprint.strip()).decode()
    if known is not None and known.url == url and known.authority is not None:
        return identity.check_cloud(pem, identity.fingerprint_of(known.authority.encode())).decode()
    print(f"the cloud at {url} says that it is {found}")
    print("On its machine, `marram cloud init` shows what it should say.")
    if not sys.stdin.isatty():
        raise Refused("nobody is here to compare it", hint="Say it: --fingerprint FINGERPRINT")
    if not typer.confirm("Is it the same?"):
        raise Refused("nothing was sent to it", hint="Check the address.")
    return identity.check_cloud(pem, found).decode()


def _line(what: str) -> str:
    """One line of standard input. Raises Invalid where there is none."""
    if sys.stdin.isatty():
        return input(what)
    text = sys.stdin.readline().strip()
    if not text:
        raise Invalid(f"no {what} on standard input")
    return text
