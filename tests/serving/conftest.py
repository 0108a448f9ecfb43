"""Models that really run, made in a moment: which colour a picture mostly has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from marram.runtime.bundle import dump_card
from marram.runtime.image import encode_jpeg
from marram.schema.model import Input, ModelCard, Output, Task, Variant
from marram.schema.payload import Payload
from marram.serving.contract import Question

COLOURS = ["red", "green", "blue"]

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_model("colours", 2)`: a bundle whose logits are the mean of each channel; `size`: side of its pictures;
    `fixed`: a batch of 1 is baked into its graph; `coupled`: items
    in one batch change each other's answers; `nan`: it answers NaN; `weights`: so many bytes more in its file.
    """

    def make(
        name: str = "colours",
        version: int = 1,
        *,
        size: int = 4,
        fixed: bool = False,
        coupled: bool = False,
        nan: bool = False,
        weights: int = 0,
    ) -> Path:
        folder = tmp_path_factory.mktemp(f"{name}-{version}")
        node, value, numpy = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
        shape = node("Reshape", ["m", "shape"], ["y"]) if fixed else node("Flatten", ["m"], ["f"], axis=1)
        nodes = [node("GlobalAveragePool", ["x"], ["m"]), shape]
        if not fixed:
            nodes.append(node("Mul", ["f", "one"], ["y"]))
        if coupled:
            nodes[-1] = node("Mul", ["f", "one"], ["g"])
            nodes += [node("ReduceMean", ["g"], ["all"], axes=[0]), node("Add", ["g", "all"], ["y"])]
        constants = [
            numpy(np.array([1, 3], np.int64), "shape"),
            numpy(np.float32(np.nan if nan else 1).reshape(1), "one"),
        ]
        if weights:
            nodes += [node("ReduceMean", ["heavy"], ["h"], keepdims=0), node("Add", ["y", "h"], ["z"])]
            constants.append(numpy(np.zeros(weights // 4, np.float32), "heavy"))
        output = "z" if weights else "y"
        inputs = [value("x", onnx.TensorProto.FLOAT, [1, 3, size, size])]
        graph = onnx.helper.make_graph(nodes, name, inputs, [value(output, onnx.TensorProto.FLOAT, [1, 3])], constants)
        opset = onnx.helper.make_opsetid("", 13)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "net.onnx")
        card = ModelCard(
            model=name,
            version=version,
            task=Task.CLASSIFICATION,
            input=Input(size=[size, size], layout="NCHW", std=[255.0]),
            output=Output(form="logits"),
            variants=[Variant(name="fp32", engine="onnx", file="net.onnx")],
            labels=COLOURS,
            licence="Apache-2.0",
            source="made for this test",
        )
        (folder / "model.yaml").write_text(dump_card(card))
        return folder

    return make


def picture(colour: str, size: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = np.zeros((size, size, 3), np.uint8)
    image[:, :, COLOURS.index(colour)] = 250
    return image


@pytest.fixture
def ask_of() -> Callable[..., Question]:
    """`ask_of("green")`: the question which colour that picture has; any field of `Question` besides."""

    def make(colour: str = "red", model: str = "colours", size: int = 4, **fields: Any) -> Question:
        payload = Payload("image/jpeg", encode_jpeg(picture(colour, size), 95), frame_size=(size, size))
        return Question(model, **{"payload": payload, **fields})

    return make
