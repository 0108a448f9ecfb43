"""What every sink must do, wherever it writes: one suite, each implementation through it, and its output read back."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from marram.pipeline.contract import Frame, Placed, Sink
from marram.pipeline.plugins import open_sink, open_source
from marram.schema.app import SINKS, VideoSource, parse_app
from marram.schema.errors import MarramError
from marram.schema.model import Task
from marram.schema.result import Place, Result


class Case:
    """One implementation. `arrived` gives the indices of the frames that came through, oldest first."""

    verb = ""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder, self.request = folder, request

    def spec(self, text: str) -> Sink:
        app = parse_app(f"app: test\nsource: {{camera: 0}}\nsteps: [{{filter: 'true'}}]\nsinks: [{text}]")
        return open_sink(app.sinks[0], self.folder)

    def open(self) -> Sink:
        raise NotImplementedError

    def arrived(self, sink: Any, count: int) -> list[int]:
        raise NotImplementedError

    def broken(self) -> Sink:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Jsonl(Case):
    verb = "jsonl"

    def open(self) -> Sink:
        return self.spec("{jsonl: out.jsonl}")

    def arrived(self, sink: Any, count: int) -> list[int]:
        sink.close()
        return [json.loads(line)["frame"] for line in (self.folder / "out.jsonl").read_text().splitlines()]

    def broken(self) -> Sink:
        return self.spec(f"{{jsonl: {self.folder}}}")


class Mqtt(Case):
    verb = "mqtt"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.broker = self.request.getfixturevalue("mosquitto")
        self.indices: list[int] = []
        self.changed = threading.Condition()
        subscribed = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = self._came
        self.client.connect("127.0.0.1", self.broker.port)
        self.client.subscribe("out", qos=1)
        self.client.loop_start()
        assert subscribed.wait(30)

    def _came(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        with self.changed:
            self.indices.append(json.loads(message.payload)["frame"])
            self.changed.notify_all()

    def open(self) -> Sink:
        return self.spec(f"{{mqtt: out, broker: '{self.broker.address}'}}")

    def arrived(self, sink: Any, count: int) -> list[int]:
        sink.close()
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.indices) >= count, 30)
            return list(self.indices)

    def broken(self) -> Sink:
        return self.spec("{mqtt: out/#}")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Video(Case):
    """A frame's index is its grey level."""

    verb = "video"
    name = "out.avi"

    def open(self) -> Sink:
        return self.spec(f"{{video: {self.name}}}")

    def arrived(self, sink: Any, count: int) -> list[int]:
        sink.close()
        frames = open_source(VideoSource(video=self.name), self.folder).frames()
        return [round(float(np.mean(frame.image)) / 10) for frame in frames if frame.image is not None]

    def broken(self) -> Sink:
        return self.spec("{video: nowhere/out.avi}")


class Mp4(Video):
    name = "out.mp4"

    def broken(self) -> Sink:
        return self.spec("{video: out.txt}")


class Preview(Case):
    """Shows the newest only."""

    verb = "preview"

    def open(self) -> Sink:
        self.request.getfixturevalue("monkeypatch").delenv("DISPLAY", raising=False)
        self.request.getfixturevalue("monkeypatch").delenv("WAYLAND_DISPLAY", raising=False)
        return self.spec("{preview: auto}")

    def arrived(self, sink: Any, count: int) -> list[int]:
        with urllib.request.urlopen(sink.url + "result.json", timeout=30) as answer:
            newest = json.loads(answer.read())["frame"]
        return list(range(newest + 1))

    def broken(self) -> Sink:
        return self.spec("{preview: 99999}")


CASES = [Jsonl, Mqtt, Video, Mp4, Preview]


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    folder = tmp_path / "outputs"
    folder.mkdir()
    made: Case = request.param(folder, request)
    yield made
    made.close()


def frame(index: int) -> Frame:
    result = Result(Task.CLASSIFICATION, "m@1", "cat", 0.9, (("cat", 0.9),))
    image = np.full((48, 64, 3), 10 * (index % 25), np.uint8)
    placed = Placed(Place.EDGE, 0.01)
    return Frame(index, time.time(), time.monotonic(), image=image, name=f"{index}.png", result=result, placed=placed)


def test_what_is_written_arrives_whole_and_in_order(case: Case) -> None:
    sink = case.open()
    for index in range(20):
        sink.write(frame(index))
    assert case.arrived(sink, 20) == list(range(20))
    sink.close()


def test_a_frame_is_read_and_never_changed(case: Case) -> None:
    """The same frame goes to every sink, and its picture may be seen by others at this moment."""
    sink = case.open()
    given = frame(3)
    assert given.image is not None
    given.image.setflags(write=False)
    before, pixels = replace(given), given.image.copy()
    sink.write(given)
    sink.close()
    assert given.image is before.image
    np.testing.assert_array_equal(given.image, pixels)
    assert (given.index, given.name, given.result, given.placed) == (3, "3.png", before.result, before.placed)
    assert (given.extra, given.redacted, given.reading) == ({}, False, None)


@pytest.mark.parametrize("given", [
    Frame(0, 1.0, 1.0, image=np.zeros((48, 64, 3), np.uint8)),
    Frame(0, 1.0, 1.0, image=np.zeros((48, 64, 3), np.uint8)[:, ::-1, ::-1]),
    Frame(0, 1.0, 1.0, reading={"t": 21.5}),
    Frame(0, 1.0, 1.0),
    Frame(0, -5.0, 1.0, image=np.zeros((1, 1, 3), np.uint8), name="naïve \udcff"),
], ids=["no result", "a view", "a reading", "nothing", "odd"])  # fmt: skip
def test_a_frame_that_lacks_something_does_no_harm(case: Case, given: Frame) -> None:
    sink = case.open()
    sink.write(frame(0))
    try:
        sink.write(given)
    except MarramError as error:
        assert len(str(error)) > 10
    sink.write(frame(1))
    sink.close()


def test_opened_and_closed_with_nothing_written(case: Case) -> None:
    sink = case.open()
    sink.close()
    sink.close()


def test_close_any_number_of_times_and_writing_afterwards_does_no_harm(case: Case) -> None:
    sink = case.open()
    sink.write(frame(0))
    sink.close()
    sink.close()
    for index in range(3):
        try:
            sink.write(frame(index))
        except MarramError as error:
            assert len(str(error)) > 10
    sink.close()


def test_write_never_waits_for_long_nor_close_for_ever(case: Case) -> None:
    """As the runner does at the end: one thread writes, another closes."""
    sink = case.open()
    writing, closed, faults = threading.Event(), threading.Event(), []

    def write() -> None:
        index = 0
        while not closed.is_set():
            try:
                sink.write(frame(index))
            except MarramError as error:
                faults.append(str(error))
            except Exception as error:
                faults.append(f"not ours: {error!r}")
                return
            index += 1
            if index == 5:
                writing.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert writing.wait(30)
    sink.close()
    closed.set()
    writer.join(30)
    assert not writer.is_alive()
    assert not [fault for fault in faults if fault.startswith("not ours")]


def test_what_cannot_be_opened_is_said_at_the_start(case: Case) -> None:
    with pytest.raises(MarramError) as caught:
        case.broken()
    assert caught.value.where is not None
    assert caught.value.where.startswith("sinks")
    assert len(str(caught.value)) > 20


def test_every_sink_is_here() -> None:
    assert {case.verb for case in CASES} == set(SINKS)
