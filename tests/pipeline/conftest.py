"""A small real model that tells red from green from blue, pictures of these colours, and ways to run an app on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image as Pillow

from marram.pipeline.build import Around, Pipeline
from marram.pipeline.contract import Frame
from marram.schema.app import App, parse_app
from marram.schema.event import Event

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}
SIZE = 16

CARD = f"""
model: colours
version: 7
task: classification
input: {{size: [{SIZE}, {SIZE}], layout: NCHW, mean: [127.5], std: [127.5]}}
output: {{form: logits}}
variants: [{{name: onnx, engine: onnx, file: model.onnx}}]
labels: [red, green, blue]
licence: Apache-2.0
source: made by the tests
"""


def make_bundle(folder: Path, nodes: Sequence[Any], weights: Sequence[Any] = (), card: str = CARD) -> Path:
    """A bundle of a network from `picture` to `logits`, of three classes."""
    folder.mkdir()
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        folder.name,
        [helper.make_tensor_value_info("picture", real, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", real, [1, 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "model.yaml").write_text(card)
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle: the mean of each channel is the logit of its colour."""
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
        onnx.helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    return make_bundle(tmp_path_factory.mktemp("models") / "colours", nodes)


def picture(colour: str, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [height, width, 3], RGB, all of one colour."""
    return np.full((height, width, 3), COLOURS[colour], np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine pictures, 00-red.png to 08-blue.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        name = list(COLOURS)[number % 3]
        Pillow.fromarray(picture(name)).save(folder / f"{number:02}-{name}.png")
    return folder


@dataclass
class Seen:
    """A sink and an outlet that remember; `arrived` waits until so many frames came."""

    frames: list[Frame] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    closed: int = 0

    def __post_init__(self) -> None:
        self._changed = threading.Condition()

    def write(self, frame: Frame) -> None:
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def arrived(self, count: int, timeout_s: float = 30) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.frames) >= count, timeout_s)

    @property
    def labels(self) -> list[str | None]:
        return [frame.result.label if frame.result else None for frame in self.frames]


@pytest.fixture
def seer(tmp_path: Path) -> Path:
    """A face detector that says NaN for a black picture, and sees one face in the middle of any other."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    regressors = np.zeros((1, 896, 16), np.float32)
    regressors[..., 2:4] = 64.0  # half the input wide and high
    scores = np.full((1, 896, 1), -50.0, np.float32)
    scores[0, 2 * (8 * 16 + 8)] = 5.0  # the anchor right of the centre
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["picture"], ["mean"], keepdims=0),
            helper.make_node("Add", ["mean", "lift"], ["lifted"]),
            helper.make_node("Log", ["lifted"], ["log"]),  # of what is below zero: NaN
            helper.make_node("Mul", ["log", "zero"], ["nothing"]),
            helper.make_node("Add", ["fixed_scores", "nothing"], ["scores"]),
            helper.make_node("Identity", ["fixed_regressors"], ["regressors"]),
        ],
        "seer",
        [helper.make_tensor_value_info("picture", real, [1, 128, 128, 3])],
        [
            helper.make_tensor_value_info("regressors", real, [1, 896, 16]),
            helper.make_tensor_value_info("scores", real, [1, 896, 1]),
        ],
        [
            onnx.numpy_helper.from_array(np.array(0.9, np.float32), "lift"),
            onnx.numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
            onnx.numpy_helper.from_array(scores, "fixed_scores"),
            onnx.numpy_helper.from_array(regressors, "fixed_regressors"),
        ],
    )
    folder = tmp_path / "seer"
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    card = {
        "model": "blazeface", "task": "detection", "labels": ["face"], "licence": "Apache-2.0", "source": "the tests",
        "input": {"size": [128, 128], "fit": "letterbox", "mean": [127.5], "std": [127.5]},
        "output": {"form": "blazeface", "min_confidence": 0.5, "overlap": 0.3},
        "variants": [{"name": "onnx", "engine": "onnx", "file": "model.onnx"}],
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    return folder


Build = Callable[..., tuple[Pipeline, Seen]]


@pytest.fixture
def build(tmp_path: Path, colours: Path) -> Build:
    """Build an app from its YAML (`MODEL` stands for the colours bundle), with a sink that remembers."""

    def make(text: str, **around: Any) -> tuple[Pipeline, Seen]:
        seen = Seen()
        app: App = parse_app("app: test\n" + text.replace("MODEL", str(colours)))
        return Pipeline.build(app, tmp_path, Around(outlet=seen, sinks=(seen,), **around)), seen

    return make


@pytest.fixture
def running() -> Iterator[Callable[[Pipeline], threading.Thread]]:
    """Run a pipeline in a thread; stopped and joined at the end of the test, whatever happens."""
    started: list[tuple[Pipeline, threading.Thread]] = []

    def start(pipeline: Pipeline) -> threading.Thread:
        thread = threading.Thread(target=pipeline.run, name="test-run")
        thread.start()
        started.append((pipeline, thread))
        return thread

    yield start
    for pipeline, thread in started:
        pipeline.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Every test here leaves as many of Marram's threads as it found."""
    before = {thread for thread in threading.enumerate() if thread.name.startswith("marram-")}
    yield
    left = [t for t in threading.enumerate() if t.name.startswith("marram-") and t not in before]
    for thread in left:
        thread.join(10)
    assert not [thread.name for thread in left if thread.is_alive()]
