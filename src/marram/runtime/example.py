"""An input made up from a card: what a model is asked with where there is no picture and no reading yet.

The same for the same card and seed, so that two measurements ask the same. Noise, not zeros: some engines and some
models take short cuts where nothing is there.
"""

from __future__ import annotations

import numpy as np

from marram.runtime.contract import Tensor
from marram.runtime.image import Image
from marram.schema.model import ModelCard


def example(card: ModelCard, seed: int = 0) -> Image | Tensor:
    """A picture of the model's size (uint8 [H, W, 3], RGB), or readings around its mean (float32, the card's shape)."""
    noise = np.random.default_rng(seed)
    entry = card.input
    if entry.kind == "image":
        height, width = entry.size
        return noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = np.array(entry.mean, np.float32), np.array(entry.std, np.float32)
    return (mean + std * noise.standard_normal(entry.size)).astype(np.float32)
