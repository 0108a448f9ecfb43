"""Example 02: a PyTorch network in a handler written for Greengrass, on readings from a file and from a real broker."""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from marram.pipeline.build import Around, Pipeline
from marram.schema.app import parse_app
from marram.schema.event import Event, EventKind

pytest.importorskip("torch", reason="needs PyTorch (pip install 'marram[torch]')")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02-sensor-function"
# PyTorch's own deprecations are not this example's.
pytestmark = [
    pytest.mark.filterwarnings("ignore:::torch", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("clean_process"),
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, its network trained as its README says."""
    folder = tmp_path_factory.mktemp("examples") / "sensor"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("model.pt2", "readings.csv", "__pycache__"))
    ran = subprocess.run(
        [sys.executable, "make_model.py", str(folder)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return folder


class Outbox:
    """An outlet that remembers, and lets a test wait."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def emit(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def of(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def until(self, kind: EventKind, count: int) -> list[Event]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of(kind)) >= count, 60)
            return self.of(kind)


def truth(folder: Path) -> list[str]:
    """The state of each window of 256 rows, from the column that the app does not read."""
    with (folder / "readings.csv").open() as file:
        return [row["state"] for row in csv.DictReader(file)][::256]


def test_the_handler_knows_nothing_of_marram() -> None:
    tree = ast.parse((EXAMPLE / "handler.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert imported == {"json", "logging", "pathlib", "greengrasssdk", "torch"}


def test_from_a_file(made: Path) -> None:
    outbox = Outbox()
    app = parse_app((made / "app.yaml").read_text())
    pipeline = Pipeline.build(app, made, Around(outlet=outbox))
    pipeline.run()
    states = truth(made)
    messages = outbox.of(EventKind.MESSAGE)
    assert {event.data["topic"] for event in messages} == {"sensor/data"}
    found = [event.data["payload"]["state"] for event in messages]
    assert len(found) == len(states) == 36
    right = sum(a == b for a, b in zip(found, states, strict=True))
    assert right >= 34, (found, states)
    # What the handler returned is the app's result; its alert rises once, when the pump stops being normal.
    assert [event.data["label"] for event in outbox.of(EventKind.RESULT)] == found
    (alert, *_) = outbox.of(EventKind.ALERT)
    assert (alert.data["state"], alert.data["result"]["label"]) == ("raised", found[alert.data["frame"]])
    stats = pipeline.stats()
    assert (stats["frames"], stats["errors"]) == (36, 0), stats["last_error"]


def test_from_a_broker_and_back(made: Path, mosquitto: Any) -> None:
    """Readings in through MQTT; what the handler publishes reaches the outbox and the broker, in order."""
    text = (made / "app-mqtt.yaml").read_text().replace("localhost:1883", mosquitto.address)
    with (made / "readings.csv").open() as file:
        samples = [float(row["vibration"]) for row in csv.DictReader(file)]
    windows = [samples[start : start + 256] for start in range(0, len(samples), 256)][::6]
    states = truth(made)[::6]
    outbox, echoed = Outbox(), Outbox()
    pipeline = Pipeline.build(parse_app(text), made, Around(outlet=outbox))
    thread = threading.Thread(target=pipeline.run)
    client = paho.Client(CallbackAPIVersion.VERSION2)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda c, d, m: echoed.emit(
        Event(EventKind.MESSAGE, "echo", 0.0, {"payload": json.loads(m.payload)})
    )
    client.connect("127.0.0.1", mosquitto.port)
    client.subscribe("sensor/data", qos=1)
    client.loop_start()
    try:
        assert subscribed.wait(30)
        thread.start()
        # The first one is retained: it is there whenever the app has subscribed.
        client.publish("plant/pump7/vibration", json.dumps({"vibration": windows[0]}), qos=1, retain=True)
        outbox.until(EventKind.MESSAGE, 1)
        client.publish("plant/pump7/vibration", '{"vibration": [1, 2]}', qos=1)
        client.publish("plant/pump7/vibration", "not what it takes", qos=1)
        for window in windows[1:]:
            client.publish("plant/pump7/vibration", json.dumps({"vibration": window}), qos=1)
        messages = outbox.until(EventKind.MESSAGE, len(windows))
        back = echoed.until(EventKind.MESSAGE, len(windows))
    finally:
        pipeline.stop()
        with contextlib.suppress(RuntimeError):
            thread.join(30)
        client.disconnect()
        client.loop_stop()
    found = [event.data["payload"] for event in messages]
    assert [payload["state"] for payload in found] == states
    assert [event.data["payload"] for event in back] == found
    stats = pipeline.stats()
    assert (stats["frames"], stats["errors"]) == (len(windows), 2)
    assert stats["last_error"].startswith("handler.py:")


def test_it_runs_as_the_readme_says(made: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "marram", "run", "app.yaml", "--json"],
        cwd=made, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('"sensor/data"') == 36
    assert "0 errors" in ran.stderr
