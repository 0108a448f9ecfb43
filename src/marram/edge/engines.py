"""Which of the engines installed here do not load, and why: found out once a worker failed, in a process of its own.

The agent imports no engine, and one that does not load may take its process down. Nobody is asked while all goes well:
that would cost every deployment seconds of a small machine.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Collection, Iterable

from marram.edge.process import kill_group, signal_name, worker_environment
from marram.runtime.installed import PACKAGES
from marram.schema.model import Engine

# PyTorch takes most of a minute on a small machine.
LIMIT_S = 120.0


class Engines:
    """`broken`: those that did not load when they were last tried, each with a line for people."""

    def __init__(self) -> None:
        self.broken: dict[Engine, str] = {}
        self._trying = asyncio.Lock()

    def words(self, among: Collection[Engine]) -> str:
        """What is to be said of those broken among these; "" where none is."""
        return "; ".join(why for engine, why in self.broken.items() if engine in among)

    async def examine(self, suspects: Iterable[Engine]) -> bool:
        """Try `suspects`, and those broken before, which may have been mended; whether other ones are broken now."""
        async with self._trying:
            before = set(self.broken)
            for engine in sorted({*suspects, *before}):
                if why := await _fault(engine):
                    self.broken[engine] = f"{PACKAGES[engine]} does not load here: {why}"
                else:
                    self.broken.pop(engine, None)
            return set(self.broken) != before


async def _fault(engine: Engine) -> str:
    """Why it does not load, "" where it does (or where no process can be started, which says nothing of it)."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "marram.runtime.loads", engine.value,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=worker_environment(os.environ), start_new_session=True,
        )  # fmt: skip
    except OSError:
        return ""
    try:
        async with asyncio.timeout(LIMIT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        return f"no answer within {LIMIT_S:.0f} s"
    finally:
        if process.returncode is None:
            kill_group(process.pid)
    if process.returncode == 0:
        return ""
    if process.returncode is not None and process.returncode < 0:
        return f"killed by {signal_name(-process.returncode)}"
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit status {process.returncode}"
