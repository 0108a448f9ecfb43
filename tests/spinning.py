"""A model that never ends where it is asked so: the engine is at it until its process ends, as by its own fault."""

from __future__ import annotations

from pathlib import Path

import onnx
from tests.cards import write_card

from marram.schema.model import Input

_FOR_EVER = 500.0  # beyond what warming up feeds it


def spinning(folder: Path) -> Path:
    """The bundle of `spins`: a loop of ten million million turns where the first value of its input is above 500."""
    node, value, real = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    constant = onnx.helper.make_tensor
    body = onnx.helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Sin", ["was"], ["is"])],
        "turn",
        [
            value("turn", onnx.TensorProto.INT64, []),
            value("go", onnx.TensorProto.BOOL, []),
            value("was", real, ["n", 3]),
        ],
        [value("on", onnx.TensorProto.BOOL, []), value("is", real, ["n", 3])],
    )
    graph = onnx.helper.make_graph(
        [
            node("GlobalAveragePool", ["x"], ["m"]),
            node("Flatten", ["m"], ["f"], axis=1),
            node("ReduceMax", ["x"], ["top"], keepdims=0),
            node("Greater", ["top", "bar"], ["high"]),
            node("Cast", ["high"], ["number"], to=onnx.TensorProto.INT64),
            node("Mul", ["number", "many"], ["turns"]),
            node("Loop", ["turns", "yes", "f"], ["y"], body=body),
        ],
        "spins",
        [value("x", real, ["n", 3, 4, 4])],
        [value("y", real, ["n", 3])],
        [
            constant("bar", real, [], [_FOR_EVER]),
            constant("many", onnx.TensorProto.INT64, [], [10**13]),
            constant("yes", onnx.TensorProto.BOOL, [], [True]),
        ],
    )
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "net.onnx")
    return write_card(folder, "spins", Input(size=[4, 4], layout="NCHW"))
