"""The device of a live run: the shipped pipeline, relay and bus in a process of their own, behind a shaped link.

`python -m marram.lab.oracle.device SPEC.json` connects, creates `ready` beside the file, runs its app until the end of
standard input, and writes a `Record`. Nothing is left out but the agent's management of apps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from marram.bus import subjects
from marram.bus.client import Bus, BusState
from marram.bus.tls import TlsFiles
from marram.edge.agent_end import AgentEnd
from marram.edge.channel import WorkerEnd
from marram.edge.relay import Relay
from marram.edge.remote import ChannelRemote
from marram.lab.oracle.record import Recorder
from marram.pipeline.build import Around, Pipeline
from marram.placement.policy import LatencyPolicy
from marram.runtime.bundle import Bundle
from marram.schema.app import parse_app
from marram.schema.errors import NotReady

CLOUD = "cloud"  # what the app calls the cloud's model
READY, RECORD = "ready", "record.json"
_CONNECT_S = 20.0
_PINGS = 20


@dataclass(frozen=True, slots=True)
class Spec:
    """Who it is (`device`, its `identity` and `authority`, PEM files), where the broker is, what it runs."""

    device: str
    broker: str
    identity: str
    authority: str
    app: str  # YAML
    model: str  # the folder of the cloud's

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Spec:
        return cls(**json.loads(file.read_text(encoding="utf-8")))


class _Agent:
    """The agent's side: the connection and the relay, on an event loop in a thread of their own."""

    def __init__(self, spec: Spec, end: socket.socket, key: tuple[str, int]) -> None:
        self._spec, self._end, self._key = spec, end, key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agent", daemon=True)
        self._thread.start()
        self._bus: Bus | None = None
        self._hearing: asyncio.Task[None] | None = None
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> None:
        spec = self._spec
        tls = TlsFiles(Path(spec.identity), Path(spec.authority))
        self._bus = await Bus.connect(spec.broker, spec.device, tls=tls)
        await self._bus.wait_connected(_CONNECT_S)
        channel = await AgentEnd.open(self._end)
        relay = Relay(self._bus, channel, {self._key})
        self._bus.on_state(lambda state: relay.link(state is BusState.CONNECTED))

        async def hear() -> None:
            while (message := await channel.receive()) is not None:
                relay.ask(message)

        self._hearing = asyncio.create_task(hear())

    def rtt_s(self) -> float:
        """To the broker and back over the idle link: the least of some, so that a busy machine makes it no longer."""

        async def ping() -> float:
            assert self._bus is not None
            begun_s = time.monotonic()
            with contextlib.suppress(NotReady):  # nobody is there, says the broker
                await self._bus.request(subjects.infer("nobody", 1), b"", _CONNECT_S)
            return time.monotonic() - begun_s

        return min(asyncio.run_coroutine_threadsafe(ping(), self._loop).result() for _ in range(_PINGS))

    def stop(self) -> None:
        async def stop() -> None:
            if self._bus is not None:
                await self._bus.close()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _hear(channel: WorkerEnd, remote: ChannelRemote) -> None:
    while (message := channel.receive()) is not None:
        if message["t"] == "reply":
            remote.answered(message)
        else:
            remote.link(message["up"])
    remote.close()


def _stop_at_end(pipeline: Pipeline) -> None:
    while os.read(0, 4096):
        pass
    pipeline.stop()


def main(file: Path) -> None:
    """See the module's words."""
    sys.setswitchinterval(0.001)  # as a worker does
    spec = Spec.read(file)
    card = Bundle.open(Path(spec.model)).card
    ours, theirs = socket.socketpair()
    agent = _Agent(spec, ours, (card.model, card.version))
    channel = WorkerEnd(theirs)
    remote = ChannelRemote(channel)
    threading.Thread(target=_hear, args=(channel, remote), name="hear", daemon=True).start()
    recorder = Recorder(LatencyPolicy())
    recorder.record.rtt_s = agent.rtt_s()
    around = Around(remote=remote, cloud_cards={CLOUD: card}, policy=recorder, sinks=(recorder,), device=spec.device)
    pipeline = Pipeline.build(parse_app(spec.app), file.parent, around)
    threading.Thread(target=_stop_at_end, args=(pipeline,), name="parent", daemon=True).start()
    (file.parent / READY).touch()
    try:
        pipeline.run()
    finally:
        recorder.record.stats = pipeline.stats()
        recorder.record.write(file.parent / RECORD)
        channel.close()
        agent.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
