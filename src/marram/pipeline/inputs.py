"""A frame as a model's input: its numbers, its shape (delays are learnt for each), and which models can share it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from marram.pipeline.contract import Frame, Image
from marram.runtime.contract import Tensor
from marram.schema.errors import Invalid
from marram.schema.model import ModelCard


def readings(frame: Frame) -> Tensor:
    """The frame's numbers: its window, or its reading's. Raises Invalid where it has none."""
    if frame.tensor is not None:
        return frame.tensor
    try:
        return np.asarray(_numbers(frame.reading), np.float32)
    except (TypeError, ValueError) as error:
        raise Invalid(f"the reading of frame {frame.index} is not all numbers") from error


def pixels_key(image: Image | None) -> str:
    """How large the picture is, as far as it matters: its pixels to the nearest power of four; `4^10px` is a megapixel.

    A model's input is the same for every picture, but fitting a large one to it takes longer. Any finer, and a folder
    of mixed photos would have every size of its own measured, at the cost of frames that go the slower way for it.
    """
    height, width = (0, 0) if image is None else image.shape[:2]
    return f"4^{round(math.log2(max(1, height * width)) / 2)}px"


def readings_key(frame: Frame) -> str:
    """The shape of the frame's numbers: `24x3` for a window of 24 rows and 3 columns."""
    values = frame.tensor if frame.tensor is not None else _numbers(frame.reading)
    if isinstance(values, np.ndarray):
        return "x".join(str(length) for length in values.shape)
    return str(len(values)) if isinstance(values, (list, tuple)) else "1"


def check_same_input(edge: ModelCard, cloud: ModelCard) -> None:
    """Raises Invalid where one and the same input cannot be given to both models."""
    kinds = (edge.input.kind, cloud.input.kind)
    if kinds == ("image", "image"):
        return
    if kinds != ("tensor", "tensor") or math.prod(edge.input.size) != math.prod(cloud.input.size):
        raise Invalid(
            f"{edge.model} takes {_takes(edge)}, {cloud.model} takes {_takes(cloud)}",
            where=f"cloud: {cloud.model}",
            hint="Both are asked about the same input: name a cloud model that takes what the edge's takes.",
        )


def _takes(card: ModelCard) -> str:
    return "pictures" if card.input.kind == "image" else f"{math.prod(card.input.size):,} numbers"


def _numbers(reading: Any) -> Any:
    return list(reading.values()) if isinstance(reading, dict) else reading
