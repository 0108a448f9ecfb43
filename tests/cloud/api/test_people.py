"""The API's walls: a permission on every route, a row for every change, a sign-in that neither leaks nor locks out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts
from tests.cloud.api.serving import Served, colours, sample, serving

from marram.cloud.access import Caller
from marram.cloud.api import create_app
from marram.cloud.api.desk import MOST_WAITING, Desk
from marram.cloud.api.faults import TooMany
from marram.cloud.api.guard import needed
from marram.cloud.passwords import Passwords
from marram.cloud.people import WrongPassword
from marram.schema.api import JoinAsk, Joined, ModelAsk, RenewAsk
from marram.schema.errors import Invalid, Missing, Refused, Retryable
from marram.schema.people import Permission, Role, UserAsk, UserChange
from marram.trust import identity

WORDS = "correct horse battery"
STATE_CHANGING = {"POST", "PUT", "DELETE", "PATCH"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One cloud for what leaves no trace, with one person of each role."""
    with serving(tmp_path_factory.mktemp("people") / "cloud") as cloud:
        populate(cloud)
        yield cloud


def populate(served: Served) -> None:
    served.state.people._passwords = Passwords(memory_kib=8, passes=1)  # what it costs is tested elsewhere
    machine = served.state.access.caller(served.token)
    assert machine is not None
    for role in Role:
        served.state.people.add(machine, UserAsk(name=role.value, role=role, password=WORDS))


@pytest.fixture
def people(served: Served) -> Served:
    populate(served)
    return served


def token_of(served: Served, name: str) -> str:
    with served.api() as api:
        return api.sign_in(name, WORDS).token


def routes(app: Any) -> list[Any]:
    """Every route of the API, with the path it has in the end."""
    found = [route for route in iter_route_contexts(app.routes) if isinstance(route.original_route, APIRoute)]
    named = {route.path_format for route in found if route.include_in_schema}
    assert named == set(app.openapi()["paths"]) and len(named) > 30, "this walk misses some"
    return found


# ---------------------------------------------------------------- a permission on every route


def test_every_route_says_whom_it_is_for(shared: Served) -> None:
    app = create_app(shared.state)
    silent = [route.path for route in routes(app) if needed(route.endpoint) is None]
    assert silent == [], "put @needs(Permission.X) above it (cloud/api/guard.py)"
    for route in routes(app):
        declared = needed(route.endpoint)
        assert declared is not None
        if declared.permissions and not route.methods & STATE_CHANGING:
            continue
        # What changes something is for nobody who may only look.
        assert Permission.READ not in declared.permissions, route.path


def test_a_route_that_says_nothing_is_shut_for_everybody(shared: Served) -> None:
    app = create_app(shared.state)
    router = APIRouter()

    @router.get("/forgotten")
    def forgotten() -> str:
        return "everything"

    app.include_router(router)
    app.router.routes.insert(0, app.router.routes.pop())  # before the one that catches all
    transport = httpx.ASGITransport(app)

    async def ask(**headers: str) -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get("/forgotten", headers=headers)).status_code

    assert asyncio.run(ask()) == 401
    assert asyncio.run(ask(Authorization=f"Bearer {shared.token}")) == 403


def place(route: Any) -> str:
    path = route.path_format
    for name in route.param_convertors:
        path = path.replace(f"{{{name}}}", "0" * 64 if name == "sha256" else "1" if name in ("id", "version") else "a")
    return path


@pytest.mark.parametrize("role", list(Role))
def test_a_role_is_let_in_exactly_where_its_permissions_say(shared: Served, role: Role) -> None:
    """Nothing is sent that would do anything: where it is let in, the request itself is wrong."""
    token = token_of(shared, role.value)
    with httpx.Client(base_url=shared.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
        for route in routes(create_app(shared.state)):
            declared = needed(route.endpoint)
            assert declared is not None
            if not declared.permissions:
                continue  # for everybody who is signed in, or nobody
            for method in sorted(route.methods & (STATE_CHANGING | {"GET"})):
                answer = client.request(method, place(route), content=b"{")
                refused = answer.status_code == 403 and "needs the permission" in answer.text
                let_in = not role.permissions.isdisjoint(declared.permissions)
                assert refused != let_in, (role, method, route.path, answer.status_code, answer.text)


def test_a_refusal_names_what_is_missing_and_who_can_mend_it(shared: Served) -> None:
    with shared.api(token_of(shared, "viewer")) as api:
        with pytest.raises(Refused) as caught:
            api.create_token()
        assert str(caught.value) == (
            'viewer (viewer) may not do this: it needs the permission "devices". '
            "An admin can change a person's role: marram user role viewer ROLE"
        )
        with pytest.raises(Refused, match='"label"'):
            api.label_sample(1, "cat")
    with shared.api(token_of(shared, "operator")) as api:
        limited = api.create_api_token("reader", scopes=[Permission.READ])
    with shared.api(limited.token) as api:
        assert api.me().permissions == [Permission.READ]
        with pytest.raises(Refused) as caught:
            api.create_token()
        assert f'the token {limited.id} of operator has no scope "devices"' in str(caught.value)


# ---------------------------------------------------------------- escalation


def test_an_operator_becomes_no_admin(shared: Served) -> None:
    with shared.api(token_of(shared, "operator")) as api:
        attempts: list[Callable[[], Any]] = [
            lambda: api.add_user("mole", Role.ADMIN, WORDS),
            lambda: api.change_user("operator", role=Role.ADMIN),
            lambda: api.change_user("admin", password="a password of mine"),
            lambda: api.remove_user("admin"),
            lambda: api.create_api_token("x", owner="admin"),
            lambda: api.create_api_token("x", scopes=[Permission.PEOPLE]),
            lambda: api.api_tokens("admin"),
            lambda: api.users(),
            lambda: api.audit(),
        ]
        for attempt in attempts:
            with pytest.raises(Refused):
                attempt()
        machine = next(row for row in shared.state.store.admins.list() if row.owner is None)
        with pytest.raises(Refused):
            api.revoke_api_token(machine.id)


def test_a_demoted_persons_live_session_and_token_are_demoted_with_them(people: Served) -> None:
    with people.api(token_of(people, "admin")) as live:
        program = live.create_api_token("program").token
        assert live.users() and people.api(program).users()
        people.api().change_user("admin", role=Role.VIEWER)
        for token in (live, people.api(program)):
            with pytest.raises(Refused, match='needs the permission "people"'):
                token.users()
            assert token.status().devices == 0
        people.api().change_user("admin", disabled=True)
        for token in (live, people.api(program)):
            with pytest.raises(Refused, match="or it is over"):
                token.status()


def test_signing_out_ends_the_session_and_no_other(people: Served) -> None:
    one, two = token_of(people, "viewer"), token_of(people, "viewer")
    people.api(one).sign_out()
    with pytest.raises(Refused):
        people.api(one).me()
    assert people.api(two).me().user == "viewer"
    with pytest.raises(Refused, match="nothing to sign out of"):
        people.api().sign_out()
    assert people.api().me().user is None, "this machine's token is no session"


def test_a_person_is_the_same_however_the_name_is_written(people: Served) -> None:
    with people.api() as api:
        assert api.change_user("ＶＩＥＷＥＲ", role=Role.OPERATOR).name == "viewer"
        assert api.create_api_token("x", owner=" Viewer").owner == "viewer"
        assert [token.owner for token in api.api_tokens("VIEWER")] == ["viewer"]
        api.remove_user("Viewer")
        with pytest.raises(Missing):
            api.remove_user("viewer")


# ---------------------------------------------------------------- a row for every change


# How each state-changing route is made to change something, by its method and path: what is asked, and the action that
# its row must name. A new route belongs here; while it leaves no row, it is not finished.
CHANGES: dict[tuple[str, str], tuple[Callable[[Served, httpx.Client], httpx.Response], str]] = {}
APP = "app: photos\nsource: {images: photos, repeat: true}\nsteps: [{alert: 'true'}]\n"


def change(method: str, path: str, action: str) -> Callable[[Any], Any]:
    def keep(ask: Callable[[Served, httpx.Client], httpx.Response]) -> Any:
        CHANGES[method, f"/api/v1{path}"] = ask, action
        return ask

    return keep


def simple(method: str, path: str, action: str, at: str | None = None, **body: Any) -> None:
    """One request and no more: `body` sent to `at`."""

    def ask(_: Served, client: httpx.Client) -> httpx.Response:
        return client.request(method, f"/api/v1{at or path}", json=body)

    change(method, path, action)(ask)


def as_viewer(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(served, 'viewer')}"}


simple("POST", "/sessions", "session.open", name="viewer", password=WORDS)
simple("POST", "/users", "user.add", name="new", role="viewer", password=WORDS)
simple("PATCH", "/users/{name}", "user.change", "/users/viewer", disabled=True)
simple("DELETE", "/users/{name}", "user.remove", "/users/viewer")
simple("POST", "/api-tokens", "token.create", name="x", owner="viewer")
simple("POST", "/tokens", "join_token.create")
simple("POST", "/deployments", "deploy", app_yaml=APP)
simple("PUT", "/secrets/{name}", "secret.set", "/secrets/WIFI", value="hidden")


@change("DELETE", "/sessions/mine", "session.close")
def sign_out(served: Served, client: httpx.Client) -> httpx.Response:
    return client.delete("/api/v1/sessions/mine", headers=as_viewer(served))


@change("POST", "/me/password", "user.change")
def own_password(served: Served, client: httpx.Client) -> httpx.Response:
    body = {"old": WORDS, "new": "another horse, another"}
    return client.post("/api/v1/me/password", json=body, headers=as_viewer(served))


@change("DELETE", "/api-tokens/{id}", "token.revoke")
def revoke_api_token(served: Served, client: httpx.Client) -> httpx.Response:
    return client.delete(f"/api/v1/api-tokens/{served.api().create_api_token('x', owner='viewer').id}")


@change("DELETE", "/tokens/{id}", "join_token.revoke")
def revoke_token(served: Served, client: httpx.Client) -> httpx.Response:
    return client.delete(f"/api/v1/tokens/{served.api().create_token().id}")


@change("DELETE", "/devices/{id}", "device.remove")
def remove_device(served: Served, client: httpx.Client) -> httpx.Response:
    served.add_device("pi")
    return client.delete("/api/v1/devices/pi")


@change("POST", "/devices/{id}/bench", "device.bench")
def bench(served: Served, client: httpx.Client) -> httpx.Response:
    served.add_device("pi")
    served.report("pi")
    return client.post("/api/v1/devices/pi/bench", json={})


@change("PUT", "/blobs/{sha256}", "blob.put")
def put_blob(_: Served, client: httpx.Client) -> httpx.Response:
    return client.put(f"/api/v1/blobs/{hashlib.sha256(b'content').hexdigest()}", content=b"content")


@change("DELETE", "/deployments/{app}", "undeploy")
def undeploy(_: Served, client: httpx.Client) -> httpx.Response:
    client.post("/api/v1/deployments", json={"app_yaml": APP}).raise_for_status()
    return client.delete("/api/v1/deployments/photos")


@change("POST", "/samples/{id}/label", "sample.label")
def label(served: Served, client: httpx.Client) -> httpx.Response:
    served.add_device("pi")
    served.deliver("pi", [sample(b"picture")])
    return client.post("/api/v1/samples/1/label", json={"label": "cat"})


@change("DELETE", "/secrets/{name}", "secret.remove")
def remove_secret(_: Served, client: httpx.Client) -> httpx.Response:
    client.put("/api/v1/secrets/WIFI", json={"value": "hidden"}).raise_for_status()
    return client.delete("/api/v1/secrets/WIFI")


@change("POST", "/models", "model.add")
def add_model(served: Served, client: httpx.Client) -> httpx.Response:
    bundle = colours(served.state.scratch / "bundle")
    manifest = served.api().put_folder(bundle.folder, bundle.files())
    body = ModelAsk(card=bundle.card, manifest=manifest).model_dump_json()
    return client.post("/api/v1/models", content=body, headers={"Content-Type": "application/json"})


@change("PUT", "/models/{name}/channels/{channel}", "model.tag")
def tag(served: Served, client: httpx.Client) -> httpx.Response:
    add_model(served, client).raise_for_status()
    return client.put("/api/v1/models/colours/channels/stable", json={"version": 1})


@change("DELETE", "/models/{name}/channels/{channel}", "model.untag")
def untag(served: Served, client: httpx.Client) -> httpx.Response:
    tag(served, client).raise_for_status()
    return client.delete("/api/v1/models/colours/channels/stable")


def rolling(served: Served) -> int:
    """A rollout under way: its device runs the version before."""
    with served.api() as api:
        served.add_device("pi")
        api.deploy(APP)
        served.report("pi", "photos")
        made = api.deploy(APP.replace("'true'", "'false'")).rollout
    assert made is not None
    return made


@change("POST", "/rollouts/{id}/{act}", "rollout.pause")
def steer(served: Served, client: httpx.Client) -> httpx.Response:
    return client.post(f"/api/v1/rollouts/{rolling(served)}/pause")


@change("POST", "/rollouts/{id}/retry/{device}", "rollout.retry")
def retry(served: Served, client: httpx.Client) -> httpx.Response:
    id = rolling(served)
    client.post(f"/api/v1/rollouts/{id}/promote").raise_for_status()
    return client.post(f"/api/v1/rollouts/{id}/retry/pi")


def stranger(served: Served, path: str, body: Any) -> httpx.Response:
    """Over HTTPS, where a machine may join; with no token at all."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(served.state))
        async with httpx.AsyncClient(transport=transport, base_url="https://cloud") as client:
            return await client.post(path, content=body.model_dump_json(), headers={"Content-Type": "application/json"})

    return asyncio.run(ask())


def joining(served: Served) -> tuple[bytes, httpx.Response]:
    key = identity.new_key()
    token = served.api().create_token().token
    ask = JoinAsk(token=token, name="viewer", csr=identity.request(key).decode())
    return key, stranger(served, "/api/v1/join", ask)


@change("POST", "/join", "device.join")
def join(served: Served, _: httpx.Client) -> httpx.Response:
    return joining(served)[1]


@change("POST", "/renew", "device.renew")
def renew(served: Served, _: httpx.Client) -> httpx.Response:
    key, answer = joining(served)
    joined = Joined.model_validate_json(answer.content)
    own = identity.accept(joined.certificate.encode(), key, joined.ca.encode())
    csr = identity.request(identity.new_key())
    ask = RenewAsk(certificate=joined.certificate, csr=csr.decode(), proof=identity.prove(own, csr))
    return stranger(served, "/api/v1/renew", ask)


# Questions that need a body; they change nothing.
ASKED = {("POST", "/api/v1/standing")}


def state_changing() -> list[tuple[str, str]]:
    """Every such route of the API, known without a cloud behind it."""
    app = create_app(None)  # type: ignore[arg-type]
    shown = [route for route in routes(app) if route.include_in_schema]
    return sorted({(method, route.path) for route in shown for method in route.methods & STATE_CHANGING} - ASKED)


@pytest.mark.parametrize(("method", "path"), state_changing())
def test_every_change_leaves_a_row(people: Served, method: str, path: str) -> None:
    assert (method, path) in CHANGES, "say in CHANGES how this route is made to change something"
    ask, action = CHANGES[method, path]
    headers = {"Authorization": f"Bearer {people.token}"}
    with httpx.Client(base_url=people.url, headers=headers, trust_env=False, timeout=20) as client:
        answer = ask(people, client)
    assert answer.is_success, answer.text
    rows = [row for row in people.state.audit.list(limit=1000) if row.action == action]
    assert rows, [row.action for row in people.state.audit.list(limit=1000)]
    own = {"/join": "device:viewer", "/renew": "device:viewer", "/sessions": "user:viewer", "/me/": "user:viewer"}
    actor = next((who for part, who in own.items() if part in path), "machine")
    assert rows[-1].actor == actor and rows[-1].target
    assert "hidden" not in repr(rows) and WORDS not in repr(rows)
    assert people.state.audit.verify().broken is None


def test_a_deployments_row_says_which(people: Served) -> None:
    people.api().deploy(APP, selector={"site": "a"})
    (row,) = [row for row in people.state.audit.list() if row.action == "deploy"]
    assert row.target == "photos" and row.detail["selector"] == {"site": "a"}
    assert (row.detail["deployment"], row.detail["version"]) == (1, 1)


def test_what_is_refused_or_wrong_leaves_no_row(people: Served) -> None:
    token = token_of(people, "viewer")
    before = len(people.state.audit.list(limit=1000))
    with people.api(token) as api, contextlib.suppress(Refused):
        api.create_token()
    with people.api() as api:
        for attempt in (
            lambda: api.remove_device("nobody"), lambda: api.label_sample(7, "x"), lambda: api.undeploy("nothing"),
            lambda: api.revoke_token("none"), lambda: api.deploy("app: x\n"), lambda: api.remove_user("none"),
            lambda: api.add_user("viewer", Role.ADMIN, WORDS), lambda: api.sign_in("viewer", "wrong"),
        ):  # fmt: skip
            with pytest.raises((Missing, Invalid, Refused, Exception)):
                attempt()
    assert len(people.state.audit.list(limit=1000)) == before


def test_the_log_is_read_and_checked_through_the_api(people: Served) -> None:
    with people.api(token_of(people, "admin")) as api:
        api.create_token()
        rows = api.audit(after=0)
        assert [row.id for row in rows] == list(range(1, len(rows) + 1))
        assert rows[-1].actor == "user:admin" and api.audit(actor="user:admin", action="join_token") == rows[-1:]
        found = api.check_audit()
        assert (found.rows, found.head, found.broken) == (len(rows), rows[-1].digest, None)
        assert api.check_audit((1, rows[0].digest)).broken is None
        assert api.check_audit((1, rows[1].digest)).broken == 1


# ---------------------------------------------------------------- the desk


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Door:
    """A desk, and how often somebody was really looked at."""

    def __init__(self) -> None:
        self.clock, self.looked = Clock(), 0
        self.desk = Desk(self.clock)

    async def tries(self, name: str, address: str, right: bool = False) -> str:
        def prove() -> str:
            self.looked += 1
            if not right:
                raise WrongPassword
            return "in"

        try:
            return await self.desk.attempt(name, address, prove)
        except WrongPassword:
            return "wrong"
        except TooMany:
            return "wait"


async def test_one_address_tries_few_passwords_whoever_it_names() -> None:
    door = Door()
    answers = [await door.tries(f"user{n}", "10.0.0.1") for n in range(100)]
    assert answers.count("wrong") == 10 and answers[-1] == "wait" and door.looked == 10
    assert await door.tries("ann", "10.0.0.2", right=True) == "in"
    door.clock.now_s += 15.1
    assert await door.tries("ann", "10.0.0.1", right=True) == "in", "an attempt comes back with time"


async def test_many_addresses_try_few_passwords_of_one_person_who_still_gets_in() -> None:
    door = Door()
    assert await door.tries("ann", "10.9.9.9", right=True) == "in"
    for n in range(3000):
        await door.tries("Ann ", f"10.1.{n // 250}.{n % 250}")
    assert door.looked < 40
    # From where she signed in before, at once; from elsewhere, and for anybody else, soon.
    assert await door.tries("ann", "10.9.9.9", right=True) == "in"
    assert await door.tries("bob", "10.8.8.8", right=True) == "in"
    assert await door.tries("ann", "10.7.7.7", right=True) == "wait"
    door.clock.now_s += 10.1
    assert await door.tries("ann", "10.7.7.7", right=True) == "in"
    # Nor does a neighbour who fails from her address, under other names, shut her out.
    for n in range(100):
        await door.tries(f"user{n}", "10.9.9.9")
    assert await door.tries("ann", "10.9.9.9", right=True) == "in"


async def test_a_known_address_has_no_free_guesses() -> None:
    door = Door()
    await door.tries("ann", "10.9.9.9", right=True)
    looked = door.looked
    answers = [await door.tries("ann", "10.9.9.9") for _ in range(100)]
    assert answers[-1] == "wait" and door.looked - looked == 10
    assert await door.tries("bob", "10.9.9.9", right=True) == "in", "nor do they cost others who come from there"


async def test_a_crowd_waits_outside_of_the_threads_and_not_without_end() -> None:
    door = Door()
    crowd = [door.tries(f"user{n}", f"10.0.{n}.1") for n in range(200)]
    answers = await asyncio.gather(*crowd)
    assert answers.count("wrong") == MOST_WAITING and answers.count("wait") == 200 - MOST_WAITING
    assert await door.tries("ann", "10.9.9.9", right=True) == "in"


async def test_who_has_used_all_attempts_up_takes_nobodys_place_in_the_queue() -> None:
    door = Door()
    for n in range(10):
        await door.tries(f"user{n}", "10.0.0.1")
    crowd = [door.tries("user", "10.0.0.1") for _ in range(2 * MOST_WAITING)]
    # Behind one who is looked at just now.
    answers = await asyncio.gather(door.tries("bob", "10.8.8.8"), *crowd, door.tries("ann", "10.9.9.9", right=True))
    assert answers == ["wrong", *["wait"] * 2 * MOST_WAITING, "in"]


async def test_who_comes_all_at_once_has_no_more_attempts() -> None:
    door = Door()
    answers = await asyncio.gather(*(door.tries("ann", "10.0.0.1") for _ in range(MOST_WAITING)))
    assert answers.count("wrong") == 10 == door.looked


async def test_ten_thousand_failures_keep_the_memory_bounded() -> None:
    door = Door()
    for n in range(6000):  # every limit's memory is full by then
        await door.tries(f"user{n}", f"10.{n // 62500}.{n // 250 % 250}.{n % 250}")
    tracemalloc.start()
    try:
        for n in range(10_000):
            await door.tries(f"other{n}" * 10, f"11.{n // 62500}.{n // 250 % 250}.{n % 250}")
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown_bytes < 4_000_000
    assert await door.tries("ann", "10.9.9.9", right=True) == "in"


def test_a_flood_at_the_front_door_lets_an_honest_person_in(people: Served) -> None:
    ask = {"name": "viewer", "password": "wrong"}
    with httpx.Client(base_url=people.url, trust_env=False, timeout=20) as flood:
        statuses = [flood.post("/api/v1/sessions", json=ask).status_code for _ in range(400)]
        assert set(statuses) == {403, 429} and statuses.count(403) <= 12
        limited = flood.post("/api/v1/sessions", json=ask)
        assert int(limited.headers["retry-after"]) >= 1 and "too many wrong passwords" in limited.text
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=people.url, transport=elsewhere, timeout=20) as honest:
        assert honest.post("/api/v1/sessions", json=ask | {"password": WORDS}).status_code == 201
    assert people.api().status().version, "whoever has a token never notices"


@pytest.mark.parametrize("password", ["x" * 1025, "x" * 3_000_000, "", None, 7, ["x"]])
def test_a_password_that_is_none_costs_nothing(shared: Served, password: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passwords, "proves", lambda *_: pytest.fail("it was looked at"))
    with httpx.Client(base_url=shared.url, trust_env=False, timeout=20) as client:
        answer = client.post("/api/v1/sessions", json={"name": "viewer", "password": password})
    assert answer.status_code == 400 and "xxx" not in answer.text


def test_no_token_or_password_reaches_a_log(people: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = token_of(people, "viewer")
    people.state.people.sign_in = None  # type: ignore[method-assign,assignment]  # fails as nothing foreseen does
    with httpx.Client(base_url=people.url, trust_env=False, timeout=20) as client:
        body = {"name": "hunter2 is my name", "password": "the secret words"}
        assert client.post("/api/v1/sessions", params={"token": token}, json=body).status_code == 500
        client.get("/api/v1/devices", params={"token": token, "selector": token})
        client.get("/api/v1/devices", headers={"Authorization": f"Bearer {token}x"})
        client.get(f"/api/v1/nothing/here?code={token}")
    assert "failed" in caplog.text
    ours = "\n".join(
        record.getMessage() + str(record.exc_text or "")
        for record in caplog.records
        if record.name.startswith("marram")
    )
    for secret in (token, token[13:], "hunter2", "the secret words"):
        assert secret not in ours


def test_a_token_in_the_address_opens_nothing(shared: Served) -> None:
    with httpx.Client(base_url=shared.url, trust_env=False, timeout=20) as client:
        for name in ("token", "access_token", "code"):
            assert client.get("/api/v1/status", params={name: shared.token}).status_code == 401
        assert client.get("/api/v1/status", cookies={"marram_session": shared.token}).status_code == 401


def test_a_database_that_is_away_lets_no_stranger_in(people: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise Retryable("away")

    token = token_of(people, "viewer")
    people.api(token).me()
    monkeypatch.setattr("marram.cloud.access._CACHE_S", 0.0)
    monkeypatch.setattr(people.state.store.admins, "held", away)
    with pytest.raises(Refused):
        people.api(token[:-1] + ("a" if token[-1] != "a" else "b")).me()
    assert people.api(token).me().user == "viewer", "who was let in still is"


def test_callers_are_told_apart_in_the_log(people: Served) -> None:
    with people.api(token_of(people, "operator")) as api:
        program = api.create_api_token("nightly\u202e", scopes=[Permission.DEVICES])
        api.create_token()
    people.api(program.token).create_token()
    people.api().create_token()
    assert [row.actor for row in people.state.audit.list() if row.action == "join_token.create"] == [
        "user:operator", f"user:operator/token:{program.id}", "machine",
    ]  # fmt: skip


def test_what_a_caller_is_never_shows_the_token(people: Served) -> None:
    token = token_of(people, "admin")
    caller = people.state.access.caller(token)
    assert isinstance(caller, Caller) and token[13:] not in repr(caller)
    assert WORDS not in repr(UserChange(password=WORDS))
