"""One replica: a process that serves one model version. `python -m marram.cloud.replica --help`.

One thread infers; others decode and prepare the next inputs meanwhile. What cannot be answered soon is refused at
once, with the time it would have waited, so that the asker's edge answers instead. Bad input gets an error reply: no
request may ever end the process. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import InferReply, InferRequest
from marram.bus.tls import TlsFiles
from marram.cloud.loads import Loads
from marram.last_resort import ended
from marram.runtime import codecs
from marram.runtime.model import Model, Prepared
from marram.schema.errors import MarramError
from marram.schema.load import Load

log = logging.getLogger(__name__)

QUEUE = "replicas"
# Waiting beyond this, a request is refused: by then another place answers sooner.
MAX_WAITING = 32
_DECODERS = 2
# The environment hands the broker's password over; an argument would be visible to every user of the machine.
PASSWORD_VARIABLE = "MARRAM_NATS_PASSWORD"
READY = "ready"

_T = TypeVar("_T")


@dataclass(slots=True)
class Figures:
    """What the replica tells of itself: seconds are moving averages."""

    waiting: int = 0
    service_s: float = 0.0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, service_s: float) -> None:
        with self.lock:
            self.answered += 1
            self.service_s = service_s if self.answered == 1 else 0.9 * self.service_s + 0.1 * service_s


class Replica:
    """Serves `model` (which belongs to the one inference thread from now on). All methods on one event loop."""

    def __init__(self, model: Model) -> None:
        self.name = secrets.token_hex(4)  # by which it is asked, of all that serve the model
        self._model = model
        self._key = ("", 0)
        self._loads: Loads | None = None
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.figures = Figures()

    async def serve(self, bus: Bus, name: str, version: int) -> None:
        """Subscribe; from now on questions are answered."""
        parallel = MAX_WAITING + 8  # a few above the bound, so that refusals do not wait behind answers
        self._key, self._loads = (name, version), Loads(bus)
        await bus.subscribe(subjects.infer(name, version), self.on_infer, QUEUE, parallel=parallel)
        await bus.subscribe(subjects.infer(name, version, self.name), self.on_infer, parallel=parallel)
        for probe in (subjects.PROBE, subjects.probe(name, version)):
            await bus.subscribe(probe, self.on_probe, QUEUE, parallel=8)
        await self._loads.serve(self._key, self._load)

    async def on_probe(self, message: Message) -> bytes | None:
        """Whatever came, it came: the link is timed by it."""
        return self._reply(None, None, 0.0, 0.0).pack()

    async def on_infer(self, message: Message) -> bytes | None:
        """One inference; always a reply, see `InferReply`."""
        arrived_s = time.perf_counter()
        if self.figures.waiting >= MAX_WAITING:
            self.figures.refused += 1
            expected_s = self.figures.waiting * self.figures.service_s
            busy = f"busy: {self.figures.waiting} wait here already"
            refusal = self._reply(None, busy, expected_s, self.figures.service_s)
            return replace(refusal, waiting=self.figures.waiting, busy=True).pack()
        self._waits(1)
        try:
            return (await self._infer(message.payload, arrived_s)).pack()
        except MarramError as error:
            self.figures.failed += 1
            return self._reply(None, str(error), time.perf_counter() - arrived_s, 0.0).pack()
        except Exception as error:
            self.figures.failed += 1
            log.exception("an inference failed")
            return self._reply(None, f"the replica failed: {type(error).__name__}", 0.0, 0.0).pack()
        finally:
            self._waits(-1)

    async def _infer(self, payload: bytes, arrived_s: float) -> InferReply:
        loop = asyncio.get_running_loop()
        prepared, preparing_s = await loop.run_in_executor(self._decoders, _timed, lambda: self._prepare(payload))
        outputs, running_s = await loop.run_in_executor(self._engine, _timed, lambda: self._model.run(prepared))
        result, interpreting_s = await loop.run_in_executor(
            self._decoders, _timed, lambda: self._model.interpret(outputs, prepared).to_dict()
        )
        service_s = preparing_s + running_s + interpreting_s
        self.figures.took(running_s)
        total_s = time.perf_counter() - arrived_s
        return self._reply(result, None, max(0.0, total_s - service_s), service_s)

    def _prepare(self, payload: bytes) -> Prepared:
        request = InferRequest.unpack(payload).payload
        return self._model.prepare(codecs.decode(request, self._model.card), request.frame_size)

    def _reply(
        self, result: dict[str, object] | None, error: str | None, queue_s: float, service_s: float
    ) -> InferReply:
        loads = self._loads.known(self._key) if self._loads is not None else ()
        waiting = max(0, self.figures.waiting - 1)
        return InferReply(result, error, queue_s, service_s, waiting, replica=self.name, loads=loads)

    def _waits(self, more: int) -> None:
        self.figures.waiting += more
        if self._loads is not None:
            self._loads.changed(self._key)

    def _load(self) -> Load:
        waiting, service_s = self.figures.waiting, self.figures.service_s
        return Load(self.name, f"{self._key[0]}@{self._key[1]}", waiting, waiting * service_s, service_s)

    async def leave(self) -> None:
        """Tell nobody anything any more."""
        if self._loads is not None:
            await self._loads.close()

    def close(self) -> None:
        """After the bus was closed: finish what is under way, free the engine."""
        self._decoders.shutdown(wait=True)
        self._engine.shutdown(wait=True)
        self._model.close()


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    begin_s = time.perf_counter()
    return work(), time.perf_counter() - begin_s


# ---------------------------------------------------------------- the process


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT, or the end of standard input (the parent is gone). Says `ready` on stdout."""
    parser = argparse.ArgumentParser(prog="python -m marram.cloud.replica", description="Serve one model version.")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--nats", required=True, help=f"broker URL; the password comes in {PASSWORD_VARIABLE}")
    parser.add_argument("--user", default="")
    parser.add_argument("--identity", type=Path, required=True, help="key and certificate of this process, PEM")
    parser.add_argument("--authority", type=Path, required=True, help="certificate of the cloud's authority, PEM")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine")
    options = parser.parse_args(arguments)
    name = f"replica {options.model}@{options.version}"
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s")
    _end_with_parent()

    def live() -> int:
        asyncio.run(_serve(Model.load(options.bundle, threads=options.threads), options))
        return 0

    def tell(message: str) -> None:
        print(f"{name}: {message}", file=sys.stderr, flush=True)

    return ended(live, tell=tell, details=options.bundle.parent / f"{options.bundle.name}.fault.log")


async def _serve(model: Model, options: argparse.Namespace) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    replica = Replica(model)
    password, tls = os.environ.pop(PASSWORD_VARIABLE, ""), TlsFiles(options.identity, options.authority)
    bus = await Bus.connect(options.nats, options.user, password, tls=tls, name=f"replica {options.model}")
    try:
        await replica.serve(bus, options.model, options.version)
        connected = asyncio.create_task(bus.wait_connected())
        stopping = asyncio.create_task(done.wait())
        await asyncio.wait({connected, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if connected.done():
            connected.result()
            print(READY, flush=True)
        await stopping
        connected.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connected
    finally:
        await replica.leave()
        await bus.close()
        replica.close()


def _end_with_parent() -> None:
    """End at once when the parent's end of our standard input closes: also after a kill -9 nothing is left behind."""

    def wait() -> None:
        # Not through sys.stdin: its lock, held by this thread, would make an orderly exit crash.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
