"""One replica: a process that serves several models. `python -m marram.cloud.replica --help`.

What it serves comes line by line on its standard input, what became of that goes out on its standard output (see
`Order` and `Verdict`). Bad input gets an error reply: no request may ever end the process. It ends with the process
that started it, however that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.inferences import InferReply
from marram.bus.tls import TlsFiles
from marram.cloud.carried import pack_served, replied
from marram.cloud.loads import Loads
from marram.cloud.underway import UnderWay
from marram.last_resort import ended
from marram.schema.errors import MarramError
from marram.schema.load import Load
from marram.serving.host import Host, Key, Limits
from marram.serving.process import run, set_up

log = logging.getLogger(__name__)

QUEUE = "replicas"
# Handled side by side beyond those that may wait, so that refusals do not wait behind answers.
_SPARE = 16
# How often the process says that its loop turns: a line on its standard output.
BEAT_S = 2.0
# The environment hands the broker's password over; an argument would be visible to every user of the machine.
PASSWORD_VARIABLE = "MARRAM_NATS_PASSWORD"


@dataclass(slots=True)
class Figures:
    """What became of the questions so far."""

    waiting: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0


class Replica:
    """Lets everybody on `bus` ask the models of `host`. All methods on one event loop."""

    def __init__(self, host: Host, bus: Bus | None = None, under_way: UnderWay | None = None) -> None:
        """`under_way`: where it is written down what is, for whoever survives this process."""
        self.name = secrets.token_hex(4)  # by which it is asked, of all that serve the model
        self.figures = Figures()
        self._host = host
        self._bus = bus
        self._under_way = under_way
        self._loads = Loads(bus) if bus is not None else None

    async def start(self) -> None:
        """From now on it answers probes, and who asks what there is."""
        assert self._bus is not None
        await self._bus.subscribe(subjects.PROBE, self.on_probe, QUEUE, parallel=8)
        await self._bus.subscribe(subjects.SERVED, self.on_served, parallel=4)

    async def serve(self, name: str, version: int) -> None:
        """Subscribe; from now on questions to this model, which `host` has, are answered."""
        assert self._bus is not None and self._loads is not None
        parallel = self._host.limits.waiting + _SPARE
        await self._bus.subscribe(subjects.infer(name, version), self.on_infer, QUEUE, parallel=parallel)
        for own in self._own(name, version):
            await self._bus.subscribe(own, self.on_infer, parallel=parallel)
        await self._bus.subscribe(subjects.probe(name, version), self.on_probe, QUEUE, parallel=8)
        await self._loads.serve((name, version), lambda: self._load(name, version))

    async def leave(self, name: str, version: int) -> None:
        """Hear no more questions to this model; those that came are still answered."""
        assert self._bus is not None and self._loads is not None
        await self._loads.leave((name, version))
        for subject in (subjects.infer(name, version), *self._own(name, version), subjects.probe(name, version)):
            await self._bus.unsubscribe(subject)

    async def on_probe(self, message: Message) -> bytes | None:
        """Whatever came, it came: the link is timed by it."""
        key = _asked(message.subject)
        waiting = self._host.waiting(*key) if key is not None else self.figures.waiting
        return self._signed(InferReply(None, None, 0.0, 0.0, waiting), key).pack()

    async def on_served(self, message: Message) -> bytes | None:
        """What there is to ask here."""
        return pack_served(self.name, self._host.models())

    async def on_infer(self, message: Message) -> bytes | None:
        """One inference; always a reply, see `InferReply`."""
        key = _asked(message.subject)
        if key is None:
            return self._signed(InferReply(None, f"{message.subject} names no model", 0.0, 0.0), key).pack()
        handed = await self._loads.hand_on(key, message) if self._loads is not None else None
        if handed is not None:
            return handed
        self._waits(key, 1)
        slot = self._under_way.begin(key, message.answer_to) if self._under_way is not None else None
        try:
            reply = await replied(self._host, *key, message.payload)
        finally:
            self._waits(key, -1)
            if self._under_way is not None:
                self._under_way.end(slot)
        if reply.busy:
            self.figures.refused += 1
        elif reply.error is not None:
            self.figures.failed += 1
        else:
            self.figures.answered += 1
        return self._signed(reply, key).pack()

    async def close(self) -> None:
        """Tell nobody anything any more."""
        if self._loads is not None:
            await self._loads.close()

    def _own(self, name: str, version: int) -> tuple[str, ...]:
        """The subjects on which this replica alone is asked: by whoever chose it, by replicas that hand on."""
        return subjects.infer(name, version, self.name), subjects.hand("*", name, version, self.name)

    def _signed(self, reply: InferReply, key: Key | None) -> InferReply:
        loads = self._loads.known(key) if self._loads is not None and key is not None else ()
        return replace(reply, replica=self.name, loads=loads)

    def _waits(self, key: Key, more: int) -> None:
        self.figures.waiting += more
        if self._loads is not None:
            self._loads.changed(key)

    def _load(self, name: str, version: int) -> Load:
        queue_s, service_s = self._host.queue_s(name, version), self._host.service_s(name, version)
        return Load(self.name, f"{name}@{version}", self._host.waiting(name, version), queue_s, service_s)


def _asked(subject: str) -> Key | None:
    """The model of `infer.<model>.<version>[.<replica>]`, handed on or not, or of a probe; None where it names none."""
    parts = subject.split(".")[1 if subject.startswith("hand.") else 0 :]
    return (parts[1], int(parts[2])) if len(parts) >= 3 and parts[2].isdecimal() else None


# ---------------------------------------------------------------- the process


@dataclass(frozen=True, slots=True)
class Order:
    """A line in: serve the bundle in `folder` (once its `Verdict` came, it is), or serve `key` no more."""

    folder: str | None = None
    key: Key | None = None

    def line(self) -> bytes:
        return json.dumps({"folder": self.folder, "key": self.key}).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Order:
        document = json.loads(line)
        key = document["key"]
        return cls(document["folder"], None if key is None else (key[0], key[1]))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A line out: what became of the last folder (`error` "": it is served). The first says: the broker is there."""

    error: str = ""

    def line(self) -> str:
        return json.dumps({"error": self.error})

    @classmethod
    def of(cls, line: bytes) -> Verdict | None:
        """None where it is something else that was printed."""
        try:
            return cls(str(json.loads(line)["error"]))
        except (ValueError, KeyError, TypeError):
            return None


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT, or the end of standard input (the parent is gone)."""
    parser = argparse.ArgumentParser(prog="python -m marram.cloud.replica", description="Serve models.")
    parser.add_argument("--nats", required=True, help=f"broker URL; the password comes in {PASSWORD_VARIABLE}")
    parser.add_argument("--user", default="")
    parser.add_argument("--identity", type=Path, required=True, help="key and certificate of this process, PEM")
    parser.add_argument("--authority", type=Path, required=True, help="certificate of the cloud's authority, PEM")
    parser.add_argument("--memory", type=int, help="bytes that all models together may take")
    parser.add_argument("--under-way", type=int, help="open file of memory to write down in what is under way")
    parser.add_argument("--details", type=Path, required=True, help="where the traceback of a fault of ours goes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="replica: %(message)s")
    set_up()

    def live() -> int:
        run(_serve(options))
        return 0

    def tell(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    return ended(live, tell=tell, details=options.details)


async def _serve(options: argparse.Namespace) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    orders: asyncio.Queue[Order] = asyncio.Queue()
    _hear_parent(lambda line: loop.call_soon_threadsafe(orders.put_nowait, Order.of(line)))
    host = Host(Limits(memory_bytes=options.memory))
    password, tls = os.environ.pop(PASSWORD_VARIABLE, ""), TlsFiles(options.identity, options.authority)
    bus = await Bus.connect(options.nats, options.user, password, tls=tls, name="replica")
    beating = asyncio.create_task(_beat())
    replica = Replica(host, bus, None if options.under_way is None else UnderWay.attach(options.under_way))
    try:
        await replica.start()
        working = asyncio.create_task(_work(replica, host, bus, orders))
        stopping = asyncio.create_task(done.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        beating.cancel()
        await replica.close()
        await bus.close()
        await host.close()


async def _beat() -> None:
    while True:
        print(flush=True)
        await asyncio.sleep(BEAT_S)


async def _work(replica: Replica, host: Host, bus: Bus, orders: asyncio.Queue[Order]) -> None:
    await bus.wait_connected()
    print(Verdict().line(), flush=True)
    while True:
        order = await orders.get()
        if order.folder is not None:
            try:
                card = (await host.put(Path(order.folder))).card
                await replica.serve(card.model, card.version)
                print(Verdict().line(), flush=True)
            except MarramError as error:
                print(Verdict(str(error)).line(), flush=True)
        elif order.key is not None:
            await replica.leave(*order.key)
            await host.drop(*order.key)


def _hear_parent(heard: Callable[[bytes], object]) -> None:
    """Hand each line over. End at once when the parent's end of our standard input closes: also after a kill -9 nothing
    is left behind.
    """

    def wait() -> None:
        # Not through sys.stdin: its lock, held by this thread, would make an orderly exit crash.
        rest = b""
        with contextlib.suppress(OSError):
            while more := os.read(0, 65536):
                *lines, rest = (rest + more).split(b"\n")
                for line in lines:
                    heard(line)
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
