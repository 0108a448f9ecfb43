"""Processes that a rehearsal starts: each with a log file, each ending with its parent, `kill -9` included.

How they are tied to it is `system.children`'s business. Nothing here restarts anything: what ends, ended, and `check`
says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from marram.schema.errors import NotReady, Permanent
from marram.system.children import dismiss, guard, tied

_TAIL_LINES = 5


def marram(*arguments: str) -> list[str]:
    """The command line of a `marram` command, run by this very interpreter."""
    return [sys.executable, "-m", "marram", *arguments]


class Child:
    """One process in a session of its own (Ctrl-C at the terminal is its parent's to pass on).

    Start it from the main thread: Linux ties the death signal to the thread that started it. `listens`: its standard
    input stays open as long as we live (a replica ends with it); else there is none. Raises Permanent where the program
    cannot be started.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], *, listens: bool = False
    ) -> None:
        self.name = name
        self.log = log
        try:
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    tied(command),
                    stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    start_new_session=True,
                )
            self._guard = guard(self.process.pid)
        except OSError as error:
            raise Permanent(f"cannot start it: {error.strerror}", where=name) from error

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises NotReady, with its last words, where it has ended."""
        status = self.process.poll()
        if status is not None:
            raise NotReady(f"it ended (exit status {status}): {self.last_words()}", where=self.name)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end. Raises Permanent, with its last words, where it failed or took longer."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise Permanent(f"it took longer than {timeout_s:g} s: {self.last_words()}", where=self.name) from error
        if status != 0:
            raise Permanent(self.last_words(), where=self.name)

    def last_words(self) -> str:
        """The last lines it wrote, as one line."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()][-_TAIL_LINES:]
        return " / ".join(said) or f"it said nothing (log: {self.log})"

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill(self) -> None:
        """End it and everything of its session, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        dismiss(self._guard)
        self._guard = None

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask it to end (SIGTERM), then make it. Any number of times."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.kill()


def stop_all(children: Sequence[Child], timeout_s: float = 5.0) -> None:
    """Ask all of them at once, then make those that stay."""
    for child in children:
        child.signal(signal.SIGTERM)
    for child in children:
        child.stop(timeout_s)
