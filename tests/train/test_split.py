"""What a model is judged by, it was never trained on; and a picture kept many times is one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.errors import Permanent
from marram.train.compare import accuracy
from marram.train.data import Example, gather
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


CARD = """
model: shapes
version: 1
task: classification
input: {size: [8, 8], layout: NCHW}
output: {form: logits}
variants: [{name: only, engine: onnx, file: net.onnx}]
labels: [red, green, blue]
licence: CC0-1.0
source: made by the test
"""


def test_a_picture_that_the_model_cannot_answer_counts_as_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("picture", real, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", real, [1, 3])],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(network, str(tmp_path / "net.onnx"))
    (tmp_path / "model.yaml").write_text(CARD)
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :, 0] = 200
    predict = Model.predict

    def nan_where_dark(model: Model, image: np.ndarray, *rest: object) -> object:
        if not image.any():
            raise Permanent("the model answered NaN")
        return predict(model, image, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "predict", nan_where_dark)
    examples = [Example(red, 0, "here"), Example(np.zeros_like(red), 0, "here"), Example(red, 2, "there")]
    assert accuracy(Bundle.open(tmp_path), examples) == {"here": 0.5, "there": 0.0}
