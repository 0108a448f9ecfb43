"""Where a frame's pixels land in a model's input, and where its boxes lie in the frame: the geometry of a fit.

Pure numbers, so that device and replica agree on it from the frame's size alone. Coordinates are continuous, pixel
centres at half integers, as OpenCV's and Pillow's resize have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from marram.schema.errors import Invalid
from marram.schema.model import Input


@dataclass(frozen=True, slots=True)
class Fit:
    """The part `source` (x, y, width, height) of the frame fills `target` (x, y, width, height) of the input."""

    frame: tuple[int, int]  # height, width
    size: tuple[int, int]  # height, width of the model's input
    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]

    def to_frame(self, x: float, y: float) -> tuple[float, float]:
        """A point of the input, in its pixels, as a point of the frame in pixels, kept inside the frame."""
        sx, sy, sw, sh = self.source
        tx, ty, tw, th = self.target
        height, width = self.frame
        return (
            min(max(sx + (x - tx) * sw / tw, 0.0), float(width)),
            min(max(sy + (y - ty) * sh / th, 0.0), float(height)),
        )

    def box_to_frame(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """A box of the input as a box of the frame, in pixels, kept inside the frame."""
        return (*self.to_frame(x0, y0), *self.to_frame(x1, y1))


def plan(entry: Input, height: int, width: int) -> Fit:
    """How a frame of `height` × `width` goes into `entry.size`. Raises Invalid on an empty frame.

    stretch: all of it, aspect lost. crop: the largest centred part of the input's aspect, × `crop_share`.
    letterbox: all of it, aspect kept, centred, the rest black.
    """
    if height < 1 or width < 1:
        raise Invalid(f"an image of {height}×{width} pixels has nothing in it")
    rows, columns = entry.size[0], entry.size[1]
    whole_frame, whole_input = (0, 0, width, height), (0, 0, columns, rows)
    if entry.fit == "crop":
        scale = entry.crop_share * min(height / rows, width / columns)
        w, h = max(1, min(width, round(columns * scale))), max(1, min(height, round(rows * scale)))
        source = ((width - w) // 2, (height - h) // 2, w, h)
        return Fit((height, width), (rows, columns), source, whole_input)
    if entry.fit == "letterbox":
        scale = min(rows / height, columns / width)
        w, h = max(1, min(columns, round(width * scale))), max(1, min(rows, round(height * scale)))
        target = ((columns - w) // 2, (rows - h) // 2, w, h)
        return Fit((height, width), (rows, columns), whole_frame, target)
    return Fit((height, width), (rows, columns), whole_frame, whole_input)
