from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.edge.world import LONG_S, ticking

from marram.bus.http import CloudApi
from marram.edge.join import check_broker, join
from marram.edge.platform import machine
from marram.edge.state import Folder
from marram.lab.attacks.impostor import Impostor
from marram.schema.device import AppState
from marram.schema.errors import Conflict, Invalid, MarramError, NotReady, Refused, Retryable, Threat, Untrusted
from marram.trust import JOIN, identity, new_token
from marram.trust.authority import Authority
from marram.trust.keys import Keys

# Of some cloud: what is wrong with the arguments is told before anybody sees it.
TOKEN = f"mrm1.{'a' * 40}.{'A' * 43}"
MARRAM = [sys.executable, "-m", "marram"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a real `marram cloud`, which runs."""
    home = tmp_path_factory.mktemp("cloud-home")
    environment = {**os.environ, "MARRAM_HOME": str(home)}
    with (home / "cloud.log").open("wb") as log:
        process = subprocess.Popen([*MARRAM, "cloud", "--port", "0"], env=environment, stdout=log, stderr=log)
    yield home
    process.send_signal(signal.SIGTERM)
    process.wait(20)


@pytest.fixture
def url(api: CloudApi) -> str:
    """Where devices join it."""
    return joining(api)[0]


def joining(api: CloudApi) -> tuple[str, str]:
    """Address and token, out of the line that is typed on a device."""
    *_, url, token = api.create_token().join.split()
    return url, token


@pytest.fixture
async def api(home: Path) -> CloudApi:
    """Its HTTP API, once it answers."""
    async with asyncio.timeout(LONG_S):
        while True:
            try:
                known = yaml.safe_load((home / "context.yaml").read_text())
                api = CloudApi(known["url"], known["token"])
                if (await asyncio.to_thread(api.health)).ok:
                    return api
            except (OSError, TypeError, NotReady, Retryable):
                pass
            await asyncio.sleep(0.1)


async def marram(*arguments: str, given: str = "", **environment: str) -> tuple[int | None, str]:
    """Run a command; its exit status, and all it said."""
    process = await asyncio.create_subprocess_exec(
        *MARRAM, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )  # fmt: skip
    words, _ = await asyncio.wait_for(process.communicate(given.encode()), LONG_S)
    assert "Traceback" not in words.decode()
    return process.returncode, " ".join(words.decode().split())


async def test_from_a_token_to_a_result_in_the_cloud(api: CloudApi, tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    url, token = joining(api)
    status, words = await marram(
        "edge", "join", url, token, "--name", "pi-join", "--label", "site=test", "--folder", str(folder)
    )
    assert status == 0 and f"marram edge run --folder {folder}" in words
    for done in ("✓ this is the cloud the token names", "✓ key made here, it never leaves", "✓ joined as pi-join (",
                 "✓ labels site=test"):  # fmt: skip
        assert done in words
    identity = Folder(folder).identity
    assert identity.own.stat().st_mode & 0o777 == 0o600 and b"BEGIN PRIVATE KEY" in identity.own.read_bytes()
    valid = identity.validity_s()
    assert valid is not None and valid[0] <= time.time() < valid[1]
    assert (folder / "credentials.yaml").stat().st_mode & 0o077 == 0
    assert "PRIVATE KEY" not in words

    agent = await asyncio.create_subprocess_exec(
        *MARRAM, "edge", "run", "--folder", str(folder), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    files = ticking()
    source = tmp_path / "app"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    manifest = await asyncio.to_thread(api.put_folder, source, list(files))
    await asyncio.to_thread(api.deploy, files["app.yaml"].decode(), manifest, {"site": "test"})
    async with asyncio.timeout(LONG_S):
        while len(await asyncio.to_thread(lambda: api.events(app="ticking", device="pi-join"))) < 10:
            await asyncio.sleep(0.1)
        while not any(
            app.state is AppState.COMMITTED for app in (await asyncio.to_thread(api.device, "pi-join")).reported.apps
        ):
            await asyncio.sleep(0.1)
    status, words = await marram("edge", "status", "--folder", str(folder))
    assert status == 0 and "pi-join" in words and "committed" in words and "connected" in words

    status, narrow = await marram("edge", "status", "--folder", str(folder), COLUMNS="40")
    assert status == 0 and "state committed" in narrow and "frames/s" in narrow and "restarts 0" in narrow
    open_to_others = {str(f) for f in folder.rglob("*") if not f.is_symlink() and f.stat().st_mode & 0o077}
    assert open_to_others == set()

    # Revoked: it says so, and runs on.
    await asyncio.to_thread(api.remove_device, "pi-join")
    async with asyncio.timeout(LONG_S):
        while "refused" not in (await marram("edge", "status", "--folder", str(folder)))[1]:
            await asyncio.sleep(0.2)
    agent.send_signal(signal.SIGINT)
    _, log = await asyncio.wait_for(agent.communicate(), LONG_S)
    assert agent.returncode == 0 and "PRIVATE KEY" not in log.decode() and "Traceback" not in log.decode()
    status, words = await marram("edge", "status", "--folder", str(folder))
    assert status == 0 and "is not running" in words and "ticking" in words


async def test_a_token_joins_once(api: CloudApi, url: str, tmp_path: Path) -> None:
    token = api.create_token().token
    first = await asyncio.to_thread(join, Folder(tmp_path / "one"), url, token)
    assert first.brokers and first.cloud == url
    with pytest.raises(Untrusted) as caught:
        await asyncio.to_thread(join, Folder(tmp_path / "two"), url, token)
    assert caught.value.threat is Threat.SPENT
    assert not Folder(tmp_path / "two").joined()


async def test_where_the_token_says_another_label_that_is_said(api: CloudApi, tmp_path: Path) -> None:
    made = await asyncio.to_thread(api.create_token, {"site": "a"})
    line = await marram(
        "edge", "join", joining(api)[0], made.token, "--label", "site=z,line=3", "--folder", str(tmp_path / "edge")
    )
    assert line[0] == 0
    assert "✓ labels line=3 site=a (its token says site=a, not z; a token's labels stand)" in line[1]


async def test_no_other_cloud_ever_sees_the_token(api: CloudApi, tmp_path: Path) -> None:
    other = Authority.create(Keys(tmp_path / "keys"), time.time())
    shown = other.server_certificate(["localhost"], time.time())
    impostor = Impostor(tmp_path, shown, other.certificate_pem)
    token = api.create_token().token
    try:
        with pytest.raises(Untrusted) as caught:
            await asyncio.to_thread(join, Folder(tmp_path / "edge"), impostor.url, token)
    finally:
        impostor.close()
    assert caught.value.threat is Threat.OTHER_CLOUD
    assert b"GET /ca.pem" in impostor.heard and token.encode() not in impostor.heard
    assert b"POST" not in impostor.heard
    assert not Folder(tmp_path / "edge").joined()


async def test_a_token_of_another_cloud_is_shown_to_nobody(url: str, tmp_path: Path) -> None:
    foreign = new_token(JOIN, Authority.create(Keys(tmp_path / "keys"), time.time()).fingerprint).text
    with pytest.raises(Untrusted) as caught:
        await asyncio.to_thread(join, Folder(tmp_path / "edge"), url, foreign)
    assert caught.value.threat is Threat.OTHER_CLOUD


async def test_joining_is_answered_on_https_only(api: CloudApi) -> None:
    csr = identity.request(identity.new_key()).decode()
    with pytest.raises(Refused, match="HTTPS only"):
        await asyncio.to_thread(api.join, api.create_token().token, csr, info=machine())


async def test_the_token_need_not_stand_on_the_command_line(api: CloudApi, url: str, tmp_path: Path) -> None:
    for name, arguments, more in (("one", ["-"], {"given": "%s\n"}), ("two", [], {"MARRAM_JOIN_TOKEN": "%s"})):
        token = api.create_token().token
        given = {key: text % token for key, text in more.items()}
        status, words = await marram("edge", "join", url, *arguments, "--folder", str(tmp_path / name), **given)
        assert status == 0 and "joined" in words
    status, words = await marram("edge", "join", url, "-", "--folder", str(tmp_path / "three"))
    assert status == 2 and "no token on standard input" in words


async def test_a_joined_folder_stays_what_it_is(api: CloudApi, url: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "edge")
    before = await asyncio.to_thread(join, folder, url, api.create_token().token)
    token = api.create_token().token
    with pytest.raises(Conflict, match=r"holds a device already.*--folder"):
        await asyncio.to_thread(join, folder, url, token)
    assert folder.credentials() == before
    # The token was not spent on it.
    await asyncio.to_thread(join, Folder(tmp_path / "other"), url, token)


async def test_an_agent_at_work_keeps_its_folder(api: CloudApi, url: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "edge")
    with folder.lock(), pytest.raises(Conflict, match=str(os.getpid())):
        await asyncio.to_thread(join, Folder(folder.path), url, api.create_token().token)


async def test_a_folder_that_cannot_be_written_spends_no_token(
    api: CloudApi, url: str, small_disk: Path, tmp_path: Path
) -> None:
    token = api.create_token().token
    folder = Folder(small_disk / "edge")
    folder.make()
    (folder.path / "lock").touch()
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    with pytest.raises(Retryable, match="disk is full"):
        await asyncio.to_thread(join, folder, url, token)
    await asyncio.to_thread(join, Folder(tmp_path / "edge"), url, token)


async def test_the_broker_may_be_another(api: CloudApi, url: str, tmp_path: Path) -> None:
    broker = "nats://127.0.0.1:4999"
    joined = await asyncio.to_thread(
        lambda: join(Folder(tmp_path / "edge"), url, api.create_token().token, brokers=[broker])
    )
    assert joined.brokers == [broker] == Folder(tmp_path / "edge").credentials().brokers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("https://127.0.0.1:9", TOKEN), "127.0.0.1:9 does not answer"),
        (("127.0.0.1:9", TOKEN), "127.0.0.1:9 does not answer"),
        (("nonsense url", TOKEN), "not a cloud address"),
        (("http://127.0.0.1:9", TOKEN), "a device joins over HTTPS, not at http://127.0.0.1:9"),
        (("https://127.0.0.1:9", TOKEN[:-44]), "the token is not complete"),
        (("https://127.0.0.1:9", TOKEN, "--label", "site"), "write key=value"),
        (("https://127.0.0.1:9", TOKEN, "--broker", "host:4222"), "Write nats://HOST:PORT"),
    ],
)
async def test_wrong_arguments(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    status, said = await marram("edge", "join", *arguments, "--folder", str(tmp_path / "edge"))
    assert status == 2 and words in said


async def test_commands_before_joining(tmp_path: Path) -> None:
    for command in ("run", "status"):
        status, said = await marram("edge", command, "--folder", str(tmp_path / "edge"))
        assert status == 2 and "marram edge join URL TOKEN" in said


@pytest.mark.parametrize("address", ["", "nats://", "nats://host", "http://host:1", "nats://host:x", "nats://:4222"])
def test_broker_addresses(address: str) -> None:
    with pytest.raises(Invalid):
        check_broker(address)
    assert check_broker("nats://host:4222") == "nats://host:4222"


def test_this_machine() -> None:
    info = machine()
    assert info.cores > 0 and info.memory_bytes > 10**8 and info.machine and info.marram
    assert issubclass(Conflict, MarramError)
