"""Which cloud a command talks to, and its token: flags, then MARRAM_URL and MARRAM_TOKEN, then the context file.

`marram cloud` writes that file, so on its machine nothing needs to be said; elsewhere `marram login` does. A token from
the file is sent only to the cloud of the file: never to another address that a flag or the environment names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from marram.bus.http import CloudApi
from marram.bus.http_wire import check_url
from marram.schema import paths
from marram.schema.errors import Invalid, Missing, Refused
from marram.schema.words import file_fault
from marram.system import files

_AGAIN = "Remove it; `marram cloud` or `marram login` writes a new one."

Url = Annotated[
    str | None, typer.Option("--url", envvar="MARRAM_URL", help="The cloud, as in http://cloud.local:8080.")
]
Token = Annotated[str | None, typer.Option("--token", envvar="MARRAM_TOKEN", help="API token of that cloud.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def signed_in(url: str | None) -> bool:
    """Whether `connect` has a cloud to talk to."""
    return url is not None or paths.context().exists()


@dataclass(frozen=True, slots=True)
class Known:
    """A cloud that this machine is signed in to. `authority`: the one it believes over https, PEM."""

    url: str
    token: str | None = None
    authority: str | None = None


def connect(url: str | None = None, token: str | None = None, *, timeout_s: float = 30.0) -> CloudApi:
    """The cloud to talk to. Raises Missing where none is known, Invalid where the address or the file is wrong."""
    known = load()
    if url is None:
        if known is None:
            raise Missing(
                "no cloud is known here",
                hint="Start one, marram cloud; sign in to one, marram login URL; or name one: --url URL --token TOKEN",
            )
        url = known.url
    same = known if known is not None and check_url(url) == known.url else Known(url)
    return CloudApi(url, token or same.token, timeout_s=timeout_s, authority=same.authority)


def load() -> Known | None:
    """What the context file says; None where there is no file. Raises Invalid, Refused."""
    file = paths.context()
    try:
        document: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"cannot read it: {error.strerror}", where=str(file)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Invalid("not YAML", where=str(file), hint=_AGAIN) from error
    if not isinstance(document, dict) or not isinstance(document.get("url"), str):
        raise Invalid("names no cloud (url: …)", where=str(file), hint=_AGAIN)
    token, authority = (
        text if isinstance(text, str) else None for text in (document.get("token"), document.get("authority"))
    )
    return Known(check_url(document["url"]), token, authority)


def save(known: Known) -> Path:
    """Write the context file (0600, whole or not at all). Raises Refused."""
    file = paths.context()
    document = {"url": known.url, "token": known.token, "authority": known.authority}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, yaml.safe_dump(document, sort_keys=False).encode())
    except OSError as error:
        raise Refused(f"cannot write it: {file_fault(error)}", where=str(file)) from error
    return file


def print_json(document: Any) -> None:
    """Models, or lists of them, as indented JSON on stdout."""
    if isinstance(document, list):
        document = [item.model_dump(mode="json") for item in document]
    elif hasattr(document, "model_dump"):
        document = document.model_dump(mode="json")
    print(json.dumps(document, indent=2, ensure_ascii=False))
