"""A shaped link in a process of its own (see `marram.lab.shaper`), for whoever is not asyncio: the demo, the benches.

It ends with its parent, `kill -9` included: its commands come over a pipe, and the end of that pipe is its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, Self

from marram.schema.errors import NotReady, Permanent


class LinkProcess:
    """`with LinkProcess("127.0.0.1:4222", "lte:7") as link: … link.port … link.cut()`. Safe from any thread.

    `trace` as in `marram.lab.traces.parse_trace`; `rtt_s` and `down_bit_s` take the place of its round-trip times and
    of its down link, which most recordings do not hold. `listen` 0 takes a free port. Raises Permanent with the
    shaper's own words where it cannot start (no such trace, port taken), NotReady from any call after it ended.
    """

    def __init__(
        self,
        target: str,
        trace: str,
        *,
        rtt_s: float | None = None,
        down_bit_s: float | None = None,
        listen: int = 0,
    ) -> None:
        arguments = ["--target", target, "--trace", trace, "--listen", str(listen)]
        if rtt_s is not None:
            arguments += ["--rtt", str(rtt_s)]
        if down_bit_s is not None:
            arguments += ["--down", str(down_bit_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "marram.lab.shaper", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # Ctrl-C at the terminal is the parent's to handle: the link must outlive it to be cleaned up in order.
            start_new_session=True,
        )
        self._lock = threading.Lock()
        first = self._read()
        if "port" not in first:
            self.close()
            raise Permanent(str(first.get("error", "the link did not start")), where=f"link to {target}")
        self.port = int(first["port"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise NotReady(f"the link process ended (exit status {self.process.wait()})")
        document: dict[str, Any] = json.loads(line)
        return document

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with self._lock:
            try:
                self.process.stdin.write(json.dumps({"do": command}) + "\n")
            except (OSError, ValueError) as error:
                raise NotReady("the link process ended") from error
            return self._read()

    def cut(self) -> None:
        """Blackhole: nothing moves, nothing closes."""
        self._ask("cut")

    def heal(self) -> None:
        """Everything moves again."""
        self._ask("heal")

    def reset(self) -> None:
        """Break every connection with RST."""
        self._ask("reset")

    def stats(self) -> dict[str, Any]:
        """See `Link.stats`."""
        return self._ask("stats")

    def close(self) -> None:
        """End it. Any number of times."""
        with self._lock:
            if self.process.stdin is not None and not self.process.stdin.closed:
                self.process.stdin.close()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
