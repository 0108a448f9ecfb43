"""`Cloud` and `marram cloud`: one at a time in a folder, clear faults, nothing left behind, everything back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from marram.bus import subjects
from marram.bus.accounts import CONTROL
from marram.bus.codec import pack_batch, pack_report, unpack_ack
from marram.cli import execute as run_command
from marram.cloud.provision import provision
from marram.cloud.server import Cloud
from marram.cloud.settings import BrokerAddress, Role, Settings
from marram.lab.gatehouse import Gatehouse
from marram.schema.device import Reported
from marram.schema.errors import Conflict, Invalid, Refused, Retryable
from marram.schema.event import Event, EventKind, Recorded

STREAM = "stream-0123456789"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_second_cloud_on_the_folder_is_a_conflict_and_harms_nothing(cloud: Cloud, device: Any) -> None:
    with pytest.raises(Conflict, match="a cloud runs in this folder already"):
        await Cloud(Settings(folder=cloud.settings.folder, port=0)).start()
    bus = await device(cloud, "pi")
    await bus.request(subjects.report("pi"), pack_report(Reported()), 10)


async def test_a_taken_port_is_a_conflict_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"127.0.0.1:{port}"):
            await Cloud(Settings(folder=tmp_path / "cloud", port=port)).start()
        with pytest.raises(Conflict, match=str(port)):
            await Cloud(Settings(folder=tmp_path / "cloud", port=0, broker_port=port)).start()
    # What was started before the fault was stopped again: the folder is free.
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running():
        pass


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
async def test_a_cloud_listens_on_ipv6_too(tmp_path: Path, device: Any, host: str) -> None:
    settings = Settings(folder=tmp_path / "cloud", host=host, port=0)
    async with Cloud(settings).running() as cloud:
        assert cloud.broker is not None and cloud.broker.url.startswith("nats://[::1]:")
        if host == "::1":  # on every address, the one that is told leads outwards, where a machine may have none
            bus = await device(cloud, "pi")
            await bus.request(subjects.report("pi"), pack_report(Reported()), 10)
            assert cloud.tls_url.startswith("https://[::1]:")
            async with httpx.AsyncClient(verify=False, trust_env=False) as client:
                assert (await client.get(f"{cloud.tls_url}/ca.pem")).status_code == 200


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot write here"):
        await Cloud(Settings(folder=tmp_path / "file" / "cloud", port=0)).start()


@pytest.mark.parametrize("part", ["lock", "marram.db", "marram.db.migrate.lock", "objects", "scratch"])
async def test_what_stands_where_a_part_of_the_folder_belongs_is_named(tmp_path: Path, part: str) -> None:
    path = tmp_path / "cloud" / part
    if part in ("objects", "scratch"):
        path.parent.mkdir()
        path.write_text("a file")
    else:
        path.mkdir(parents=True)
    with pytest.raises(Refused) as refused:
        await Cloud(Settings(folder=tmp_path / "cloud", port=0)).start()
    assert str(path) in str(refused.value)


async def test_a_host_that_is_not_ours_is_told(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="cannot listen"):
        await Cloud(Settings(folder=tmp_path / "cloud", host="203.0.113.7", port=0)).start()


async def test_a_broker_that_is_not_there_or_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.cloud.broker.CONNECT_S", 1.0)
    away = f"nats://control:password@127.0.0.1:{free_port()}"
    with pytest.raises(Retryable, match="the broker does not answer"):
        await Cloud(Settings(folder=tmp_path / "cloud", port=0, nats=away)).start()
    with Gatehouse(tmp_path / "gatehouse") as broker:
        provision(broker.keys, time.time())
        wrong = f"tls://{CONTROL}:wrong-password@127.0.0.1:{broker.port}"
        with pytest.raises(Refused, match="do not belong together"):  # the database in there was made with others
            await Cloud(Settings(folder=tmp_path / "cloud", port=0, nats=wrong, keys=broker.keys.folder)).start()
        with pytest.raises(Refused) as refused:
            await Cloud(Settings(folder=tmp_path / "other", port=0, nats=wrong, keys=broker.keys.folder)).start()
        assert "--nats" in str(refused.value) and "wrong-password" not in str(refused.value)


async def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path / "cloud", port=0, database=f"postgresql://postgres@127.0.0.1:{free_port()}/x")
    with pytest.raises(Retryable, match="does not answer"):
        await Cloud(settings).start()


async def test_the_whole_comes_back_where_it_was(tmp_path: Path, device: Any) -> None:
    settings = Settings(folder=tmp_path / "cloud", port=0)
    async with Cloud(settings).running() as cloud:
        bus = await device(cloud, "pi")
        await bus.request(subjects.events("pi"), pack_batch(STREAM, [_record(1)]), 10)
        token, brokers = cloud.admin_token, cloud.state.hands.brokers
    async with Cloud(settings).running() as cloud:
        assert (cloud.admin_token, cloud.state.hands.brokers) == (token, brokers)
        assert cloud.state.access.caller(token) is not None
        await bus.wait_connected(20)  # the device found its way back by itself
        ack = unpack_ack(await bus.request(subjects.events("pi"), pack_batch(STREAM, [_record(1), _record(2)]), 10))
        assert ack.stored == 1


async def test_those_who_stand_in_the_door_keep_nobody_out(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.cloud.door.most_connections", lambda: 8)
    port = int(cloud.url.rpartition(":")[2])
    standing = []
    heads = (b"GET /", b"POST /api/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    for number in range(12):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(heads[number % 2])  # and never more
        standing.append((reader, writer))
    async with httpx.AsyncClient(base_url=cloud.url, trust_env=False) as client:
        assert (await client.get("/openapi.json")).status_code == 200
    for reader, writer in standing[:5]:  # those that stood longest made room
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    for _, writer in standing[5:]:
        writer.close()


async def test_a_connection_that_asks_nothing_is_closed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.cloud.door.PATIENCE_S", 0.2)
    port = int(cloud.url.rpartition(":")[2])
    join = b"POST /api/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
    for begun in (b"", b"GET / HTTP/1.1\r\nHost:", join, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        with contextlib.suppress(ConnectionError):
            assert (b"200 OK" in await reader.read()) == (b"openapi" in begun)
        writer.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /healthz",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /api/v1/join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["line", "header", "trailer"],
)
async def test_a_head_without_end_is_not_kept(cloud: Cloud, begun: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(cloud.url.rpartition(":")[2]))
    writer.write(begun)
    with contextlib.suppress(ConnectionError):
        for _ in range(2000):  # 40 MB, where the door does not shut
            writer.write(b"x" * 20_000)
            await writer.drain()
        pytest.fail("all of it was taken")
    writer.close()


async def test_a_large_body_is_no_large_head(cloud: Cloud) -> None:
    async with httpx.AsyncClient(base_url=cloud.url, trust_env=False) as client:
        digest = hashlib.sha256(b"x" * 3_000_000).hexdigest()
        headers = {"Authorization": f"Bearer {cloud.admin_token}"}

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 100_000

        for content in (b"x" * 3_000_000, pieces()):
            sent = await client.put(f"/api/v1/blobs/{digest}", content=content, headers=headers)
            assert sent.status_code == 201


async def test_the_api_answers_and_needs_the_token(cloud: Cloud) -> None:
    async with httpx.AsyncClient(base_url=cloud.url, trust_env=False) as client:
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["ok"]) == (200, True)
        # Anybody may ask: it does not say where things are.
        assert {check["detail"] for check in health.json()["checks"]} == {""}
        assert (await client.get("/api/v1/status")).status_code == 401
        signed_in = {"Authorization": f"Bearer {cloud.admin_token}"}
        assert (await client.get("/api/v1/status", headers=signed_in)).json()["devices"] == 0


async def test_status_tries_the_parts_now_and_then_and_health_each_time(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(cloud.state.objects, "check", lambda: tried.append("objects") or "fine")
    statuses = await asyncio.gather(*(asyncio.to_thread(cloud.state.status) for _ in range(5)))
    assert tried == ["objects"] and all(status.checks == statuses[0].checks for status in statuses)
    for _ in range(2):
        assert all(check.ok for check in await asyncio.to_thread(cloud.state.checks))
    assert len(tried) == 3
    monkeypatch.setattr("marram.cloud.state.CHECKS_KEEP_S", 0.0)
    await asyncio.to_thread(cloud.state.status)
    assert len(tried) == 4


def test_a_killed_cloud_leaves_no_process_behind_and_a_restart_finds_everything(
    start: Callable[..., Any], tmp_path: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("cloud", "--port", "0", "--folder", str(tmp_path / "cloud"))
    _register(tmp_path / "cloud", colours)

    first = start(*arguments, "--serve", "colours")
    first.wait_for("console")
    children = _children(first.process.pid, 2)
    first.kill()
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()]

    second = start(*arguments)
    second.wait_for("console")
    context = second.context()
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {context['token']}"}) as client:
        assert client.get(f"{context['url']}/api/v1/status").json()["models"] == 1
    assert run_command(list(arguments)) == 2
    assert "a cloud runs in this folder already" in capsys.readouterr().err
    assert second.end() == 0  # Ctrl-C and SIGTERM are no faults


def test_it_prints_the_line_that_joins_one_device(start: Callable[..., Any], tmp_path: Path) -> None:
    first = start("cloud", "--port", "0", "--folder", str(tmp_path / "cloud"))
    first.wait_for("data ")
    line = next(line for line in first.output.splitlines() if line.startswith("join "))
    assert "(once, within 60 min" in line
    arguments = line.removeprefix("join").partition("(")[0].split()
    assert arguments[:3] == ["marram", "edge", "join"] and arguments[3].startswith("https://127.0.0.1:")
    for name, status in (("one", 0), ("two", 2)):
        assert run_command([*arguments[1:], "--folder", str(tmp_path / name)]) == status


def test_wrong_arguments_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        # The first: others make a database where none is named.
        (("--role", "replica", "--nats", "tls://127.0.0.1:1"), "is not told where: --database and --objects"),
        (("--role", "nonsense"), "'nonsense' is not a role"),
        (("--nats", "http://x"), "--nats is no broker address"),
        (("--database", "mysql://x/y"), "mysql"),
        (("--role", "api", "--serve", "colours"), "--serve needs the role replica"),
        (("--role", "ingest"), "needs a broker"),
    ):
        assert run_command(["cloud", "--port", "0", *arguments]) == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1


def test_a_broker_address_is_taken_apart() -> None:
    assert BrokerAddress.parse("nats://me:secret@host") == BrokerAddress("nats://host:4222", "me", "secret")
    assert BrokerAddress.parse("tls://[::1]:5").url == "tls://[::1]:5"
    for wrong in ("host:4222", "nats://", "nats://host:port", "http://host"):
        with pytest.raises(Invalid):
            BrokerAddress.parse(wrong)


async def test_a_role_alone_does_only_its_own(tmp_path: Path) -> None:
    with Gatehouse(tmp_path / "gatehouse") as broker:
        provision(broker.keys, time.time())
        address, roles = f"tls://127.0.0.1:{broker.port}", frozenset({Role.FLEET})
        settings = Settings(folder=tmp_path / "cloud", port=0, nats=address, keys=broker.keys.folder, roles=roles)
        async with Cloud(settings).running() as cloud:
            assert (cloud.url, cloud.admin_token, cloud.ingest, cloud.replicas) == ("", None, None, None)
            # Two role processes may share a folder: the lock is for whoever runs the broker.
            async with Cloud(settings).running():
                pass


# ----------------------------------------------------------------


def _record(sequence: int) -> Recorded:
    return Recorded(STREAM, sequence, Event(EventKind.RESULT, "gate", 1.0))


def _register(folder: Path, bundle: Path) -> None:
    async def register() -> None:
        async with Cloud(Settings(folder=folder, port=0)).running() as cloud:
            cloud.state.registry.add_folder(bundle)

    asyncio.run(register())


def _children(pid: int, least: int) -> list[psutil.Process]:
    """The processes that the cloud started, once there are so many."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(pid).children(recursive=True)
            if len(children) >= least:
                return children
        time.sleep(0.02)


def test_the_database_is_sound_after_it_all(tmp_path: Path) -> None:
    async def run() -> None:
        async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running():
            pass

    asyncio.run(run())
    database = sqlite3.connect(tmp_path / "cloud" / "marram.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_devices_install_says_what_a_cloud_needs() -> None:
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sqlalchemy":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent())
from marram.cli import execute as run
sys.exit(run(["cloud"]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == "a cloud needs sqlalchemy, which is not installed here. pip install 'marram[cloud]'\n"
