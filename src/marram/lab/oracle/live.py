"""A live run: real processes, a real broker, a shaped link; frames offered by the clock. See `run`.

A camera (an MQTT client here) offers numbered readings to a broker on the device; the device's pipeline takes them as
any app does, and asks a replica behind the link. Who was asked, and when the link was where, is written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from marram.bus.accounts import CONTROL
from marram.bus.server import find_server
from marram.cloud.keeper import Start
from marram.cloud.replica import Order, Verdict
from marram.cloud.settings import BrokerAddress
from marram.lab.children import Child
from marram.lab.demo_ground import until
from marram.lab.gatehouse import Gatehouse
from marram.lab.link import LinkProcess
from marram.lab.oracle.device import CLOUD, READY, RECORD, Spec
from marram.lab.oracle.record import Offered, Record
from marram.lab.oracle.stream import Setting
from marram.runtime.bundle import Bundle
from marram.system.ports import free_port

_DEVICE, _TOPIC = "camera", "frames"
_READY_S, _END_S = 30.0, 20.0
_DOWN_BIT_S = 1e8  # as in the simulation, what comes back takes its time of travel and no more
_SETTLE_S = 1.0  # from what is ready to the first frame: the app subscribes meanwhile
_AFTER_S = 1.0  # from the last frame to the end: its answer comes

_APP = """\
app: live
source: {{mqtt: {topic}, broker: "127.0.0.1:{port}", every: {every_ms:g} ms}}
steps:
  - estimate: {model}
    cloud: {cloud}
    place: soonest
    deadline: {deadline_ms:g} ms
send: nothing
raw: allowed
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One run: `warm` frames, then those of `setting`. `slowdown`: the edge's, see `pipeline/edge_pool.py`."""

    setting: Setting
    trace: Path
    bundle: Bundle
    slowdown: float
    warm: int


def run(folder: Path, asked: Asked) -> tuple[Record, Offered]:
    """Start everything in `folder`, offer the frames, end everything; what the device wrote, and what was offered.

    From the main thread. Raises NotReady, Permanent where something does not start, with its last words.
    """
    folder.mkdir()
    setting = asked.setting
    with contextlib.ExitStack() as started:
        gatehouse = started.enter_context(Gatehouse(folder, [_DEVICE]))
        replica = started.enter_context(contextlib.closing(_Replica(folder, gatehouse, asked.bundle)))
        replica.wait()
        address = gatehouse.url.removeprefix("nats://")
        link = started.enter_context(
            LinkProcess(address, str(asked.trace), rtt_s=setting.rtt_s, down_bit_s=_DOWN_BIT_S)
        )
        local = _Local(folder)
        started.callback(local.close)
        identity = gatehouse.identity(_DEVICE)
        app = _APP.format(
            topic=_TOPIC,
            port=local.port,
            every_ms=1000 / setting.fps,
            model=asked.bundle.folder,
            cloud=CLOUD,
            deadline_ms=1000 * setting.deadline_s,
        )
        broker = f"nats://127.0.0.1:{link.port}"
        spec = Spec(_DEVICE, broker, str(identity.identity), str(identity.authority), app, str(asked.bundle.folder))
        home = folder / "device"
        home.mkdir()
        spec.write(home / "spec.json")
        device = Child(
            "device",
            [sys.executable, "-m", "marram.lab.oracle.device", str(home / "spec.json")],
            folder / "device.log",
            os.environ | {"MARRAM_SLOWDOWN": f"{asked.slowdown:.3f}"},
            listens=True,
        )
        started.callback(device.stop)
        until((home / READY).exists, _READY_S, "the device does not get ready", device.check)
        time.sleep(_SETTLE_S)
        before, at_s = link.stats(), time.monotonic()
        waited_s = _waited_s()
        offered_s = local.offer(asked.warm + setting.frames, setting)
        time.sleep(_AFTER_S)
        waited_share = None if waited_s is None else ((_waited_s() or 0.0) - waited_s) / (time.monotonic() - at_s)
        up_bytes = link.stats()["up_bytes"] - before["up_bytes"]
        assert device.process.stdin is not None
        device.process.stdin.close()
        device.wait(_END_S)
        began_s = at_s - before["age_s"]
        return Record.read(home / RECORD), Offered(offered_s, asked.warm, began_s, at_s, up_bytes, waited_share)


def _waited_s() -> float | None:
    """For how long, since this machine started, somebody waited for a processor (pressure stall information)."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return None


class _Replica:
    """A replica process that serves one bundle."""

    def __init__(self, folder: Path, gatehouse: Gatehouse, bundle: Bundle) -> None:
        broker = BrokerAddress(gatehouse.url, CONTROL, gatehouse.accounts.password(CONTROL))
        start = Start(broker, gatehouse.services, folder)
        environment = os.environ | start.environment
        self._child = Child("replica", start.command(0), folder / "replica.log", environment, listens=True)
        assert self._child.process.stdin is not None
        self._child.process.stdin.write(Order(folder=str(bundle.folder)).line())
        self._child.process.stdin.flush()

    def wait(self) -> None:
        """Until it serves: its second verdict."""

        def serves() -> bool:
            lines = self._child.log.read_bytes().splitlines()
            return sum(Verdict.of(line) is not None for line in lines) >= 2

        until(serves, _READY_S, "the replica does not serve", self._child.check)

    def close(self) -> None:
        self._child.stop()


class _Local:
    """The device's own MQTT broker (nats-server speaks it), and the camera that offers frames there."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        store = json.dumps(str(folder / "mqtt"))
        config = folder / "mqtt.conf"
        config.write_text(
            f"server_name: local\nhost: 127.0.0.1\nport: -1\njetstream {{store_dir: {store}}}\n"
            f"mqtt {{host: 127.0.0.1, port: {self.port}}}\n",
            encoding="utf-8",
        )
        self._child = Child("mqtt", [str(find_server()), "-c", str(config)], folder / "mqtt.log", os.environ)
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        until(self._connects, _READY_S, "the local broker does not get ready", self._child.check)
        self._client.loop_start()

    def _connects(self) -> bool:
        with contextlib.suppress(OSError):
            return self._client.connect("127.0.0.1", self.port) == 0
        return False

    def offer(self, frames: int, setting: Setting) -> tuple[float, ...]:
        """Frame k at k ÷ fps from now on: its number, and numbers that do not matter. When each was offered, truly."""
        numbers = setting.payload_bytes // 200 * 50
        draw = random.Random(1)
        rest = ", ".join(f"{draw.random():.4f}" for _ in range(numbers - 1))
        begin_s = time.monotonic() + 0.1
        offered = []
        for number in range(frames):
            body = f"[{number}, {rest}]"
            time.sleep(max(0.0, begin_s + number / setting.fps - time.monotonic()))
            offered.append(time.monotonic())
            self._client.publish(_TOPIC, body)
        return tuple(offered)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._child.stop()
