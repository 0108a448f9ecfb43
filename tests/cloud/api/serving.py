"""A served API: the real state over a real database and objects, behind both real listeners; no broker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from marram.bus.http import CloudApi
from marram.cloud.api import create_app
from marram.cloud.listeners import Listeners
from marram.cloud.provision import provision
from marram.cloud.state import CloudState
from marram.runtime.bundle import Bundle
from marram.schema.api import Joined
from marram.schema.device import AppState, DeviceInfo, Reported, ReportedApp
from marram.schema.event import Event, EventKind, Recorded
from marram.store import Objects, open_store
from marram.trust import identity
from marram.trust.keys import Keys

STREAM = "0123456789abcdef"
CARD = """
model: colours
version: 1
task: classification
input: {size: [8, 8], layout: NCHW}
output: {form: logits}
variants: [{name: onnx, engine: onnx, file: model.onnx}]
labels: [red, green, blue]
licence: Apache-2.0
source: made by the tests
"""


@dataclass(frozen=True, slots=True)
class Served:
    """Where it answers, the right token, and the state behind it."""

    url: str
    tls_url: str
    token: str
    state: CloudState

    def api(self, token: str | None = None) -> CloudApi:
        return CloudApi(self.url, token or self.token)

    def secured(self) -> CloudApi:
        """A stranger who knows the cloud's authority."""
        return CloudApi(self.tls_url, authority=self.state.ca.decode())

    def join(self, token: str, name: str | None = None, **more: Any) -> Joined:
        """A new device, as `marram edge join` makes it."""
        with self.secured() as stranger:
            csr = identity.request(identity.new_key()).decode()
            return stranger.join(token, csr, name=name, info=more.pop("info", DeviceInfo()), **more)

    def add_device(self, name: str, **labels: str) -> None:
        self.state.store.devices.add(name, labels, DeviceInfo(machine="aarch64", cores=4))

    def report(self, device: str, app: str = "colours", state: AppState = AppState.COMMITTED, **more: Any) -> None:
        """What the device says of itself, as the fleet role would keep it."""
        stats = {"frames": 40, "fps": 9.5, "edge": 30, "cloud": 10, "p50_ms": 21.0, "p95_ms": 40.0, "link_up": True}
        said = ReportedApp(
            name=app,
            version=more.pop("version", 1),
            state=state,
            reason=more.pop("reason", ""),
            stats=stats | more.pop("stats", {}),
        )
        self.state.store.states.report(device, Reported(apps=[said], time_s=time.time(), **more))

    def deliver(self, device: str, events: list[Event], first: int = 1) -> None:
        """Store events as ingest would, bodies included."""
        batch = [Recorded(STREAM, first + n, event) for n, event in enumerate(events)]
        bodies = {r.sequence: self.state.objects.put(r.event.body) for r in batch if r.event.body is not None}
        self.state.store.events.append(device, batch, bodies)


def result(label: str, place: str = "edge", app: str = "colours") -> Event:
    """A result as a pipeline sends it."""
    data = {
        "task": "classification",
        "model": "m@1",
        "label": label,
        "confidence": 0.7,
        "place": place,
        "latency_ms": 12.5,
    }
    return Event(EventKind.RESULT, app, time.time(), data)


def sample(body: bytes, media: str = "image/jpeg", **data: Any) -> Event:
    """A sample as a `keep` step sends it."""
    return Event(EventKind.SAMPLE, "colours", time.time(), {"reason": "result.confidence < 0.4", **data}, body, media)


def colours(folder: Path) -> Bundle:
    """A real, tiny ONNX classifier."""
    folder.mkdir()
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("GlobalAveragePool", ["p"], ["m"]), helper.make_node("Flatten", ["m"], ["l"])]
    ends = (("p", [1, 3, 8, 8]), ("l", [1, 3]))
    values = [helper.make_tensor_value_info(name, real, shape) for name, shape in ends]
    graph = helper.make_graph(nodes, "colours", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "model.onnx")
    )
    (folder / "model.yaml").write_text(CARD)
    return Bundle.open(folder)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Start it, and stop it at the end of the block."""
    store = open_store(folder / "marram.db")
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    keys = Keys(folder / "keys")
    provision(keys, time.time())
    state = CloudState(store, Objects(folder / "objects"), scratch, keys)
    token = state.access.create("test").text
    up, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    listeners = Listeners("127.0.0.1", 0, 0)

    async def serve() -> None:
        await listeners.start(create_app(state), state.authority, folder, lambda ended: None)
        up.set()
        await over.wait()
        await listeners.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    while not up.wait(0.05):
        assert thread.is_alive(), "the server ended at once"
    try:
        with pytest.MonkeyPatch.context() as patch:
            # Who reported once stays online, however busy this machine is: nothing here reports again.
            patch.setattr("marram.store.devices.REPORT_INTERVAL_S", 600.0)
            yield Served(listeners.url, listeners.tls_url, token, state)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()
        store.close()
