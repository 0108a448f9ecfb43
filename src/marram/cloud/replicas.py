"""The replica role: one replica process for each model version that somebody needs, restarted when it ends.

Level-triggered: it compares what deployments ask for with what runs, now and then and when woken, so nothing has to be
remembered. A model that cannot be loaded is tried again with growing pauses, and says why in `status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from marram.bus.tls import TlsFiles
from marram.cloud.replica import PASSWORD_VARIABLE, READY
from marram.cloud.settings import BrokerAddress
from marram.registry import Registry
from marram.schema.errors import MarramError
from marram.schema.words import first_line

log = logging.getLogger(__name__)

Key = tuple[str, int]
_LOOK_S = 5.0
_STOP_S = 5.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
# A replica that ran so long was well: its next end starts with a short pause again.
_WELL_S = 30.0


class ReplicaState(StrEnum):
    """Where one replica process stands."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # ended, started again after a pause
    STOPPED = "stopped"


@dataclass(slots=True)
class Served:
    """One model version and its process."""

    name: str
    version: int
    state: ReplicaState = ReplicaState.STARTING
    reason: str = ""
    restarts: int = 0
    pid: int | None = None
    task: asyncio.Task[None] | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class Replicas:
    """The supervisor. All methods on one event loop."""

    def __init__(
        self,
        registry: Registry,
        wanted: Callable[[], set[Key]],
        broker: BrokerAddress,
        tls: TlsFiles,
        folder: Path,
        threads: int = 1,
    ) -> None:
        """`wanted` says which model versions somebody needs (blocking; raises MarramError)."""
        self._registry = registry
        self._wanted = wanted
        self._broker = broker
        self._tls = tls
        self._folder = folder
        self._threads = threads
        self._served: dict[Key, Served] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on processes follow what is wanted."""
        self._task = asyncio.create_task(self._follow(), name="replicas")

    def wake(self) -> None:
        """Something may have changed: look now."""
        self._wake.set()

    async def stop(self) -> None:
        """End every process and wait for that."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(self._end(key) for key in list(self._served)))

    def status(self) -> list[Served]:
        """What is served, by name and version."""
        return [self._served[key] for key in sorted(self._served)]

    # ------------------------------------------------------------ following what is wanted

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            try:
                wanted = await asyncio.to_thread(self._wanted)
            except MarramError as error:
                log.warning("what to serve is not known now: %s", error)
            except Exception:
                log.exception("what to serve is not known now")
            else:
                await self._adjust(wanted)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()

    async def _adjust(self, wanted: set[Key]) -> None:
        await asyncio.gather(*(self._end(key) for key in set(self._served) - wanted))
        for key in wanted - set(self._served):
            served = self._served[key] = Served(*key)
            served.task = asyncio.create_task(self._keep(served), name=f"replica {key[0]}@{key[1]}")

    async def _end(self, key: Key) -> None:
        served = self._served.pop(key)
        served.state = ReplicaState.STOPPED
        if served.task is not None:
            served.task.cancel()
            await asyncio.gather(served.task, return_exceptions=True)

    # ------------------------------------------------------------ one process

    async def _keep(self, served: Served) -> None:
        """Run the process again and again, with pauses that grow while it does not stay."""
        pause_s = _FIRST_PAUSE_S
        while True:
            begin_s = time.monotonic()
            served.state = ReplicaState.STARTING
            try:
                served.reason = await self._run(served)
            except MarramError as error:
                served.reason = str(error)
            except OSError as error:
                served.reason = f"cannot start a process: {error.strerror}"
            except Exception as error:
                served.reason = f"{type(error).__name__}: {first_line(error)}"
                log.exception("replica %s@%d cannot be run", served.name, served.version)
            if time.monotonic() - begin_s > _WELL_S:
                pause_s = _FIRST_PAUSE_S
            served.state, served.pid = ReplicaState.WAITING, None
            served.restarts += 1
            log.warning("replica %s@%d ended: %s; again in %.1f s", served.name, served.version, served.reason, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def _run(self, served: Served) -> str:
        """One life of the process; returns why it ended."""
        bundle = await asyncio.to_thread(
            self._registry.materialise, served.name, served.version, self._folder / "serving"
        )
        process = await asyncio.create_subprocess_exec(
            *self._command(served, bundle),
            stdin=asyncio.subprocess.PIPE,  # its end is how the replica learns that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, PASSWORD_VARIABLE: self._broker.password},
            start_new_session=True,  # Ctrl-C reaches us, and we end it in order
        )
        served.pid = process.pid
        served.lines.clear()
        assert process.stdout is not None and process.stderr is not None
        readers = [
            asyncio.create_task(self._hear(served, process.stdout)),
            asyncio.create_task(self._note(served, process.stderr)),
        ]
        try:
            code = await process.wait()
            await asyncio.gather(*readers)
        finally:
            await _terminate(process)
            for reader in readers:
                reader.cancel()
        return served.lines[-1] if served.lines else f"exit status {code}"

    def _command(self, served: Served, bundle: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "marram.cloud.replica"),
            *("--bundle", str(bundle), "--model", served.name, "--version", str(served.version)),
            *("--nats", self._broker.url, "--user", self._broker.user, "--threads", str(self._threads)),
            *("--identity", str(self._tls.identity), "--authority", str(self._tls.authority)),
        ]

    async def _hear(self, served: Served, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            if line.strip() == READY.encode():
                served.state, served.reason = ReplicaState.READY, ""
                log.info("replica %s@%d is ready", served.name, served.version)

    async def _note(self, served: Served, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode(errors="replace").rstrip()
            if text:
                served.lines.append(text)
                log.debug("%s", text)


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """End a process that may have ended already: in order, then by force."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
