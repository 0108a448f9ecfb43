"""annotate draws onto a copy, whatever a model says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from marram.pipeline.contract import Frame, Step
from marram.pipeline.steps.annotate import draw
from marram.schema.model import Task
from marram.schema.result import Detection, Result

GREY = np.full((120, 160, 3), 90, np.uint8)


def changed(drawn: np.ndarray) -> np.ndarray:
    return (drawn != GREY).any(axis=2)


def test_boxes_and_their_labels_are_drawn_on_a_copy() -> None:
    found = Detection("cat", 0.8, (40, 50, 100, 100), points=((70.0, 75.0),))
    before = GREY.copy()
    drawn = draw(GREY, Result(task=Task.DETECTION, model="m", detections=(found,)))
    assert np.array_equal(GREY, before)
    mask = changed(drawn)
    assert mask[50, 60]
    assert mask[99:101, 60].any()
    assert mask[75, 70]
    assert not mask[85, 50]
    assert not mask[110:, :].any()


@pytest.mark.parametrize(
    "result",
    [
        Result(task=Task.CLASSIFICATION, model="m", label="cat", confidence=0.8),
        Result(task=Task.CLASSIFICATION, model="m", label="猫"),
        Result(task=Task.REGRESSION, model="m", value=3.14159, unit="m³"),
        Result(task=Task.ANOMALY, model="m", score=3.0, threshold=1.0),
    ],
)
def test_other_answers_stand_at_the_top_left(result: Result) -> None:
    mask = changed(draw(GREY, result))
    assert mask[:20, :40].any()
    assert not mask[60:, :].any()


@pytest.mark.parametrize(
    "box",
    [
        (float("nan"), 0, 10, 10),
        (500, 500, 600, 600),
        (-50, -50, -10, -10),
        (100, 100, 20, 20),
        (-1e9, -1e9, 1e9, 1e9),
        (5, 5, 5, 5),
    ],
)
def test_a_box_that_is_none_stops_nothing(box: tuple[float, float, float, float]) -> None:
    drawn = draw(GREY, Result(task=Task.DETECTION, model="m", detections=(Detection("x", 0.5, box),)))
    assert drawn.shape == GREY.shape


def test_the_step_leaves_alone_what_has_nothing_to_show(last_step: Callable[[str], Step]) -> None:
    step = last_step("source: {camera: 0}\nsteps: [{annotate: true}]")
    plain = Frame(0, 0.0, 0.0, image=GREY)
    assert list(step(plain)) == [plain]
    shown = Frame(0, 0.0, 0.0, image=GREY, result=Result(task=Task.CLASSIFICATION, model="m", label="cat"))
    (out,) = step(shown)
    assert out.image is not GREY
    assert shown.image is GREY
    assert out.result is shown.result
