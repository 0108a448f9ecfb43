"""What of a frame a model is shown: all of it, or a region; and back, so that boxes lie in the whole frame again.

The same at the edge and in the cloud: what is not shown is not sent either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from marram.pipeline.contract import Frame, Image
from marram.pipeline.inputs import pixels_key, readings, readings_key
from marram.runtime.contract import Tensor
from marram.schema.errors import Invalid
from marram.schema.placing import Region
from marram.schema.result import Detection, Result

# Around a detection's box, as a share of its width and height on each side: detectors cut close, classifiers were
# trained on pictures with something around what they show.
MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class View:
    """`data`: what the model is given, uint8 [H, W, 3] RGB or readings; `x`, `y`: where it begins in the frame.

    `shape`: see `pipeline/inputs.py`: delays are learnt for each apart.
    """

    data: Image | Tensor
    shape: str
    x: int = 0
    y: int = 0

    def in_frame(self, result: Result) -> Result:
        """`result`, of what is shown here, with boxes and points in pixels of the frame."""
        if not (self.x or self.y) or not result.detections:
            return result
        moved = tuple(_moved(found, self.x, self.y) for found in result.detections)
        return replace(result, detections=moved)


def view_of(frame: Frame, region: Region | None, *, picture: bool) -> View:
    """What a model that takes pictures (or readings) is shown. Raises Invalid where the frame has none."""
    if not picture:
        return View(readings(frame), readings_key(frame))
    if frame.image is None:
        raise Invalid(f"frame {frame.index} has no picture")
    height, width = frame.image.shape[:2]
    box = _surest(frame) if region == "detections" else _scaled(region, height, width) if region else None
    if box is None:
        return View(frame.image, pixels_key(frame.image))
    x0, y0, x1, y1 = _pixels(box, height, width)
    part = frame.image[y0:y1, x0:x1]
    return View(part, pixels_key(part), x0, y0)


_Box = tuple[float, float, float, float]


def _surest(frame: Frame) -> _Box | None:
    """The surest detection's box with a margin; None where nothing was found."""
    found = frame.result.detections if frame.result is not None else ()
    boxes = [each for each in found if np.isfinite(each.box).all()]
    if not boxes:
        return None
    x0, y0, x1, y1 = max(boxes, key=lambda each: each.confidence).box
    dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    return x0 - dx, y0 - dy, x1 + dx, y1 + dy


def _scaled(region: object, height: int, width: int) -> _Box:
    assert isinstance(region, tuple)
    x0, y0, x1, y1 = region
    return x0 * width, y0 * height, x1 * width, y1 * height


def _pixels(box: _Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels inside the frame, one at least."""
    x0, y0 = min(max(int(box[0]), 0), width - 1), min(max(int(box[1]), 0), height - 1)
    x1, y1 = max(min(round(box[2]), width), x0 + 1), max(min(round(box[3]), height), y0 + 1)
    return x0, y0, x1, y1


def _moved(found: Detection, x: int, y: int) -> Detection:
    x0, y0, x1, y1 = found.box
    points = tuple((px + x, py + y) for px, py in found.points)
    return replace(found, box=(x0 + x, y0 + y, x1 + x, y1 + y), points=points)
