"""Whole models: loading, choosing a variant, real answers on real photos, and what bad input gets."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from marram.runtime import image as pictures
from marram.runtime import probe
from marram.runtime.bundle import Bundle
from marram.runtime.model import Model, Options, fit_for
from marram.schema.errors import Invalid, Missing, NotReady, Permanent

Write = Callable[..., Path]


# ---------------------------------------------------------------- loading and choosing


def test_three_parts_make_one_answer(write_bundle: Write) -> None:
    model = Model.load(write_bundle())
    prepared = model.prepare(probe.INPUT)
    outputs = model.run(prepared)
    np.testing.assert_allclose(outputs[0], probe.OUTPUT)
    assert model.interpret(outputs, prepared) == model.predict(probe.INPUT[0])
    assert model.predict(probe.INPUT).label == "ant"
    assert len(model.predict(probe.INPUT, options=Options(top=2)).top) == 2


def test_the_first_variant_that_runs_here_is_taken(write_bundle: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(
        files={"a.onnx": probe.onnx(), "b.tflite": probe.tflite()},
        variants=[
            {"name": "first", "engine": "onnx", "file": "a.onnx"},
            {"name": "second", "engine": "litert", "file": "b.tflite"},
        ],
    )
    assert Model.load(folder).variant.name == "first"
    assert Model.load(folder, variant="second").variant.name == "second"
    with pytest.raises(Missing, match='no variant "third"'):
        Model.load(folder, variant="third")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    assert Model.load(folder).variant.name == "second"
    with pytest.raises(NotReady, match=r"tiny@1: no engine here runs first.*pip install onnxruntime"):
        Model.load(folder, variant="first")


@pytest.mark.parametrize(
    ("labels", "offset", "says"),
    [
        (["ant", "bee"], 0, r"has 3 classes, its labels name 2\. Mend labels in model\.yaml"),
        (["background", "ant", "bee", "cat"], 0, r"its labels name 4\. .*output\.label_offset: 1"),
        (["ant", "bee", "cat"], 1, r"its labels name 2 from line 1 on"),
    ],
)
def test_as_many_labels_as_classes(write_bundle: Write, labels: list[str], offset: int, says: str) -> None:
    """Else every name could be another's: nobody would see that the answers are wrong."""
    Model.load(write_bundle(labels=["background", "ant", "bee", "cat"], output={"label_offset": 1})).close()
    Model.load(write_bundle(labels=None)).close()
    with pytest.raises(Invalid, match=says) as caught:
        Model.load(write_bundle(labels=labels, output={"label_offset": offset}))
    assert "model.tflite" in str(caught.value.where)


def test_a_damaged_file_is_named_and_no_other_variant_hides_it(write_bundle: Write) -> None:
    folder = write_bundle(
        files={"a.onnx": b"junk", "b.tflite": probe.tflite()},
        variants=[
            {"name": "first", "engine": "onnx", "file": "a.onnx"},
            {"name": "second", "engine": "litert", "file": "b.tflite"},
        ],
    )
    with pytest.raises(Invalid, match=r"a\.onnx"):
        Model.load(folder)


def test_a_card_that_contradicts_its_file_is_invalid(write_bundle: Write) -> None:
    with pytest.raises(Invalid, match=r"model\.tflite  input\.size: the card says \[1, 5\], the file \[1, 4\]"):
        Model.load(write_bundle(input={"size": [5]}))
    model = Model.load(write_bundle(task="regression", output={"form": "value"}))
    with pytest.raises(Invalid, match=r'tiny: output\.form: "value" takes one number; the model gave \[1, 3\]'):
        model.predict(probe.INPUT)


def test_of_several_outputs_the_card_names_what_its_form_takes(write_bundle: Write) -> None:
    """As scikit-learn exports a classifier: names, label and probabilities; here in float64 throughout."""
    outputs = [
        ("names", TensorProto.STRING, [1]),
        ("label", TensorProto.INT64, [1]),
        ("shares", TensorProto.DOUBLE, [1, 3]),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Softmax", ["x"], ["shares"], axis=1),
            helper.make_node("ArgMax", ["shares"], ["label"], axis=1, keepdims=0),
            helper.make_node("Cast", ["label"], ["names"], to=TensorProto.STRING),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 3])],
        [helper.make_tensor_value_info(*output) for output in outputs],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    def load(**output: Any) -> Model:
        variants = [{"name": "v", "engine": "onnx", "file": "m.onnx"}]
        card = {"input": {"size": [3]}, "output": {"form": "softmax", **output}, "variants": variants}
        return Model.load(write_bundle(files={"m.onnx": file}, **card))

    with pytest.raises(Invalid, match=r"the file has 2: label \[1\], shares \[1, 3\]. .* `output.tensors: \[shares\]`"):
        load()
    with pytest.raises(Missing, match=r'no output "share"; it has label \[1\], shares'):
        load(tensors=["share"])
    result = load(tensors=["shares"]).predict(np.log([1.0, 7.0, 2.0]))
    assert (result.label, result.confidence) == ("bee", pytest.approx(0.7))


def test_nan_is_never_an_answer(write_bundle: Write) -> None:
    model = Model.load(write_bundle())
    with pytest.raises(Permanent, match="answered NaN"):
        model.predict(np.array([np.nan, 0, 0, 0], np.float32))
    assert model.predict(probe.INPUT).label == "ant"


def test_what_the_model_does_not_take_is_invalid(write_bundle: Write) -> None:
    model = Model.load(write_bundle())
    for wrong in (np.zeros(5), np.zeros((3, 3, 3), np.uint8), "text", None):
        with pytest.raises(Invalid):
            model.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="takes readings"):
        fit_for(model.card, np.zeros((4, 4, 3), np.uint8))


def test_a_closed_model_says_so(write_bundle: Write) -> None:
    model = Model.load(write_bundle())
    model.close()
    with pytest.raises(Permanent, match="closed"):
        model.predict(probe.INPUT)


# ---------------------------------------------------------------- real models


@pytest.fixture
def real(shared_data: Path, write_bundle: Write) -> Callable[..., Model]:
    """A model of the shared data folder: `real("models/x.tflite", labels="models/y.txt", input={…})`."""

    def load(file: str, labels: str | list[str], **card: Any) -> Model:
        name = Path(file).name
        engine = "litert" if name.endswith(".tflite") else "onnx"
        files = {name: b""}
        if isinstance(labels, str):
            files["labels.txt"] = (shared_data / labels).read_bytes()
        folder = write_bundle(
            "real",
            files=files,
            variants=[{"name": "v", "engine": engine, "file": name}],
            labels="labels.txt" if isinstance(labels, str) else labels,
            **{**card, "input": {"kind": "image", **card["input"]}},
        )
        shutil.copyfile(shared_data / file, folder / name)
        return Model.load(Bundle.open(folder))

    return load


def photos(shared_data: Path) -> list[tuple[np.ndarray, set[int]]]:
    with (shared_data / "images" / "labels.csv").open() as table:
        return [
            (
                pictures.decode((shared_data / "images" / row["file"]).read_bytes(), row["file"]),
                {int(n) for n in row["accepted_class_ids_0_999"].split(";")},
            )
            for row in csv.DictReader(table)
        ]


MOBILENET = {"size": [224, 224], "mean": [127.5], "std": [127.5]}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "entry", "offset", "right"),
    [
        ("tf2_mobilenet_v2_1.0_224_ptq.tflite", MOBILENET, 0, 26),
        ("mobilenet_v2_1.0_224_quant.tflite", MOBILENET, 0, 26),
        ("mobilenet_v1_0.25_224_float.tflite", MOBILENET, 0, 18),
        ("mobilenet_v1_0.25_224_quant.tflite", MOBILENET, 0, 18),
        ("efficientnet_lite0_int8.tflite", {"size": [224, 224], "mean": [127.0], "std": [128.0]}, 1, 26),
    ],
)
def test_classifies_the_photos(
    real: Callable[..., Model], shared_data: Path, file: str, entry: dict[str, Any], offset: int, right: int
) -> None:
    labels = "models/imagenet_labels.txt"
    model = real(f"models/{file}", labels, input=entry, output={"form": "softmax", "label_offset": offset})
    names = model.bundle.labels
    hits = 0
    for photo, accepted in photos(shared_data):
        result = model.predict(photo)
        assert result.confidence is not None and 0 < result.confidence <= 1
        hits += result.label in {names[n + 1] for n in accepted}  # line 0 is "background"
    assert hits >= right


DETECTORS: dict[str, tuple[str, str | list[str], dict[str, Any]]] = {
    "ssd": (
        "models/coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite",
        "models/coco_labelmap.txt",
        {"input": {"size": [300, 300], "mean": [127.5], "std": [127.5]}, "output": {"form": "ssd"}},
    ),
    "fastestdet": (
        "models/FastestDet.onnx",
        "models/fastestdet_coco80.txt",
        {
            "input": {"size": [352, 352], "layout": "NCHW", "colour": "BGR", "std": [255.0]},
            "output": {"form": "fastestdet", "min_confidence": 0.6},
        },
    ),
    "yunet": (
        "models/yunet_n_320_320.onnx",
        ["face"],
        {
            "input": {"size": [320, 320], "layout": "NCHW", "colour": "BGR", "fit": "letterbox"},
            "output": {"form": "yunet", "min_confidence": 0.6, "overlap": 0.3},
        },
    ),
    "blazeface": (
        "models/face_detection_short_range.tflite",
        ["face"],
        {
            "input": {"size": [128, 128], "mean": [127.5], "std": [127.5], "fit": "letterbox"},
            "output": {"form": "blazeface", "overlap": 0.3},
        },
    ),
}


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """IoU."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return shared / (areas - shared)


# Boxes drawn by eye on the shared photos.
@pytest.mark.shared
@pytest.mark.parametrize(
    ("detector", "photo", "label", "boxes"),
    [
        ("ssd", "taxis_street_max.jpg", "car", [(365, 310, 572, 445), (232, 298, 420, 396)]),
        ("ssd", "soccer_players.jpg", "person", [(26, 107, 166, 430), (425, 112, 621, 445)]),
        ("ssd", "dogs_two_coral_pets.jpg", "dog", [(120, 45, 254, 295), (340, 165, 496, 370)]),
        ("fastestdet", "taxis_street_max.jpg", "car", [(365, 310, 572, 445), (232, 298, 420, 396)]),
        ("fastestdet", "soccer_players.jpg", "person", [(26, 107, 166, 430), (425, 112, 621, 445)]),
        ("yunet", "face_astronaut.jpg", "face", [(168, 60, 253, 166)]),
        ("yunet", "faces_two_people_coral.jpg", "face", [(256, 50, 350, 170), (132, 90, 222, 200)]),
        ("blazeface", "face_astronaut.jpg", "face", [(168, 75, 255, 165)]),
        ("blazeface", "faces_two_people_coral.jpg", "face", [(254, 65, 353, 170), (131, 100, 225, 200)]),
    ],
)
def test_finds_what_is_there(
    real: Callable[..., Model],
    shared_data: Path,
    detector: str,
    photo: str,
    label: str,
    boxes: list[tuple[float, ...]],
) -> None:
    file, labels, card = DETECTORS[detector]
    model = real(file, labels, task="detection", **card)
    frame = pictures.decode((shared_data / "images_scenes" / photo).read_bytes())
    result = model.predict(frame)
    found = [d for d in result.detections if d.label == label]
    for box in boxes:
        assert max(overlap(box, d.box) for d in found) > 0.7
    if label == "face":
        for face in found:
            x0, y0, x1, y1 = face.box
            assert all(x0 - 10 <= x <= x1 + 10 and y0 - 10 <= y <= y1 + 10 for x, y in face.points[:2])  # the eyes
    # A replica is sent the fitted picture and must answer in pixels of the frame all the same.
    assert model.predict(fit_for(model.card, frame), frame_size=frame.shape[:2]) == result
    sent = pictures.decode(pictures.encode_jpeg(fit_for(model.card, frame), quality=95))
    again = [d for d in model.predict(sent, frame_size=frame.shape[:2]).detections if d.label == label]
    for box in boxes:
        assert max(overlap(box, d.box) for d in again) > 0.65
    with pytest.raises(Invalid, match="a fitted picture is"):
        model.predict(frame[:50], frame_size=frame.shape[:2])


@pytest.mark.shared
def test_no_faces_in_a_street_and_in_the_dark(real: Callable[..., Model], shared_data: Path) -> None:
    file, labels, card = DETECTORS["yunet"]
    model = real(file, labels, task="detection", **card)
    for frame in (
        pictures.decode((shared_data / "images_scenes" / "taxis_street_max.jpg").read_bytes()),
        np.zeros((480, 640, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
    ):
        result = model.predict(frame)
        assert (result.detections, result.label) == ((), None)


@pytest.mark.shared
def test_anomaly_scores_agree_between_float_and_int8(real: Callable[..., Model], shared_data: Path) -> None:
    sound = np.fromfile(shared_data / "models_tiny" / "ad01_normal_id_01_sample_f32.bin", np.float32).reshape(-1, 128)
    card = {"task": "anomaly", "input": {"kind": "tensor", "size": [640]}}
    scores = {}
    for kind in ("fp32", "int8"):
        model = real(f"models_tiny/ad01_{kind}.tflite", [], output={"form": "reconstruction", "threshold": 15}, **card)
        results = [model.predict(sound[i : i + 5]) for i in range(0, 190, 10)]
        assert not any(r.anomaly for r in results)  # a normal machine
        scores[kind] = np.array([r.score for r in results])
        noise = np.random.default_rng(0).normal(-30, 15, 640).astype(np.float32)
        assert model.predict(noise).anomaly
    assert np.abs(scores["int8"] / scores["fp32"] - 1).max() < 0.25


@pytest.mark.shared
def test_person_or_not(real: Callable[..., Model], shared_data: Path) -> None:
    for kind in ("float", "int8"):
        model = real(
            f"models_tiny/vww_96_{kind}.tflite",
            ["no person", "person"],
            input={"size": [96, 96], "std": [255.0]},
            output={"form": "softmax"},
        )
        for photo, wanted in (("soccer_players.jpg", "person"), ("retina_fundus.jpg", "no person")):
            frame = pictures.decode((shared_data / "images_scenes" / photo).read_bytes())
            assert model.predict(frame).label == wanted, (kind, photo)


@pytest.mark.shared
def test_keywords_float_and_int8_agree(real: Callable[..., Model], shared_data: Path) -> None:
    words = [f"word {i}" for i in range(12)]
    card = {"input": {"kind": "tensor", "size": [49, 10, 1]}, "output": {"form": "softmax"}}
    exact = real("models_tiny/kws_ref_model_float32.tflite", words, **card)
    coarse = real("models_tiny/kws_ref_model.tflite", words, **card)
    rng = np.random.default_rng(1)
    agreed = 0
    for _ in range(30):
        sound = rng.normal(0, 20, (49, 10)).astype(np.float32)
        agreed += exact.predict(sound).label == coarse.predict(sound).label
    assert agreed >= 24
