"""Apps that ask other than classifiers, end to end: anomaly scores, detections, estimates, readings in the cloud."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image as Pillow

from marram.pipeline.contract import CloudInput, Frame, Reply
from marram.pipeline.inputs import pixels_key, readings_key
from marram.placement.contract import Ask, CloudSent, Decision, EdgeOutcome, LinkEstimate
from marram.runtime.model import Model
from marram.schema.errors import Invalid
from marram.schema.event import EventKind
from marram.schema.result import Place

Bundle = Callable[..., Path]
REAL = onnx.TensorProto.FLOAT


def key(ask: Ask, place: Place) -> str | None:
    """Of the way that leads to `place`."""
    return next((way.key for way in ask.ways if way.place is place), None)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write a bundle: an ONNX graph from its nodes, or a file, and its card."""

    def make(name: str, card: dict[str, Any], made: onnx.GraphProto | Path, labels: list[str] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if isinstance(made, Path):
            engine, file = "litert", "model.tflite"
            shutil.copy(made, folder / file)
        else:
            engine, file = "onnx", "model.onnx"
            model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
            onnx.save(model, str(folder / file))
        whole = {"model": name, "licence": "Apache-2.0", "source": "made by the tests", "version": 2, **card}
        whole["variants"] = [{"name": engine, "engine": engine, "file": file}]
        if labels is not None:
            whole["labels"] = labels
        (folder / "model.yaml").write_text(yaml.safe_dump(whole))
        return folder

    return make


@pytest.fixture
def spread(bundle: Bundle) -> Bundle:
    """How far apart the readings of a window lie: the largest less the smallest. Takes `rows` rows of 2."""

    def make(rows: int = 4, name: str = "spread") -> Path:
        helper = onnx.helper
        graph = helper.make_graph(
            [
                helper.make_node("ReduceMax", ["window"], ["high"], axes=[1, 2], keepdims=0),
                helper.make_node("ReduceMin", ["window"], ["low"], axes=[1, 2], keepdims=0),
                helper.make_node("Sub", ["high", "low"], ["score"]),
            ],
            name,
            [helper.make_tensor_value_info("window", REAL, [1, rows, 2])],
            [helper.make_tensor_value_info("score", REAL, [1])],
        )
        card = {
            "task": "anomaly",
            "input": {"kind": "tensor", "size": [rows, 2]},
            "output": {"form": "score", "threshold": 10.0},
        }
        return bundle(name, card, graph)

    return make


def write_rows(file: Path, rows: list[tuple[float, float]]) -> None:
    file.write_text("time,a,b\n" + "".join(f"{1_700_000_000 + n},{a},{b}\n" for n, (a, b) in enumerate(rows)))


CALM = [(20.0 + n % 3, 21.0) for n in range(40)]


# ---------------------------------------------------------------- score


def test_an_anomaly_that_lasts_raises_an_alert_and_recovers(build: Any, spread: Bundle, tmp_path: Path) -> None:
    rows = list(CALM)
    rows[6] = (90.0, 21.0)  # an outlier of one row is in the windows of 4 s: too short for 6 s
    for at in range(16, 28):
        rows[at] = (20.0 + 50 * (at % 2), 21.0)
    write_rows(tmp_path / "a.csv", rows)
    pipeline, seen = build(
        f"""
source: {{series: a.csv, window: 4, every: 1}}
steps:
  - score: {spread()}
  - alert: result.score > result.threshold for 6 s
send: alerts
"""
    )
    pipeline.run()
    windows = [rows[at - 3 : at + 1] for at in range(3, 40)]
    wanted = [max(map(max, window)) - min(map(min, window)) for window in windows]
    assert [frame.result.score for frame in seen.frames] == wanted
    assert [frame.result.anomaly for frame in seen.frames] == [score >= 10 for score in wanted]
    assert {frame.result.model for frame in seen.frames} == {"spread@2"}
    # From second 17 on (rows 16 and 17 lie apart) until row 27 has left the window.
    told = [(event.kind, event.data["state"], event.time_s - 1_700_000_000) for event in seen.events]
    assert told == [(EventKind.ALERT, "raised", 23), (EventKind.ALERT, "recovered", 31)]
    assert seen.events[0].data["result"]["score"] == 50.0
    stats = pipeline.stats()
    assert (stats["frames"], stats["edge"], stats["alerts"], stats["errors"]) == (37, 37, 1, 0)


@pytest.mark.shared
def test_a_real_machine_sounds_wrong(build: Any, bundle: Bundle, shared_data: Path, tmp_path: Path) -> None:
    """MLPerf Tiny's ToyCar autoencoder, quantised, over a sound of a car that runs well, and noise in its middle."""
    card = {
        "task": "anomaly",
        "input": {"kind": "tensor", "size": [640]},
        "output": {"form": "reconstruction", "threshold": 15},
    }
    model = bundle("toycar", card, shared_data / "models_tiny" / "ad01_int8.tflite")
    sound = np.fromfile(shared_data / "models_tiny" / "ad01_normal_id_01_sample_f32.bin", np.float32).reshape(-1, 128)
    sound[80:120] = np.random.default_rng(0).normal(-30, 15, (40, 128))
    names = [f"mel{n}" for n in range(128)]
    lines = [",".join(["time", *names])]
    lines += [",".join([str(1_700_000_000 + n), *(f"{v:.4f}" for v in row)]) for n, row in enumerate(sound)]
    (tmp_path / "sound.csv").write_text("\n".join(lines) + "\n")
    pipeline, seen = build(
        f"""
source: {{series: sound.csv, window: 5}}
steps:
  - score: {model}
  - alert: result.score > result.threshold for 10 s
"""
    )
    pipeline.run()
    wrong = [frame.index for frame in seen.frames if frame.result.anomaly]
    assert len(seen.frames) == 40
    assert wrong == list(range(16, 24))  # windows of 5 rows: rows 80 to 119
    alerts = [event.data["state"] for event in seen.events if event.kind is EventKind.ALERT]
    assert alerts == ["raised", "recovered"]


# ---------------------------------------------------------------- detect


@pytest.fixture
def finder(bundle: Bundle) -> Path:
    """Finds a `brick` as sure as the picture is red, a `leaf` as sure as it is green; each in its half."""
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    constants = [
        array(np.array([[[0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]]], np.float32), "corners"),
        array(np.array([[0.0, 1.0]], np.float32), "kinds"),
        array(np.array([2.0], np.float32), "two"),
        array(np.array([0], np.int64), "first"),
        array(np.array([2], np.int64), "end"),
        array(np.array([1], np.int64), "axis"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["corners"], ["boxes"]),
            helper.make_node("Identity", ["kinds"], ["classes"]),
            helper.make_node("ReduceMean", ["picture"], ["colour"], axes=[1, 2], keepdims=0),
            helper.make_node("Slice", ["colour", "first", "end", "axis"], ["scores"]),
            helper.make_node("Identity", ["two"], ["count"]),
        ],
        "finder",
        [helper.make_tensor_value_info("picture", REAL, [1, 16, 16, 3])],
        [
            helper.make_tensor_value_info("boxes", REAL, [1, 2, 4]),
            helper.make_tensor_value_info("classes", REAL, [1, 2]),
            helper.make_tensor_value_info("scores", REAL, [1, 2]),
            helper.make_tensor_value_info("count", REAL, [1]),
        ],
        initializer=constants,
    )
    card = {"task": "detection", "input": {"size": [16, 16], "std": [255.0]}, "output": {"form": "ssd"}}
    return bundle("finder", card, graph, ["brick", "leaf"])


def test_what_is_found_is_filtered_and_written(build: Any, finder: Path, photos: Path, tmp_path: Path) -> None:
    pipeline, seen = build(
        f"""
source: {{images: {photos}}}
steps:
  - detect: {finder}
  - filter: result.label == "brick"
sinks: [{{jsonl: found.jsonl}}]
"""
    )
    pipeline.run()
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["00-red.png", "03-red.png", "06-red.png"]
    (found,) = lines[0]["detections"]
    assert (found["label"], found["confidence"]) == ("brick", pytest.approx(220 / 255, abs=0.01))
    assert found["box"] == [0.0, 0.0, 32.0, 48.0]  # in pixels of the picture of 64×48
    assert [event.data["label"] for event in seen.events] == ["brick"] * 3
    assert pipeline.stats()["frames"] == 9


def test_the_least_confidence_is_the_apps(build: Any, finder: Path, photos: Path) -> None:
    for least, counts in ((0.05, [2, 2, 2]), (0.9, [0, 0, 0])):
        pipeline, seen = build(
            f"source: {{images: {photos}}}\nsteps: [{{detect: {finder}, min_confidence: {least}}}]\n"
        )
        pipeline.run()
        assert [len(frame.result.detections) for frame in seen.frames][:3] == counts


@pytest.mark.shared
def test_people_in_real_scenes(build: Any, bundle: Bundle, shared_data: Path, tmp_path: Path) -> None:
    card = {
        "task": "detection",
        "input": {"size": [300, 300], "mean": [127.5], "std": [127.5]},
        "output": {"form": "ssd"},
    }
    names = (shared_data / "models" / "coco_labelmap.txt").read_text().splitlines()
    file = shared_data / "models" / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
    model = bundle("ssd", card, file, names)
    pipeline, seen = build(
        f"""
source: {{images: {shared_data / "images_scenes"}}}
steps:
  - {{detect: {model}, parallel: 2}}
  - filter: result.detections.exists(d, d.label == "person" && d.confidence > 0.6)
sinks: [{{jsonl: people.jsonl}}]
"""
    )
    pipeline.run()
    found = {json.loads(line)["name"] for line in (tmp_path / "people.jsonl").read_text().splitlines()}
    assert {"soccer_players.jpg", "faces_two_people_coral.jpg"} <= found
    assert not found & {"retina_fundus.jpg", "sunflower_coral.jpg", "owl_coral.jpg"}
    for frame in seen.frames:
        height, width = frame.image.shape[:2]
        for detection in frame.result.detections:
            x0, y0, x1, y1 = detection.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert pipeline.stats()["errors"] == 0


# ---------------------------------------------------------------- estimate


@pytest.fixture
def power(bundle: Bundle) -> Path:
    """0.5 a + 0.25 b + 1."""
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["row", "weights", "bias"], ["value"])],
        "power",
        [helper.make_tensor_value_info("row", REAL, [1, 2])],
        [helper.make_tensor_value_info("value", REAL, [1, 1])],
        initializer=[
            array(np.array([[0.5], [0.25]], np.float32), "weights"),
            array(np.array([1.0], np.float32), "bias"),
        ],
    )
    card = {
        "task": "regression",
        "input": {"kind": "tensor", "size": [2]},
        "output": {"form": "value", "unit": "kW"},
    }
    return bundle("power", card, graph)


def test_a_quantity_is_estimated_for_each_reading(build: Any, power: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", [(2.0, 4.0), (0.0, 0.0), (-8.0, 100.0)])
    pipeline, seen = build(
        f"""
source: {{series: a.csv}}
steps:
  - estimate: {power}
  - filter: result.value > 2.0
"""
    )
    pipeline.run()
    assert [(event.data["value"], event.data["unit"]) for event in seen.events] == [(3.0, "kW"), (22.0, "kW")]
    assert pipeline.stats()["frames"] == 3


def test_readings_that_do_not_fit_the_model_are_counted(build: Any, power: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    pipeline, seen = build(f"source: {{series: a.csv}}\nsteps: [{{estimate: {power}}}]\n")
    pipeline.run()
    assert seen.frames == []
    stats = pipeline.stats()
    assert stats["errors"] == 2
    assert "takes [2] numbers, got [1, 3]" in stats["last_error"]


# ---------------------------------------------------------------- readings in the cloud, and what delays are learnt by


@dataclass
class Cloud:
    """Answers tensors with a real model, as a replica does: from the bytes and the shape that travelled."""

    model: Model
    asked: list[CloudInput] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def infer(self, request: CloudInput, timeout_s: float) -> Future[Reply]:
        self.asked.append(request)
        return self._thread.submit(self._answer, request)

    def probe(self, size_bytes: int, timeout_s: float, about: tuple[str, int] | None = None) -> Future[Reply]:
        return self._thread.submit(Reply, None, 0.0, 0.0)

    def _answer(self, request: CloudInput) -> Reply:
        tensor = np.frombuffer(request.payload.body, "<f4").reshape(request.payload.shape)
        begun_s = time.monotonic()
        result = self.model.predict(tensor)
        return Reply(replace(result, model="the-cloud"), 0.0, time.monotonic() - begun_s)

    def close(self) -> None:
        self._thread.shutdown()
        self.model.close()


class Fixed:
    """A policy that always decides the same."""

    def __init__(self, place: Place) -> None:
        self._place, self._lock = place, threading.Lock()
        self.asks: list[Ask] = []
        self.learnt: list[Any] = []

    def decide(self, ask: Ask) -> Decision:
        with self._lock:
            self.asks.append(ask)
        return Decision(self._place, None, 0.01, "as the test says", 30.0 if self._place is Place.CLOUD else None)

    def learn(self, outcome: Any) -> None:
        with self._lock:
            self.learnt.append(outcome)

    def probe_due(self, now_s: float) -> int | None:
        return None

    def link(self) -> LinkEstimate:
        return LinkEstimate(8e6, 0.004, True)

    def keys(self, kind: type) -> set[str]:
        return {outcome.key for outcome in self.learnt if isinstance(outcome, kind)}


@pytest.fixture
def cloud(spread: Bundle) -> Iterator[Cloud]:
    served = Cloud(Model.load(spread(name="big")))
    yield served
    served.close()


@pytest.mark.parametrize("place", [Place.EDGE, Place.CLOUD])
def test_windows_of_readings_are_answered_alike_here_and_in_the_cloud(
    build: Any, spread: Bundle, cloud: Cloud, tmp_path: Path, place: Place
) -> None:
    write_rows(tmp_path / "a.csv", CALM)
    policy = Fixed(place)
    card = cloud.model.card
    pipeline, seen = build(
        f"source: {{series: a.csv, window: 4, every: 4}}\nsteps: [{{score: {spread()}, cloud: big}}]\nraw: allowed\n",
        remote=cloud,
        cloud_cards={"big": card},
        policy=policy,
    )
    pipeline.run()
    assert [frame.result.score for frame in seen.frames] == [2.0] * 10
    assert {frame.placed.place for frame in seen.frames} == {place}
    assert {(key(ask, Place.EDGE), key(ask, Place.CLOUD)) for ask in policy.asks} == {
        ("spread@2/onnx 4x2", "big@2 4x2")
    }
    if place is Place.CLOUD:
        assert {(r.payload.media, r.payload.shape, len(r.payload.body)) for r in cloud.asked} == {
            ("application/x-tensor", (4, 2), 32)
        }
        assert {frame.result.model for frame in seen.frames} == {"the-cloud"}
        assert {ask.ways[1].payload_bytes for ask in policy.asks} == {32}
        assert policy.keys(CloudSent) == {"big@2 4x2"}
        assert seen.events[0].data["sent_bytes"] == 32
    else:
        assert policy.keys(EdgeOutcome) == {"spread@2/onnx 4x2"}
    assert pipeline.stats()[place.value] == 10


def test_a_cloud_model_that_takes_something_else_is_named(
    build: Any, spread: Bundle, cloud: Cloud, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.csv", CALM)
    card = cloud.model.card
    with pytest.raises(Invalid, match="spread takes 12 numbers, big takes 8 numbers") as caught:
        build(
            f"source: {{series: a.csv, window: 6}}\nsteps: [{{score: {spread(rows=6)}, cloud: big}}]\nraw: allowed\n",
            remote=cloud,
            cloud_cards={"big": card},
        )
    assert "Both are asked about the same input" in str(caught.value)


def test_pictures_of_other_sizes_are_other_work(build: Any, colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    for number, side in enumerate((30, 32, 35, 500, 530)):
        Pillow.new("RGB", (side, side), (250, 0, 0)).save(folder / f"{number}.png")
    policy, model = Fixed(Place.EDGE), Model.load(colours)
    remote = Cloud(model)
    try:
        pipeline, _ = build(
            f"source: {{images: {folder}}}\nsteps: [{{classify: MODEL, cloud: big}}]\nraw: allowed\n",
            remote=remote,
            cloud_cards={"big": model.card},
            policy=policy,
        )
        pipeline.run()
    finally:
        remote.close()
    assert policy.keys(EdgeOutcome) == {"colours@7/onnx 4^5px", "colours@7/onnx 4^9px"}
    # The cloud is sent them fitted to its model, all alike.
    assert {key(ask, Place.CLOUD) for ask in policy.asks} == {"colours@7"}


@pytest.mark.parametrize(("frame", "key"), [
    (Frame(0, 0.0, 0.0, tensor=np.zeros((24, 3), np.float32)), "24x3"),
    (Frame(0, 0.0, 0.0, reading={"a": 1, "b": 2}), "2"),
    (Frame(0, 0.0, 0.0, reading=[1, 2, 3]), "3"),
    (Frame(0, 0.0, 0.0, reading=np.zeros((2, 5, 1))), "2x5x1"),
    (Frame(0, 0.0, 0.0, reading=21.5), "1"),
    (Frame(0, 0.0, 0.0, reading=[[1], [2, 3]]), "2"),
    (Frame(0, 0.0, 0.0, reading="text"), "1"),
    (Frame(0, 0.0, 0.0), "1"),
])  # fmt: skip
def test_readings_have_a_shape_whatever_they_are(frame: Frame, key: str) -> None:
    assert readings_key(frame) == key


def test_pixels_count_by_their_power_of_four() -> None:
    def key(height: int, width: int) -> str:
        return pixels_key(np.zeros((height, width, 3), np.uint8))

    assert key(1024, 1024) == key(1080, 1280) == "4^10px"
    assert key(1080, 1920) != key(480, 640)
    assert key(1, 1) == pixels_key(None) == "4^0px"
