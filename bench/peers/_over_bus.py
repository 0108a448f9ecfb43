"""Marram as its devices ask it: a replica on the bus, behind a broker, certificates on both sides."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine
from typing import TypeVar

from bench.peers._classifier import SIDE
from bench.peers._client import Broken, Window
from bench.peers._material import Material
from bench.peers._server import READY_S, STARTS, Served, Server
from marram.bus import subjects
from marram.bus.accounts import CONTROL
from marram.bus.client import Bus
from marram.bus.inferences import InferReply, InferRequest
from marram.cloud.keeper import Start
from marram.cloud.replica import Order
from marram.cloud.settings import BrokerAddress
from marram.lab.gatehouse import Gatehouse
from marram.runtime.bundle import Bundle
from marram.schema.errors import MarramError, NotReady
from marram.schema.payload import Payload

_T = TypeVar("_T")


class OverBus(Served):
    """A replica, asked by a device through a broker, both with certificates. See `Contender`.

    The broker is a process of its own, and is not weighed.
    """

    def __init__(self, material: Material) -> None:
        super().__init__("marram-nats")
        self._material = material
        card = Bundle.open(material.bundle).card
        self._subject = subjects.infer(card.model, card.version)
        self._requests = [
            InferRequest(Payload("image/jpeg", jpeg, (), (SIDE, SIDE))).pack() for jpeg in material.jpegs()
        ]
        self._gatehouse: Gatehouse | None = None
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._bus: Bus | None = None

    def start(self) -> None:
        folder = self._material.folder / "nats"
        folder.mkdir()
        self._gatehouse = Gatehouse(folder, ["d1"])
        self._gatehouse.start()
        self._thread = threading.Thread(target=self._loop.run_forever, name="device", daemon=True)
        self._thread.start()
        self._bus = self._run(self._connect(self._gatehouse))
        while len(self.ready_s) < STARTS:
            super().stop()
            begun_s = time.perf_counter()
            self._server = self._replica(self._gatehouse)
            self.ready_s.append(self._run(self._first_answer(self._bus, begun_s)))

    def _replica(self, gatehouse: Gatehouse) -> Server:
        folder = self._material.folder
        broker = BrokerAddress(gatehouse.url, CONTROL, gatehouse.accounts.password(CONTROL))
        start = Start(broker, gatehouse.services, folder)
        server = Server(self.name, start.command(0), 0, folder / f"{self.name}.log", start.environment)
        server.say(Order(folder=str(self._material.bundle)).line())
        return server

    async def _connect(self, gatehouse: Gatehouse) -> Bus:
        bus = await gatehouse.connect("d1")
        await bus.wait_connected(10)
        return bus

    async def _first_answer(self, bus: Bus, begun_s: float) -> float:
        while True:
            try:
                await bus.request(self._subject, self._requests[0], 5.0)
                return time.perf_counter() - begun_s
            except MarramError as error:
                self._running.check()
                if time.perf_counter() - begun_s > READY_S:
                    raise NotReady(f"no answer within {READY_S:.0f} s: {error}", where=self.name) from error
            await asyncio.sleep(0.005)

    def window(self, in_flight: int, settle_s: float, seconds: float) -> Window:
        return self._run(self._window(in_flight, settle_s, seconds))

    async def _window(self, in_flight: int, settle_s: float, seconds: float) -> Window:
        assert self._bus is not None
        bus, counted = self._bus, Window(seconds)
        begins_s = time.perf_counter() + settle_s
        ends_s = begins_s + seconds
        numbers = iter(range(sys.maxsize))

        async def ask() -> None:
            while (sent_s := time.perf_counter()) < ends_s:
                number = next(numbers) % len(self._requests)
                body = await bus.request(self._subject, self._requests[number], 10.0)
                came_s = time.perf_counter()
                counted.total += 1
                if begins_s <= came_s < ends_s:
                    counted.latencies_s.append(came_s - sent_s)
                    counted.bodies.append((number, body))

        async def clock() -> None:
            await asyncio.sleep(settle_s)
            before_s = time.thread_time()
            await asyncio.sleep(seconds)
            counted.cpu_s = time.thread_time() - before_s

        try:
            await asyncio.gather(clock(), *(ask() for _ in range(in_flight)))
        except MarramError as error:
            raise Broken(str(error)) from error
        return counted

    def told(self, body: bytes) -> list[str]:
        result = InferReply.unpack(body).result
        return [] if result is None else [label for label, _ in result["top"]]

    def halt(self) -> None:
        """Nothing: the broker would drop it, and while nobody asks it takes no time anyway."""

    def resume(self) -> None:
        """Nothing, likewise."""

    def stop(self) -> None:
        super().stop()
        if self._bus is not None:
            self._run(self._bus.close())
            self._bus = None
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None
        if self._gatehouse is not None:
            self._gatehouse.stop()
            self._gatehouse = None

    def _run(self, work: Coroutine[object, object, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
