"""redact covers what must not be seen, strongly enough, or the frame ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from marram.pipeline.contract import Frame, Step
from marram.pipeline.steps.redact import cover, tiles
from marram.schema.errors import Invalid, MarramError, Missing, Permanent
from marram.schema.model import Task
from marram.schema.result import Detection, Result

Make = Callable[[str], Step]
IMAGES = "source: {images: photos}\n"
CARD = {
    "model": "blazeface",
    "task": "detection",
    "input": {"size": [128, 128], "fit": "letterbox", "mean": [127.5], "std": [127.5]},
    "output": {"form": "blazeface", "min_confidence": 0.5, "overlap": 0.3},
    "labels": ["face"],
    "licence": "Apache-2.0",
    "source": "MediaPipe",
}


def noise(height: int = 300, width: int = 400) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def blazeface(tmp_path: Path, shared_data: Path) -> None:
    """The real detector, as the bundle that apps call `blazeface`."""
    folder = tmp_path / "blazeface"
    folder.mkdir()
    shutil.copy(shared_data / "models" / "face_detection_short_range.tflite", folder / "model.tflite")
    variants = [{"name": "litert", "engine": "litert", "file": "model.tflite"}]
    (folder / "model.yaml").write_text(yaml.safe_dump(CARD | {"variants": variants}))


def detail(image: np.ndarray) -> float:
    """How much differs from pixel to pixel: what makes a face a face."""
    grey = image.astype(np.float32).mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def test_a_covered_place_keeps_a_few_averages_and_no_detail() -> None:
    image = noise()
    before = image.copy()
    covered = cover(image, [(100, 80, 200, 180)])
    assert np.array_equal(image, before)
    inside, outside = covered[80:180, 100:200], covered[230:300, 260:400]
    assert detail(inside) < 0.02 * detail(image[80:180, 100:200])
    assert np.array_equal(outside, image[230:300, 260:400])
    # A quarter more on each side than the box.
    assert detail(covered[60:78, 80:98]) < 0.1 * detail(image[60:78, 80:98])


@pytest.mark.parametrize("box", [(-50, -50, 30, 30), (380, 280, 900, 900), (200, 180, 100, 80), (10, 10, 11, 11)])
def test_boxes_over_the_edge_turned_round_or_tiny_are_covered(box: tuple[float, float, float, float]) -> None:
    image = noise()
    covered = cover(image, [box])
    x, y = int(min(max((box[0] + box[2]) / 2, 1), 398)), int(min(max((box[1] + box[3]) / 2, 1), 298))
    assert not np.array_equal(covered[y - 1 : y + 2, x - 1 : x + 2], image[y - 1 : y + 2, x - 1 : x + 2])


def test_a_box_that_is_none_is_a_fault_not_a_gap() -> None:
    with pytest.raises(Permanent):
        cover(noise(), [(float("nan"), 0, 10, 10)])


@pytest.mark.parametrize(("height", "width"), [(480, 640), (720, 1280), (1280, 720), (100, 100), (1, 1), (37, 4000)])
def test_tiles_leave_nothing_out(height: int, width: int) -> None:
    seen = np.zeros((height, width), bool)
    _, *squares = tiles(height, width)
    for x, y, across, down in squares:
        assert 0 <= x <= x + across <= width
        assert 0 <= y <= y + down <= height
        seen[y : y + down, x : x + across] = True
    assert seen.all()


def test_a_real_face_is_covered_and_the_rest_is_not(last_step: Make, blazeface: None, shared_data: Path) -> None:
    photo = np.asarray(Pillow.open(shared_data / "images" / "military_uniform_hopper.jpg").convert("RGB"))
    step = last_step(IMAGES + "steps: [{redact: faces}]")
    (out,) = step(Frame(0, 0.0, 0.0, image=photo))
    assert out.redacted
    face = np.s_[150:310, 170:335]
    assert detail(out.image[face]) < 0.2 * detail(photo[face])
    assert np.array_equal(out.image[-60:], photo[-60:])
    step.close()  # type: ignore[attr-defined]


def test_a_small_face_in_a_large_picture_is_covered(last_step: Make, blazeface: None, shared_data: Path) -> None:
    """The whole frame alone is searched too coarsely for it."""
    portrait = Pillow.open(shared_data / "images" / "military_uniform_hopper.jpg").convert("RGB")
    face = portrait.crop((100, 80, 400, 380)).resize((110, 110))
    scene = np.asarray(Pillow.open(shared_data / "images" / "space_shuttle_max.jpg").convert("RGB").resize((1280, 720)))
    scene = scene.copy()
    scene[500:610, 900:1010] = np.asarray(face)
    step = last_step(IMAGES + "steps: [{redact: faces}]")
    (out,) = step(Frame(0, 0.0, 0.0, image=scene))
    middle = np.s_[530:575, 935:980]
    assert detail(out.image[middle]) < 0.3 * detail(scene[middle])
    step.close()  # type: ignore[attr-defined]


def test_where_the_detector_fails_nothing_goes_on(last_step: Make, seer: Path) -> None:
    step = last_step(IMAGES + "steps: [{redact: faces, model: seer}]")
    (good,) = step(Frame(0, 0.0, 0.0, image=noise(128, 128)))
    assert good.redacted
    with pytest.raises(MarramError, match="NaN"):
        list(step(Frame(1, 0.0, 0.0, image=np.zeros((128, 128, 3), np.uint8))))
    with pytest.raises(MarramError):
        list(step(Frame(2, 0.0, 0.0, reading=1.0)))
    step.close()  # type: ignore[attr-defined]
    with pytest.raises(MarramError, match="closed"):
        list(step(Frame(3, 0.0, 0.0, image=noise(128, 128))))


def test_in_video_a_place_stays_covered_for_a_moment(last_step: Make) -> None:
    step = last_step("source: {camera: 0}\nsteps: [{detect: m}, {redact: detections}]")
    found = Result(task=Task.DETECTION, model="m", detections=(Detection("face", 0.9, (100, 80, 200, 180)),))
    missed = Result(task=Task.DETECTION, model="m")
    image = noise()

    def covered(result: Result, at_s: float) -> bool:
        (out,) = step(Frame(0, 0.0, at_s, image=image, result=result))
        assert out.redacted
        return not np.array_equal(out.image, image)

    assert covered(found, 10.0)
    assert covered(missed, 10.4)
    assert not covered(missed, 10.6)


def test_of_a_folder_each_picture_is_its_own(last_step: Make) -> None:
    step = last_step(IMAGES + "steps: [{detect: m}, {redact: detections}]")
    found = Result(task=Task.DETECTION, model="m", detections=(Detection("face", 0.9, (100, 80, 200, 180)),))
    list(step(Frame(0, 0.0, 10.0, image=noise(), result=found)))
    (out,) = step(Frame(1, 0.0, 10.0, image=noise(), result=Result(task=Task.DETECTION, model="m")))
    assert np.array_equal(out.image, noise())


def test_a_frame_that_was_not_searched_is_not_redacted(last_step: Make) -> None:
    step = last_step(IMAGES + "steps: [{detect: m}, {redact: detections}]")
    for result in (None, Result(task=Task.CLASSIFICATION, model="m", label="x")):
        with pytest.raises(Permanent, match="not searched"):
            list(step(Frame(0, 0.0, 0.0, image=noise(), result=result)))


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("source: {series: a.csv}\nsteps: [{redact: faces}]", Invalid, "the source gives readings"),
        (IMAGES + "steps: [{redact: detections}]", Invalid, "there is none"),
        (IMAGES + "steps: [{redact: faces, model: absent}]", Missing, "absent"),
        (IMAGES + "steps: [{redact: faces, model: colours}]", Invalid, "faces need a detector"),
    ],
)
def test_what_cannot_redact_is_refused_at_the_start(
    last_step: Make, colours: Path, tmp_path: Path, text: str, kind: type[Any], says: str
) -> None:
    shutil.copytree(colours, tmp_path / "colours")
    with pytest.raises(kind, match=says):
        last_step(text)
