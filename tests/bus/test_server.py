"""The embedded broker: there at once, gone with its parent, back when killed, open only to whom it knows."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from marram.bus.client import Timing
from marram.bus.server import EmbeddedServer, find_server
from marram.lab.gatehouse import Gatehouse
from marram.schema.errors import Conflict, Invalid, Missing, NotReady, Retryable

QUICK = Timing(retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.1)
Until = Callable[..., None]
Make = Callable[..., EmbeddedServer]

PARENT = """
import sys
from pathlib import Path
from marram.lab.gatehouse import Gatehouse
server = Gatehouse(Path(sys.argv[1])).server
sys.platform = sys.argv[2]
server.start()
print(server.pid, server.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Gatehouse:
    """Keys and certificates for the servers here; its own is not started."""
    return Gatehouse(tmp_path_factory.mktemp("house"))


@pytest.fixture
def make(house: Gatehouse) -> Make:
    """`make(folder)`: a server in it, not started."""

    def server(folder: Path, **more: Any) -> EmbeddedServer:
        return EmbeddedServer(folder, house.accounts, house.files, **more)

    return server


def test_it_starts_answers_and_stops(tmp_path: Path, make: Make, house: Gatehouse) -> None:
    with make(tmp_path) as server:
        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert _answers(house, server.port)
        pid = server.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)
    assert server.pid is None
    server.stop()  # twice is once


def test_its_secrets_are_for_its_owner_only(tmp_path: Path, make: Make) -> None:
    with make(tmp_path / "broker") as server:
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        for name in ("nats.json", "port"):
            assert stat.S_IMODE((server.folder / name).stat().st_mode) == 0o600


def test_a_second_one_on_the_folder_is_told_who_holds_it(tmp_path: Path, make: Make) -> None:
    with make(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"):
        make(tmp_path).start()
    with make(tmp_path):  # it is free now
        pass


def test_a_taken_port_is_named(tmp_path: Path, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port}"):
            make(tmp_path, port=port).start()
    with make(tmp_path, port=port) as server:  # the folder is free again, and so is the port
        assert server.port == port


def test_the_next_start_has_the_same_port_where_it_is_free(tmp_path: Path, make: Make) -> None:
    with make(tmp_path) as first:
        port = first.port
    with make(tmp_path) as second:
        assert second.port == port
    with socket.create_server(("127.0.0.1", port)), make(tmp_path) as third:
        assert third.port != port


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_it_dies_with_its_parent_however_that_ends(
    tmp_path: Path, make: Make, until_blocking: Until, platform: str
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), platform],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline().split()[0])
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until_blocking(lambda: not _runs(pid))
    with make(tmp_path / "broker"):  # and the folder is free
        pass


def test_killed_again_and_again_it_comes_back_on_its_port(
    tmp_path: Path, make: Make, house: Gatehouse, until_blocking: Until
) -> None:
    with make(tmp_path) as server:
        port = server.port
        for _ in range(3):
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until_blocking(lambda pid=pid: server.pid not in (None, pid) and _answers(house, port))
        assert server.port == port
        assert server.restarts == 3


async def test_a_renewed_certificate_is_taken_and_nobody_is_cut(tmp_path: Path) -> None:
    with Gatehouse(tmp_path) as house:
        bus = await house.connect(timing=QUICK)
        await bus.wait_connected(5)
        before = _certificate(house)
        house.keys.write(house.files.identity, house.authority.server_certificate(["127.0.0.1"], time.time()))
        await asyncio.to_thread(house.server.reload)
        assert _certificate(house) != before
        assert bus.connected and bus.reconnects == 0
        house.files.identity.write_bytes(b"nonsense")
        with pytest.raises(Retryable, match="did not take"):
            await asyncio.to_thread(house.server.reload)
        assert bus.connected
        await bus.close()


def test_it_may_be_told_to_reload_while_it_is_being_restarted(
    tmp_path: Path, make: Make, house: Gatehouse, until_blocking: Until
) -> None:
    with make(tmp_path) as server:
        for _ in range(5):
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            server.reload()
            until_blocking(lambda pid=pid: server.pid not in (None, pid) and _answers(house, server.port))


def test_garbage_in_the_folder_is_replaced(tmp_path: Path, make: Make, house: Gatehouse) -> None:
    for name in ("nats.json", "port", "lock"):
        (tmp_path / name).write_bytes(b"\xff garbage {" * 10)
    with make(tmp_path) as server:
        assert _answers(house, server.port)


def test_a_file_where_the_folder_belongs_is_named(tmp_path: Path, make: Make) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="file"):
        make(tmp_path / "file").start()


def test_an_impossible_host_is_said_as_the_server_says_it(tmp_path: Path, make: Make) -> None:
    with pytest.raises(NotReady, match="did not start"):
        make(tmp_path, host="192.0.2.1").start()


def test_without_the_server_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="pip install"):
        find_server()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(house: Gatehouse, port: int) -> bool:
    try:
        with _connection(house, port) as peer:
            return peer.recv(100).startswith(b"INFO ")
    except OSError:
        return False


def _certificate(house: Gatehouse) -> bytes | None:
    """What the server shows."""
    with _connection(house, house.port) as peer:
        return peer.getpeercert(binary_form=True)


def _connection(house: Gatehouse, port: int) -> ssl.SSLSocket:
    return house.services.context().wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=1))
