"""The embedded broker: there at once, gone with its parent, back when killed, open only to whom it knows."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from marram.bus.client import Bus, Timing
from marram.bus.server import EmbeddedServer, find_server
from marram.schema.errors import Conflict, Invalid, Missing, NotReady, Refused

SECRET = "secret-of-a-device-0123456789"
QUICK = Timing(retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.1)
Until = Callable[..., None]

PARENT = """
import sys
from pathlib import Path
from marram.bus.server import EmbeddedServer
sys.platform = sys.argv[2]
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
print(server.pid, server.port, flush=True)
sys.stdin.read()
"""


def test_it_starts_answers_and_stops(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert server.url == f"nats://127.0.0.1:{server.port}"
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as peer:
            assert peer.recv(100).startswith(b"INFO ")
        pid = server.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)
    assert server.pid is None
    server.stop()  # twice is once


def test_its_secrets_are_for_its_owner_only(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "broker") as server:
        server.set_devices({"d1": SECRET})
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        for name in ("nats.json", "control.password"):
            assert stat.S_IMODE((server.folder / name).stat().st_mode) == 0o600


def test_a_second_one_on_the_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"):
        EmbeddedServer(tmp_path).start()
    with EmbeddedServer(tmp_path):  # it is free now
        pass


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port}"):
            EmbeddedServer(tmp_path, port=port).start()
    with EmbeddedServer(tmp_path, port=port) as server:  # the folder is free again, and so is the port
        assert server.port == port


def test_the_next_start_has_the_same_port_where_it_is_free(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        port = first.port
    with EmbeddedServer(tmp_path) as second:
        assert second.port == port
    with socket.create_server(("127.0.0.1", port)), EmbeddedServer(tmp_path) as third:
        assert third.port != port


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_it_dies_with_its_parent_however_that_ends(tmp_path: Path, until_blocking: Until, platform: str) -> None:
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
    with EmbeddedServer(tmp_path):  # and the folder is free
        pass


def test_killed_again_and_again_it_comes_back_on_its_port(tmp_path: Path, until_blocking: Until) -> None:
    with EmbeddedServer(tmp_path) as server:
        port = server.port
        for _ in range(3):
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until_blocking(lambda pid=pid: server.pid not in (None, pid) and _answers(port))
        assert server.port == port
        assert server.restarts == 3


async def test_a_device_is_let_in_and_out(tmp_path: Path, until: Callable[..., Awaitable[None]]) -> None:
    with EmbeddedServer(tmp_path) as server:
        bus = await Bus.connect(server.url, "d1", SECRET, timing=QUICK)
        with pytest.raises(Refused):
            await bus.wait_connected(0.3)
        server.set_devices({"d1": SECRET})
        await bus.wait_connected(5)
        server.set_devices({"d2": SECRET})
        await until(lambda: not bus.connected)
        server.set_devices({"d1": SECRET})
        await bus.wait_connected(5)
        # A restart forgets nobody.
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not bus.connected)
        await bus.wait_connected(5)
        await bus.close()


def test_devices_may_change_while_it_is_being_restarted(tmp_path: Path, until_blocking: Until) -> None:
    with EmbeddedServer(tmp_path) as server:
        for count in range(5):
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            server.set_devices({f"d{n}": SECRET for n in range(count)})
            until_blocking(lambda pid=pid: server.pid not in (None, pid) and _answers(server.port))


@pytest.mark.parametrize("devices", [{"../etc": SECRET}, {"CONTROL": SECRET}, {"d1": "short"}, {"d1": 'a"b' * 10}])
def test_malformed_devices_are_refused(tmp_path: Path, devices: dict[str, str]) -> None:
    with EmbeddedServer(tmp_path) as server:
        with pytest.raises(Invalid):
            server.set_devices(devices)
        server.set_devices({"d1": SECRET})


def test_garbage_in_the_folder_is_replaced(tmp_path: Path) -> None:
    for name in ("control.password", "nats.json", "port", "lock"):
        (tmp_path / name).write_bytes(b"\xff garbage {" * 10)
    with EmbeddedServer(tmp_path) as server:
        assert _answers(server.port)
        assert (tmp_path / "control.password").read_text().strip() == server.control_password


def test_the_control_password_stays(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        password = server.control_password
    with EmbeddedServer(tmp_path) as server:
        assert server.control_password == password


def test_a_file_where_the_folder_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="file"):
        EmbeddedServer(tmp_path / "file").start()


def test_an_impossible_host_is_said_as_the_server_says_it(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="did not start"):
        EmbeddedServer(tmp_path, host="192.0.2.1").start()


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


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as peer:
            return peer.recv(100).startswith(b"INFO ")
    except OSError:
        return False
