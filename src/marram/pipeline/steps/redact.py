"""`redact: faces`: faces are made unrecognisable in the picture before any later step, sink or the cloud sees it.

It fails closed: where the detector fails, the frame ends here, counted; only a frame that was searched is `redacted`.

Face detectors are made for faces that fill much of the picture. So the whole frame is searched, and then overlapping
squares of 0.6 of its shorter side: with BlazeFace (128 px) this finds faces from 7 % of the shorter side on, instead of
14 % (measured with one face pasted into a 1280×720 photo, 12 of 12 found), for 7 to 9 inferences instead of one. In
video, a place stays covered for half a second after the last face was found there: detectors miss single frames.
A face that no detector finds is not covered; who must be certain keeps `raw: never`.

Where `raw: redacted` is to let something leave and the app has no such step, this one runs before all others without
being written (`schema.app.running_steps`): then every step sees the picture with faces covered.

`redact: detections` covers the boxes that a `detect` step before it found, in the same way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image as Pillow

from marram.pipeline.conditions import field_of
from marram.pipeline.contract import Frame, Image, Step, StepContext
from marram.runtime.model import Model, Options
from marram.schema.app import App, CameraSource, DetectStep, FunctionStep, RedactStep, VideoSource
from marram.schema.errors import Invalid, Permanent
from marram.schema.model import ModelCard, Task

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the frame

# Rather cover a cat's face too than miss a person's: lower than what one would count faces with.
_MIN_CONFIDENCE = 0.4
_TILE_SHARE = 0.6
_TILE_OVERLAP = 0.25
# A face's box ends at brows and chin; hair, ears and neck recognise a person as well.
_MARGIN = 0.25
# What is left of a face: at most 5×5 averages, of 8 pixels at least, joined smoothly. No outline of an eye survives.
_BLOCKS = 5
_BLOCK_PIXELS = 8
_HOLD_S = 0.5


def make_step(spec: RedactStep, context: StepContext) -> Step:
    """Load the detector. Raises Missing (no such model), Invalid (it detects nothing, or there are no pictures)."""
    check_step(spec, context.app)
    hold_s = _HOLD_S if isinstance(context.app.source, (CameraSource, VideoSource)) else 0.0
    if spec.redact == "detections":
        return Redact(None, hold_s)
    bundle = context.resolve(spec.model)
    check_detector(spec, bundle.card)
    return Redact(Model.load(bundle), hold_s)


def check_step(spec: RedactStep, app: App) -> None:
    """Raises Invalid where there are no pictures, or no detections, to redact."""
    where = field_of(spec, app)
    if app.gives_readings:
        raise Invalid("only pictures can be redacted, and the source gives readings", where=where)
    if spec.redact == "detections":
        before = app.steps[: next(i for i, step in enumerate(app.steps) if step is spec)]
        if not any(isinstance(step, (DetectStep, FunctionStep)) for step in before):
            raise Invalid(
                "covers what a `detect` step before it found, and there is none",
                where=where,
                hint="Put `- detect: MODEL` before it, or write `redact: faces`.",
            )


def check_detector(spec: RedactStep, card: ModelCard) -> None:
    """Raises Invalid where the model finds nothing."""
    if card.task is not Task.DETECTION:
        raise Invalid(f"{spec.model} does {card.task.value}, and faces need a detector")


class Redact:
    """The step. `detector` None: the boxes are those of the frame's own result."""

    def __init__(self, detector: Model | None, hold_s: float) -> None:
        self._detector = detector
        self._hold_s = hold_s
        self._recent: deque[tuple[float, list[Box]]] = deque()

    def __call__(self, frame: Frame) -> Iterable[Frame]:
        """The frame with what must not be seen covered. Raises where that cannot be done: the runner drops it."""
        if frame.image is None:
            raise Invalid(f"frame {frame.index} has no picture to redact")
        boxes = self._own_boxes(frame) if self._detector is None else find(self._detector, frame.image)
        # By the monotonic clock of the capture: the device's clock may be set back.
        now_s = frame.captured_s
        while self._recent and not 0 <= now_s - self._recent[0][0] <= self._hold_s:
            self._recent.popleft()
        held = [box for _, earlier in self._recent for box in earlier]
        if boxes and self._hold_s:
            self._recent.append((now_s, boxes))
        return (replace(frame, image=cover(frame.image, [*boxes, *held]), redacted=True),)

    def close(self) -> None:
        """Free the detector."""
        if self._detector is not None:
            self._detector.close()

    def _own_boxes(self, frame: Frame) -> list[Box]:
        if frame.result is None or frame.result.task is not Task.DETECTION:
            raise Permanent(f"frame {frame.index} was not searched by a `detect` step: it cannot be redacted")
        return [found.box for found in frame.result.detections]


def find(detector: Model, image: Image) -> list[Box]:
    """Boxes of what `detector` finds in the whole of `image` (uint8 [H, W, 3]) and in each of its tiles."""
    boxes: list[Box] = []
    options = Options(min_confidence=min(_MIN_CONFIDENCE, detector.card.output.min_confidence))
    for x, y, side_x, side_y in tiles(image.shape[0], image.shape[1]):
        found = detector.predict(image[y : y + side_y, x : x + side_x], options=options)
        boxes.extend((d.box[0] + x, d.box[1] + y, d.box[2] + x, d.box[3] + y) for d in found.detections)
    return boxes


def tiles(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Where to look: the whole frame, then overlapping squares that cover it; each x, y, width, height."""
    yield 0, 0, width, height
    side = max(1, round(min(height, width) * _TILE_SHARE))
    for y in _starts(height, side):
        for x in _starts(width, side):
            yield x, y, side, side


def _starts(length: int, side: int) -> list[int]:
    """Where squares of `side` begin along `length`, so that neighbours overlap by a quarter at least."""
    steps = math.ceil((length - side) / (side * (1 - _TILE_OVERLAP)))
    return [0] if steps <= 0 else [round(i * (length - side) / steps) for i in range(steps + 1)]


def cover(image: Image, boxes: list[Box]) -> Image:
    """`image` with every box, a quarter larger on each side, made of 5×5 smooth blocks; a copy where there are boxes.

    Raises Permanent for a box that is no box (NaN): what it was about could not be covered.
    """
    if not boxes:
        return image
    covered = np.array(image, order="C")
    height, width = image.shape[:2]
    for box in boxes:
        if not all(math.isfinite(edge) for edge in box):
            raise Permanent("the detector gave a box that is none (NaN)")
        grow_x, grow_y = abs(box[2] - box[0]) * _MARGIN, abs(box[3] - box[1]) * _MARGIN
        x0 = max(0, math.floor(min(box[0], box[2]) - grow_x))
        y0 = max(0, math.floor(min(box[1], box[3]) - grow_y))
        x1 = min(width, math.ceil(max(box[0], box[2]) + grow_x))
        y1 = min(height, math.ceil(max(box[1], box[3]) + grow_y))
        if x0 >= x1 or y0 >= y1:
            continue
        # From the original, not from what another box already covered: overlapping boxes must not sharpen anything.
        part = Pillow.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
        blocks = part.resize((_blocks(x1 - x0), _blocks(y1 - y0)), Pillow.Resampling.BOX)
        covered[y0:y1, x0:x1] = np.asarray(blocks.resize((x1 - x0, y1 - y0), Pillow.Resampling.BILINEAR))
    return covered


def _blocks(length: int) -> int:
    return min(_BLOCKS, math.ceil(length / _BLOCK_PIXELS))
