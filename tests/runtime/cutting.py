"""A small real network with a way around (so not every tensor is a cut), as a bundle, float and quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from marram.runtime.build.cut import Cutter, Inputs, find, points, variant_of
from marram.runtime.build.quantize import quantize_static
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.schema.model import Cut, Engine, Input, ModelCard, Output, Task, Variant

SIDE = 16


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """uint8 [height, width, 3]: a gradient of some colour with some noise."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, height)[:, None, None] * random.uniform(0, 255, 3)
    return np.clip(ramp + random.normal(0, 30, (height, width, 3)), 0, 255).astype(np.uint8)


def network() -> bytes:
    """image [1, 16, 16, 3] -> stem -> mixed (conv + way around) -> pooled -> features -> logits [1, 3]."""
    from onnx import helper, numpy_helper

    random = np.random.default_rng(1)

    def constant(name: str, *shape: int) -> object:
        return numpy_helper.from_array(random.normal(0, 0.5, shape).astype(np.float32), name)

    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w0", "b0"], ["stem.conv"], strides=[2, 2], **same),
        helper.make_node("Relu", ["stem.conv"], ["stem"]),
        helper.make_node("Conv", ["stem", "w1", "b1"], ["inner"], **same),
        helper.make_node("Relu", ["inner"], ["inner.relu"]),
        helper.make_node("Add", ["inner.relu", "stem"], ["mixed"]),
        helper.make_node("GlobalAveragePool", ["mixed"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"], transB=1),
    ]
    constants = [
        constant("w0", 8, 3, 3, 3), constant("b0", 8), constant("w1", 8, 8, 3, 3), constant("b1", 8),
        constant("w2", 3, 8), constant("b2", 3),
    ]  # fmt: skip
    return _file("small", SIDE, nodes, constants)


def funnel(side: int) -> bytes:
    """image [1, side, side, 3] -> pooled [1, 3, 8, 8] -> much work -> logits [1, 3]: whoever parts it there saves most
    of what is sent, and leaves nearly all of the work.
    """
    from onnx import helper, numpy_helper

    random = np.random.default_rng(1)
    constants: list[object] = []

    def constant(name: str, *shape: int) -> str:
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        constants.append(numpy_helper.from_array(random.normal(0, spread, shape).astype(np.float32), name))
        return name

    cell = side // 8
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=[cell, cell], strides=[cell, cell]),
    ]
    before, channels = "pooled", 3
    for layer in range(8):
        weights = [constant(f"w{layer}", 64, channels, 3, 3), constant(f"b{layer}", 64)]
        same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [before, *weights], [f"conv{layer}"], **same))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        before, channels = f"relu{layer}", 64
    nodes += [
        helper.make_node("GlobalAveragePool", [before], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("Gemm", ["features", constant("w", 3, 64), constant("b", 3)], ["logits"], transB=1),
    ]
    return _file("funnel", side, nodes, constants)


def _file(name: str, side: int, nodes: list[Any], constants: list[Any]) -> bytes:
    """The graph from image [1, side, side, 3] to logits [1, 3]."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, side, side, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


def bundle(
    folder: Path,
    *,
    model: str = "small",
    int8: bool = False,
    net: bytes | None = None,
    side: int = SIDE,
    **more: object,
) -> Bundle:
    """The network (or `net`, of pictures of `side`) in a bundle, with the variant `fp32`, before it `int8` if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.onnx").write_bytes(net or network())
    variants = [Variant(name="fp32", engine=Engine.ONNX, file="net.onnx")]
    if int8:
        views = [((picture(seed, side, side).astype(np.float32) - 127) / 128)[None] for seed in range(24)]
        quantize_static(folder / "net.onnx", folder / "net-int8.onnx", views)
        variants.insert(0, Variant(name="int8", engine=Engine.ONNX, file="net-int8.onnx", precision="int8"))
    card = ModelCard(
        model=model,
        task=Task.CLASSIFICATION,
        input=Input(size=[side, side], mean=[127.0], std=[128.0]),
        output=Output(form="logits"),
        variants=variants,
        labels=["ant", "bee", "cat"],
        licence="MIT",
        source="made for this test",
        **more,
    )  # type: ignore[arg-type]
    (folder / CARD).write_text(dump_card(card))
    return Bundle.open(folder)


def with_cut(
    made: Bundle,
    at: str,
    *,
    variant: str | None = None,
    name: str | None = None,
    images: list[np.ndarray] | None = None,
) -> tuple[Bundle, Cut]:
    """`made` with a cut at the tensor `at`, in its folder and on its card, judged by `images`."""
    chosen = variant_of(made, variant)
    cutter = Cutter(made, chosen, Inputs.of(images or [picture(seed) for seed in range(40)]))
    try:
        cut = cutter.make(find(points(made.file(chosen)), at), made.folder, name=name)
    finally:
        cutter.close()
    card = made.card.model_copy(update={"cuts": [*made.card.cuts, cut]})
    (made.folder / CARD).write_text(dump_card(card))
    return Bundle.open(made.folder), cut
