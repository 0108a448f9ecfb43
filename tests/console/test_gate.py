"""The door: what another site's page makes a signed-in browser ask is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from marram.cloud.access import Access
from marram.console.gate import COOKIE, Gate, _Ending, signed_in
from marram.store import open_store

Ask = Callable[..., Awaitable[int]]
IN, CLOSED = 200, "websocket.close"


async def _inside(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": IN, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """`await ask("GET", "/", origin=…)`: the status a browser at http://cloud:8080 gets; "WS" opens a socket."""
    store = open_store(tmp_path / "cloud.db")
    access = Access(store)
    session = access.machine_session().text
    gate = Gate(_inside, access)

    async def asked(method: str, path: str, *, signed_in: bool = True, **headers: str) -> int:
        said = {"host": "cloud:8080", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if signed_in:
            said["cookie"] = f"{COOKIE}={session}"
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect" if method == "WS" else "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "websocket" if method == "WS" else "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
        }
        await gate(scope, receive, send)
        first = sent[0]
        return int(first["code"]) - 4000 if first["type"] == CLOSED else int(first.get("status", IN))

    yield asked
    store.close()


CONSOLE = [("GET", "/"), ("POST", "/sign-out"), ("POST", "/sign-in"), ("GET", "/_nicegui/x"), ("WS", "/_nicegui_ws/")]


# The same host on another port is "the same site" to a cookie.
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://cloud:9999", "http://cloud", "null", "", "http://cloud:8080.evil.example"]
)
async def test_another_sites_page_is_refused(ask: Ask, origin: str) -> None:
    assert {await ask(*each, origin=origin) for each in CONSOLE} == {403}
    # The API knows no cookies: whoever has its token may be anywhere.
    assert await ask("GET", "/api/v1/status", origin=origin) == IN


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://cloud:8080"},
        {"origin": "https://Cloud:8080"},  # a proxy speaks TLS for us
        {"origin": "https://fleet.example", "x_forwarded_host": "fleet.example"},
    ],
    ids=["none", "own", "tls", "proxy"],
)
async def test_its_own_page_is_let_in(ask: Ask, headers: dict[str, str]) -> None:
    assert {await ask(*each, **headers) for each in CONSOLE} == {IN}


async def test_without_a_session_only_the_sign_in_answers(ask: Ask) -> None:
    assert [await ask(*each, signed_in=False) for each in CONSOLE] == [303, 401, IN, 401, 401]


@pytest.mark.parametrize("path", ["/api/v1/status", "/v2", "/v2/health/ready", "/v2/models/m/infer"])
async def test_what_asks_for_tokens_itself_needs_no_session(ask: Ask, path: str) -> None:
    assert await ask("POST", path, signed_in=False) == IN


async def test_what_only_looks_like_it_does(ask: Ask) -> None:
    assert {await ask("GET", path, signed_in=False) for path in ("/v2x", "/v22/models", "/api")} == {401}


async def test_an_open_socket_ends_with_its_session(tmp_path: Path) -> None:
    store, now_s = open_store(tmp_path / "cloud.db"), [0.0]
    access, sent = Access(store), list[Message]()
    session = access.machine_session().text

    async def send(message: Message) -> None:
        sent.append(message)

    socket = _Ending(access, session, send, lambda: now_s[0])
    word: Message = {"type": "websocket.send", "text": "x"}
    for now_s[0] in (0.0, 3.0, 6.0):
        await socket(word)
    caller = access.caller(session)
    assert caller is not None
    access.end(caller)
    for now_s[0] in (9.0, 9.5, 12.0, 12.5, 60.0):
        await socket(word)
    store.close()
    assert [message["type"] for message in sent] == ["websocket.send"] * 5 + ["websocket.close"]


@pytest.mark.parametrize("kind", ["api token", "ended", "nonsense", "long"])
async def test_only_a_live_session_opens_the_page(tmp_path: Path, kind: str) -> None:
    store = open_store(tmp_path / "cloud.db")
    access = Access(store)
    ended = access.machine_session().text
    caller = access.caller(ended)
    assert caller is not None and await signed_in(access, ended) == caller
    access.end(caller)
    cookie = {"api token": access.create("x").text, "ended": ended, "nonsense": "mra1.x", "long": "x" * 10_000}[kind]
    assert await signed_in(access, cookie) is None and await signed_in(access, None) is None
    store.close()
