"""What of a frame a model is shown, at the edge and in the cloud alike, and that its boxes come back into the frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.pipeline.conftest import COLOURS
from tests.pipeline.test_placing import Cloud, Fixed

from marram.pipeline.contract import Frame
from marram.pipeline.view import View, view_of
from marram.runtime import image as pictures
from marram.schema.errors import Invalid
from marram.schema.model import Task
from marram.schema.result import Detection, Place, Result


def frame(*boxes: tuple[float, tuple[float, float, float, float]]) -> Frame:
    made = Frame(0, 0.0, 0.0, image=np.zeros((100, 200, 3), np.uint8))
    if boxes:
        made.result = Result(Task.DETECTION, "m@1", detections=tuple(Detection("face", c, box) for c, box in boxes))
    return made


def spot(view: View) -> tuple[int, int, int, int]:
    height, width = view.data.shape[:2]
    return view.x, view.y, view.x + width, view.y + height


def test_all_of_it_without_a_region_and_where_nothing_was_found() -> None:
    assert spot(view_of(frame(), None, picture=True)) == (0, 0, 200, 100)
    assert spot(view_of(frame(), "detections", picture=True)) == (0, 0, 200, 100)


def test_a_region_is_shares_of_the_picture_whole_pixels_and_never_empty() -> None:
    assert spot(view_of(frame(), (0.25, 0.1, 0.75, 0.5), picture=True)) == (50, 10, 150, 50)
    assert spot(view_of(frame(), (0.9999, 0.9999, 1.0, 1.0), picture=True)) == (199, 99, 200, 100)


def test_the_surest_detection_is_shown_with_a_tenth_around_it_inside_the_frame() -> None:
    found = frame((0.4, (0, 0, 10, 10)), (0.9, (100, 50, 140, 70)), (0.7, (0, 0, 200, 100)))
    assert spot(view_of(found, "detections", picture=True)) == (96, 48, 144, 72)
    assert spot(view_of(frame((0.9, (-30, 90, 400, 300))), "detections", picture=True)) == (0, 69, 200, 100)
    assert spot(view_of(frame((0.9, (float("nan"), 0, 1, 1))), "detections", picture=True)) == (0, 0, 200, 100)


def test_boxes_and_points_come_back_in_pixels_of_the_frame() -> None:
    view = view_of(frame(), (0.25, 0.1, 0.75, 0.5), picture=True)
    seen = Result(Task.DETECTION, "m@1", detections=(Detection("face", 0.9, (1, 2, 3, 4), ((5.0, 6.0),)),))
    (found,) = view.in_frame(seen).detections
    assert found.box == (51.0, 12.0, 53.0, 14.0)
    assert found.points == ((55.0, 16.0),)


def test_a_frame_without_a_picture_is_named() -> None:
    with pytest.raises(Invalid, match="frame 3 has no picture"):
        view_of(Frame(3, 0.0, 0.0, reading=[1.0]), (0, 0, 1, 1), picture=True)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """One picture: red on the left, blue on the right."""
    folder = tmp_path / "halves"
    folder.mkdir()
    image = np.full((64, 128, 3), COLOURS["red"], np.uint8)
    image[:, 64:] = COLOURS["blue"]
    Pillow.fromarray(image).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("place", [Place.EDGE, Place.CLOUD])
@pytest.mark.parametrize(("region", "label"), [("[0, 0, 0.5, 1]", "red"), ("[0.5, 0, 1, 1]", "blue")])
def test_edge_and_cloud_see_the_region_and_nothing_else_is_sent(
    build: Any, halves: Path, colours: Path, place: Place, region: str, label: str
) -> None:
    cloud = Cloud(colours)
    try:
        pipeline, seen = build(
            f"source: {{images: {halves}}}\nraw: allowed\nsteps: [{{classify: MODEL, cloud: big, region: {region}}}]\n",
            remote=cloud, cloud_cards={"big": cloud.model.card}, policy=Fixed(place),
        )  # fmt: skip
        pipeline.run()
    finally:
        cloud.close()
    assert seen.labels == [label] and seen.frames[0].placed.place is place
    if place is Place.CLOUD:
        (request,) = cloud.asked
        sent = pictures.decode(request.payload.body).reshape(-1, 3).astype(int)
        assert np.abs(sent - COLOURS[label]).max() < 30
        assert request.payload.frame_size == (64, 64)


def test_a_detection_before_it_is_what_a_classifier_sees(build: Any, halves: Path, seer: Path, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(
        "from marram.schema.result import Detection\n"
        "from dataclasses import replace\n"
        "def right(frame, result):\n"
        "    box = Detection('face', 0.9, (70.0, 5.0, 120.0, 60.0))\n"
        "    frame.result = replace(result, detections=(box,))\n"
        "    return frame\n"
    )
    steps = f"[{{detect: {seer}}}, {{function: right.py:right}}, {{classify: MODEL, region: detections}}]"
    pipeline, seen = build(f"source: {{images: {halves}}}\nsteps: {steps}\n")
    pipeline.run()
    assert seen.labels == ["blue"]
