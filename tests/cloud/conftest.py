"""A real cloud for each test: broker, SQLite, objects, every role; devices that join it; models that really run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from tests.cards import write_card

from marram.bus.client import Bus, Timing
from marram.bus.tls import TlsFiles
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.cloud.state import CloudState
from marram.edge.agent_end import AgentEnd
from marram.edge.channel import WorkerEnd
from marram.edge.relay import Relay
from marram.edge.remote import ChannelRemote
from marram.schema.api import JoinAsk, Joined, TokenAsk
from marram.schema.event import Event, EventKind, Recorded
from marram.schema.model import Input
from marram.trust import identity

# Everything the same as in the field, sooner.
QUICK = Timing(connect_s=2.0, ping_s=0.1, dead_after_s=1.0, retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.2)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    """A cloud with every role, on free ports."""
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as running:
        yield running


class Joiner:
    """`await joiner("pi", site="x")`: a device that joined and is connected."""

    def __init__(self) -> None:
        self.buses: list[Bus] = []
        self.files: dict[str, TlsFiles] = {}

    async def __call__(self, cloud: Cloud, name: str, **labels: str) -> Bus:
        def join(state: CloudState) -> Joined:
            token = state.create_token(TokenAsk()).token
            csr = identity.request(key).decode()
            return state.join(JoinAsk(token=token, csr=csr, name=name, labels=labels))

        key = identity.new_key()
        joined = await asyncio.to_thread(join, cloud.state)
        self.files[name] = kept(cloud.settings.folder.parent / "devices" / name, key, joined)
        bus = await Bus.connect(joined.brokers, name, tls=self.files[name], timing=QUICK)
        self.buses.append(bus)
        await bus.wait_connected(10)
        return bus


def kept(folder: Path, key: bytes, joined: Joined) -> TlsFiles:
    """A device's identity, as it keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TlsFiles(folder / "identity.pem", folder / "ca.pem")
    files.identity.write_bytes(key + joined.certificate.encode())
    files.authority.write_text(joined.ca)
    return files


@pytest.fixture
async def device() -> AsyncIterator[Joiner]:
    joiner = Joiner()
    yield joiner
    for bus in joiner.buses:
        await bus.close()


# ---------------------------------------------------------------- a cloud as its own process


class Process:
    """`marram cloud …`, or any other program of ours; `output` is what it said so far."""

    def __init__(self, arguments: list[str], home: Path, log: Path) -> None:
        self.home, self.log = home, log
        self._output = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from marram.cli import main; main()", *arguments],
            stdout=self._output,
            stderr=self._output,
            env={**os.environ, "MARRAM_HOME": str(home)},
        )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        while words not in self.output:
            assert self.process.poll() is None, f"it ended:\n{self.output}"
            assert time.monotonic() < until_s, f"it does not say {words!r}:\n{self.output}"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._output.close()

    def context(self) -> dict[str, str]:
        """What the commands on its machine know."""
        return dict(yaml.safe_load((self.home / "context.yaml").read_text()))


@pytest.fixture
async def worker_side() -> AsyncIterator[Callable[..., Awaitable[ChannelRemote]]]:
    """A worker's way to the cloud, through its agent's relay and the given connection of its device; it may ask the
    given models (name, version), `colours` without any.
    """
    ends: list[tuple[AgentEnd, WorkerEnd, asyncio.Task[None], threading.Thread]] = []

    async def make(bus: Bus, *models: tuple[str, int]) -> ChannelRemote:
        ours, theirs = socket.socketpair()
        agent_end, worker_end = await AgentEnd.open(ours), WorkerEnd(theirs)
        relay, remote = Relay(bus, agent_end, models or {("colours", 1)}), ChannelRemote(worker_end)

        async def agent() -> None:
            while (message := await agent_end.receive()) is not None:
                relay.ask(message)

        def worker() -> None:
            while (message := worker_end.receive()) is not None:
                if message["t"] == "reply":
                    remote.answered(message)

        listening = threading.Thread(target=worker, daemon=True)
        listening.start()
        ends.append((agent_end, worker_end, asyncio.create_task(agent()), listening))
        return remote

    yield make
    for agent_end, worker_end, task, listening in ends:
        worker_end.close()
        agent_end.close()
        await task
        await asyncio.to_thread(listening.join, 30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`start("cloud", "--port", "0")`: a process that ends with the test."""
    started: list[Process] = []

    def make(*arguments: str, home: str = "home") -> Process:
        process = Process(list(arguments), tmp_path / home, tmp_path / f"log-{len(started)}")
        started.append(process)
        return process

    yield make
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.end()


# ---------------------------------------------------------------- events, models


def batch(stream: str, first: int, last: int) -> list[Recorded]:
    """Events `first` to `last` of a stream."""
    return [Recorded(stream, n, Event(EventKind.RESULT, "gate", 1000.0 + n, {"n": n})) for n in range(first, last + 1)]


@pytest.fixture
def make_batch() -> Callable[[str, int, int], list[Recorded]]:
    return batch


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A bundle that tells which colour a 4×4 picture mostly has: the mean of each channel is its logit."""
    folder = tmp_path / "colours"
    folder.mkdir()
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        onnx.helper.make_node("Flatten", ["m"], ["y"], axis=1),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "colours",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [value("y", onnx.TensorProto.FLOAT, [1, 3])],
    )
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "net.onnx")
    return write_card(folder, "colours", Input(size=[4, 4], layout="NCHW", std=[255.0]))


@pytest.fixture
def picture() -> Callable[[str], np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """`picture("green")`: uint8 [4, 4, 3], RGB."""

    def make(colour: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image = np.zeros((4, 4, 3), np.uint8)
        image[:, :, ["red", "green", "blue"].index(colour)] = 250
        return image

    return make


@pytest.fixture
def until() -> Callable[..., object]:
    """`await until(lambda: …)`: waits for a condition instead of a time; returns what it gave."""

    async def wait(condition: Callable[[], object], timeout_s: float = 30.0) -> object:
        async with asyncio.timeout(timeout_s):
            while not (found := await asyncio.to_thread(condition)):
                await asyncio.sleep(0.02)
        return found

    return wait
