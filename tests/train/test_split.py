"""What a model is judged by, it was never trained on; and a picture kept many times is one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from marram.train.data import gather
from marram.train.recipe import read_recipe

RECIPE = """
recipe: shapes
labels: [bars, dots]
data: {images: pictures}
input: {size: [8, 8], layout: NCHW, colour: gray}
hold_out: 30 %
licence: CC0-1.0
source: drawn by the test
"""


def test_what_judges_was_never_trained_on_and_all_are_used_once(tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    for label in ("bars", "dots"):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(40):
            picture = Image.fromarray(dice.integers(0, 255, (8, 8), dtype=np.uint8))
            picture.save(folder / f"{number}.png")
            picture.save(folder / f"{number}-again.png")
    (tmp_path / "shapes.yaml").write_text(RECIPE)
    examples = gather(read_recipe(tmp_path / "shapes.yaml"), tmp_path, None)
    trained, held = ([example.digest() for example in part] for part in (examples.train, examples.held_out))
    assert not set(trained) & set(held)
    assert len(trained) + len(held) == len({*trained, *held}) == 80
    assert 8 <= len(held) <= 40
