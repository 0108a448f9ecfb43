"""One server as processes: started and timed until it answers, weighed, halted while others are measured, ended.

Servers start processes of their own, some of which leave their parent. So whatever belongs to one is found by a mark in
its environment, which every descendant inherits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from bench.peers._client import Broken, Load
from marram.lab.children import Child
from marram.schema.errors import NotReady

_MARK = "MARRAM_BENCH_SERVER"
# Nobody takes longer to answer first.
READY_S = 60.0
# Marram's own starts are timed so often: there is a goal for them.
STARTS = 3
_POLL_S = 0.005
_END_S = 10.0
_STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Server:
    """Started by `__init__`; `await_ready` before anything else."""

    def __init__(self, name: str, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.port = port
        self._mark = f"{name}-{os.getpid()}-{port}"
        self._begun_s = time.perf_counter()
        self._child = Child(name, command, log, {**os.environ, **environment, _MARK: self._mark}, listens=True)

    def await_ready(self, request: bytes) -> float:
        """Seconds from its start to its first answer. Raises NotReady, with its last words."""
        while True:
            try:
                once(self.port, request)
                return time.perf_counter() - self._begun_s
            except (OSError, Broken) as error:
                self._child.check()
                if time.perf_counter() - self._begun_s > READY_S:
                    said = self._child.last_words()
                    raise NotReady(f"no answer within {READY_S:.0f} s ({error}): {said}", where=self.name) from error
            time.sleep(_POLL_S)

    def say(self, line: bytes) -> None:
        """Write to its standard input, which stays open."""
        assert self._child.process.stdin is not None
        self._child.process.stdin.write(line)
        self._child.process.stdin.flush()

    def check(self) -> None:
        """Raises NotReady, with its last words, where it has ended."""
        self._child.check()

    def halt(self) -> None:
        """Not a cycle for it from now on: returns once all of it stands still."""
        ends_s = time.perf_counter() + _END_S
        for process in self._signal(signal.SIGSTOP):
            with contextlib.suppress(psutil.Error):
                while process.status() not in _STILL and time.perf_counter() < ends_s:
                    time.sleep(0.001)

    def resume(self) -> None:
        """Undo `halt`."""
        self._signal(signal.SIGCONT)

    def weight_mb(self) -> float:
        """Memory of all its processes, each page that several of them map counted once (PSS), in MB."""
        total = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                full = process.memory_full_info()
                total += getattr(full, "pss", full.uss)
        return total / 1e6

    def cpu_s(self) -> float:
        """Processor time of all its processes so far, seconds."""
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                total += spent.user + spent.system
        return total

    def stop(self) -> None:
        """End all of it: in order, then by force."""
        self.resume()
        self._child.stop(_END_S)
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _signal(self, number: int) -> list[psutil.Process]:
        told = self._processes()
        for process in told:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        return told

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            # Somebody else's process, or one that has just ended: none of ours.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found


class Served:
    """What contenders with one server share (see `_contenders.Contender`). `ready_s`: of each start."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready_s: list[float] = []
        self._server: Server | None = None

    @property
    def _running(self) -> Server:
        assert self._server is not None
        return self._server

    def weight_mb(self) -> float:
        """Of the server alone; see `Server.weight_mb`."""
        return self._running.weight_mb()

    def cpu_s(self) -> float:
        """See `Server.cpu_s`."""
        return self._running.cpu_s()

    def stop(self) -> None:
        """End the server; any number of times."""
        if self._server is not None:
            self._server.stop()
            self._server = None


def once(port: int, request: bytes) -> bytes:
    """One answer over a connection of its own. Raises OSError, Broken."""
    load = Load(port, [request], 1)
    try:
        return load.once()
    finally:
        load.close()
