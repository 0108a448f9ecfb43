"""Each form of output, on outputs made by hand: the numbers that must come out are worked out beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marram.runtime.contract import TensorInfo
from marram.runtime.fit import plan
from marram.runtime.postprocess import FORMS
from marram.runtime.postprocess.boxes import keep_best
from marram.runtime.postprocess.contract import Asked, Options
from marram.schema.errors import Invalid
from marram.schema.model import ModelCard, Output
from marram.schema.result import Result

TASK = {
    "softmax": "classification",
    "logits": "classification",
    "value": "regression",
    "score": "anomaly",
    "reconstruction": "anomaly",
}


def ask(
    form: str, outputs: list[Any], options: Options | None = None, frame: tuple[int, int] = (200, 400), **card: Any
) -> Result:
    """Interpret `outputs` for a model of a 100×100 input that fills a 400×200 frame (width × height)."""
    tensors = card.pop("tensors", [np.zeros((1, 100, 100, 3), np.float32)])
    labels = card.pop("labels", ("ant", "bee", "cat"))
    document = {
        "model": "m",
        "task": TASK.get(form, "detection"),
        "input": {"size": card.pop("size", [100, 100]), "fit": card.pop("fit", "stretch")},
        "output": {"form": form, **card},
        "variants": [{"name": "v", "engine": "onnx", "file": "f"}],
        "licence": "x",
        "source": "y",
    }
    parsed = ModelCard.model_validate(document)
    infos = tuple(TensorInfo("x", t.shape, t.dtype.name, 0.5, 3) for t in tensors)
    fit = plan(parsed.input, *frame) if form not in ("value", "score", "reconstruction") else None
    asked = Asked(parsed, labels, tensors, infos, fit, options or Options())
    return FORMS[form]([np.asarray(o, np.float32) for o in outputs], asked)


def test_every_form_of_the_schema_has_its_file() -> None:
    assert set(FORMS) == set(Output.model_fields["form"].annotation.__args__)


class TestClassification:
    def test_softmax_ranks(self) -> None:
        result = ask("softmax", [[[0.2, 0.7, 0.1]]])
        assert (result.label, result.confidence) == ("bee", pytest.approx(0.7))
        assert [label for label, _ in result.top] == ["bee", "ant", "cat"]

    @pytest.mark.parametrize("outputs", [[13.3, -4.9, -10.8], [0.5, -0.2, 0.7], [200.0, 50.0, 5.0]])
    def test_what_is_no_probability_is_never_a_confidence(self, outputs: list[float]) -> None:
        with pytest.raises(Invalid, match=r'"softmax" takes probabilities.*`form: logits`'):
            ask("softmax", [[outputs]])

    def test_logits_become_probabilities(self) -> None:
        result = ask("logits", [[[0.0, np.log(3), 1000.0 - 1000.0]]])
        assert dict(result.top) == {"bee": pytest.approx(0.6), "ant": pytest.approx(0.2), "cat": pytest.approx(0.2)}
        assert [label for label, _ in result.top] == ["bee", "ant", "cat"]  # equals: the lower class first
        assert ask("logits", [[[1e30, -1e30, 0]]]).confidence == 1.0

    def test_top_offset_and_unnamed_classes(self) -> None:
        assert len(ask("softmax", [[[0.5, 0.3, 0.2]]], Options(top=2)).top) == 2
        assert ask("softmax", [[[0.9, 0.1]]], label_offset=1).label == "bee"
        assert ask("softmax", [[[0, 0, 0, 0, 1.0]]]).label == "class 4"

    @given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5])))
    def test_top_is_the_stable_sort(self, values: np.ndarray) -> None:
        result = ask("softmax", [values[None]], Options(top=7), labels=tuple(map(str, range(40))))
        wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:7]
        assert [int(label) for label, _ in result.top] == wanted

    @pytest.mark.parametrize("outputs", [[], [np.zeros((1, 2)), np.zeros((1, 2))], [np.zeros((2, 3))], [np.zeros(0)]])
    def test_other_outputs_are_invalid(self, outputs: list[Any]) -> None:
        with pytest.raises(Invalid, match=r'"softmax" takes one output \[1, classes\]; the model gave'):
            ask("softmax", outputs)


class TestSsd:
    BOXES = [[[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.2, 1.0], [0, 0, 0.1, 0.1]]]  # y0, x0, y1, x1

    def test_boxes_lie_in_the_frame(self) -> None:
        result = ask("ssd", [self.BOXES, [[2, 0, 1]], [[0.9, 0.8, 0.3]], [3]])
        assert [(d.label, d.box) for d in result.detections] == [
            ("cat", pytest.approx((80, 20, 240, 100))),
            ("ant", (0, 0, 400, 200)),  # what reaches past the frame is cut
        ]
        assert (result.label, result.confidence) == ("cat", pytest.approx(0.9))

    def test_the_order_of_tensorflow_2(self) -> None:
        first = ask("ssd", [self.BOXES, [[2, 0, 1]], [[0.9, 0.8, 0.3]], [3]])
        assert ask("ssd", [[[0.9, 0.8, 0.3]], self.BOXES, [3], [[2, 0, 1]]]) == first

    def test_count_and_confidence_limit(self) -> None:
        assert len(ask("ssd", [self.BOXES, [[2, 0, 1]], [[0.9, 0.8, 0.9]], [1]]).detections) == 1
        three = Options(min_confidence=0.2)
        assert len(ask("ssd", [self.BOXES, [[2, 0, 1]], [[0.9, 0.8, 0.3]], [99]], three).detections) == 3
        nothing = ask("ssd", [self.BOXES, [[2, 0, 1]], [[0.9, 0.8, 0.3]], [0]])
        assert (nothing.detections, nothing.label, nothing.confidence) == ((), None, None)

    def test_other_outputs_are_invalid(self) -> None:
        for outputs in ([self.BOXES], [self.BOXES, [[1]], [[1]], [1]], [self.BOXES] * 4):
            with pytest.raises(Invalid, match="ssd"):
                ask("ssd", outputs)


def test_fastestdet_decodes_a_cell() -> None:
    grid = np.full((1, 8, 10, 10), -9.0, np.float32)
    grid[0, 0], grid[0, 5:] = 0, 0
    # Cell column 3, row 6: centre moved by tanh(0) = 0, size sigmoid(0) = half the input, class 1 at 0.81.
    grid[0, :, 6, 3] = [1.0, 0, 0, 0, 0, 0, 0.81, 0]
    (found,) = ask("fastestdet", [grid]).detections
    assert found.label == "bee"
    assert found.confidence == pytest.approx(0.81**0.4)
    assert found.box == pytest.approx((20.0, 70.0, 220.0, 170.0))  # input 5..55, 35..85, doubled and quadrupled


def test_yunet_decodes_a_prior() -> None:
    outputs = []
    for channels in (1, 1, 4, 10):
        outputs += [np.zeros((1, (64 // s) ** 2, channels), np.float32) for s in (8, 16, 32)]
    cell = 2 * 4 + 1  # stride 16 has 4×4 cells: row 2, column 1
    outputs[1][0, cell], outputs[4][0, cell] = 0.9, 0.4
    outputs[7][0, cell] = [0.5, 0.25, np.log(2), 0]
    outputs[10][0, cell] = [0.5, 0.5, 1, 0, 0, 0, 0, 0, -1, -1]
    result = ask("yunet", outputs, frame=(64, 64), size=[64, 64], labels=("face",))
    (found,) = result.detections
    assert found.confidence == pytest.approx(0.6)  # sqrt(0.9 × 0.4)
    assert found.box == pytest.approx((24 - 16, 36 - 8, 24 + 16, 36 + 8))
    assert found.points == ((24, 40), (32, 32), (16, 32), (16, 32), (0, 16))
    with pytest.raises(Invalid, match="twelve outputs"):
        ask("yunet", outputs[:11])
    with pytest.raises(Invalid, match="boxes at stride"):
        ask("yunet", outputs, size=[96, 96])


def test_blazeface_decodes_an_anchor() -> None:
    regressors, scores = np.zeros((1, 896, 16), np.float32), np.full((1, 896, 1), -50, np.float32)
    anchor = 512 + 6 * (2 * 8 + 3)  # the second grid, row 2, column 3: centre (56, 40)
    scores[0, anchor] = 2
    regressors[0, anchor, :6] = [4, -4, 32, 16, 10, 0]
    outputs = [regressors, scores]
    result = ask("blazeface", outputs, frame=(256, 128), size=[128, 128], fit="letterbox", labels=("face",))
    (found,) = result.detections
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-2)))
    # Letterboxed: the frame is 64 columns wide in the input, from 32 on, at half size.
    assert found.box == pytest.approx(((44 - 32) * 2, 28 * 2, (76 - 32) * 2, 44 * 2))
    assert found.points[0] == ((66 - 32) * 2, 80)
    assert len(found.points) == 6
    assert (
        ask("blazeface", outputs[::-1], frame=(256, 128), size=[128, 128], fit="letterbox", labels=("face",)) == result
    )
    with pytest.raises(Invalid, match="896"):
        ask("blazeface", [regressors[:, :5], scores[:, :5]], size=[128, 128])


def test_the_better_of_overlapping_boxes_stays_within_a_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 5, 5]], np.float32)
    scores = np.array([0.8, 0.9, 0.7, 0.6, 0.5], np.float32)
    classes = np.array([0, 0, 1, 0, 0])
    assert keep_best(boxes, scores, classes, 0.45) == [1, 2, 3, 4]
    assert keep_best(boxes, scores, classes, 0.95) == [1, 0, 2, 3, 4]


@given(
    hnp.arrays(np.float32, (30, 4), elements=st.floats(0, 100, width=16)),
    hnp.arrays(np.float32, 30, elements=st.floats(0, 1, width=16)),
    st.floats(0, 1),
)
def test_no_two_kept_boxes_overlap_too_much(corners: np.ndarray, scores: np.ndarray, overlap: float) -> None:
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    kept = keep_best(boxes, scores, np.zeros(30, np.intp), overlap)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    for i, a in enumerate(kept):
        for b in kept[i + 1 :]:
            low, high = np.maximum(boxes[a, :2], boxes[b, :2]), np.minimum(boxes[a, 2:], boxes[b, 2:])
            shared = np.prod(np.maximum(high - low, 0).astype(float))
            areas = [np.prod((boxes[k, 2:] - boxes[k, :2]).astype(float)) for k in (a, b)]
            assert shared <= overlap * max(sum(areas) - shared, 1e-9) * (1 + 1e-5) + 1e-6


def test_values_and_scores() -> None:
    value = ask("value", [[[21.5]]], unit="°C")
    assert (value.value, value.unit) == (21.5, "°C")
    assert ask("score", [[[3.0]]], threshold=2.5).anomaly is True
    assert ask("score", [[[2.0]]], threshold=2.5).anomaly is False
    assert ask("score", [[[2.0]]]).anomaly is None
    for form in ("value", "score"):
        with pytest.raises(Invalid, match="one number"):
            ask(form, [[[1, 2]]])


def test_reconstruction_is_the_mean_squared_error() -> None:
    given_ = np.array([[1, 2, 3, 4]], np.float32)
    result = ask("reconstruction", [[[1, 2, 3, 8]]], tensors=[given_], threshold=4)
    assert (result.score, result.anomaly) == (4.0, True)
    quantised = np.array([[5, 7]], np.int8)  # scale 0.5, zero-point 3: 1 and 2
    assert ask("reconstruction", [[[1, 4]]], tensors=[quantised]).score == 2.0
    with pytest.raises(Invalid, match="one output of 4 numbers"):
        ask("reconstruction", [[[1, 2]]], tensors=[given_])


def test_boxes_of_readings_are_refused() -> None:
    card = {"model": "m", "task": "detection", "input": {"kind": "tensor", "size": [4]}, "output": {"form": "ssd"}}
    parsed = ModelCard.model_validate(
        card | {"variants": [{"name": "v", "engine": "onnx", "file": "f"}], "licence": "x", "source": "y"}
    )
    asked = Asked(parsed, (), [], (), None, Options())
    with pytest.raises(Invalid, match="boxes need a picture"):
        FORMS["ssd"]([np.zeros((1, 1, 4)), np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1)], asked)
