"""The reference engine's operators against ONNX Runtime's, one node at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marram.runtime.operators import OPERATORS

onnx = pytest.importorskip("onnx")
rng = np.random.default_rng(4)


def real(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


X, V = real(2, 4, 9, 8), real(4)
BYTES = rng.integers(0, 256, (2, 4, 3), np.uint8)
CASES: list[tuple[str, dict[str, Any], list[np.ndarray]]] = [
    ("Conv", {}, [X, real(6, 4, 3, 3)]),
    ("Conv", {"strides": [2, 1], "pads": [1, 0, 2, 1]}, [X, real(6, 4, 3, 2), real(6)]),
    ("Conv", {"group": 2, "dilations": [2, 2]}, [X, real(6, 2, 3, 3), real(6)]),
    ("Conv", {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, [X, real(4, 1, 3, 3)]),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [X, real(3, 4, 4, 4)]),
    ("Conv", {"auto_pad": "VALID"}, [X, real(3, 4, 1, 1)]),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 0]}, [X]),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [X]),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1}, [X]),
    ("GlobalAveragePool", {}, [X]),
    ("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, [real(3, 5), real(4, 5), real(4)]),
    ("Gemm", {"transA": 1}, [real(5, 3), real(5, 4)]),
    ("MatMul", {}, [real(2, 3, 4), real(2, 4, 5)]),
    ("Add", {}, [X, V.reshape(4, 1, 1)]),
    ("Sub", {}, [X, V.reshape(4, 1, 1)]),
    ("Mul", {}, [X, np.float32(3)]),
    ("Div", {}, [X, np.float32(3)]),
    ("Relu", {}, [X]),
    ("Sigmoid", {}, [X]),
    ("Tanh", {}, [X]),
    ("Clip", {}, [X, np.float32(-0.5), np.float32(0.5)]),
    ("Softmax", {}, [X]),
    ("Softmax", {"axis": 1}, [X * 50]),
    ("Flatten", {}, [X]),
    ("Flatten", {"axis": 0}, [X]),
    ("Reshape", {}, [X, np.array([0, -1, 3], np.int64)]),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [X]),
    ("Squeeze", {}, [X[:1], np.array([0], np.int64)]),
    ("Unsqueeze", {}, [X, np.array([0, 3], np.int64)]),
    ("Concat", {"axis": 1}, [X, X]),
    ("Pad", {}, [X, np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64), np.float32(7)]),
    ("ReduceMean", {"axes": [2, 3]}, [X]),
    ("ReduceMean", {"axes": [1], "keepdims": 0}, [X]),
    ("Identity", {}, [X]),
    ("BatchNormalization", {"epsilon": 1e-3}, [X, V, V, V, np.abs(V) + 1]),
    ("QuantizeLinear", {}, [X * 3, np.float32(0.05), np.uint8(100)]),
    ("QuantizeLinear", {"axis": 1}, [X * 3, np.abs(V) + 0.01, np.array([0, -3, 5, 1], np.int8)]),
    ("QuantizeLinear", {}, [np.float32([0.5, 1.5, 2.5, -0.5, 1e9]), np.float32(1)]),
    ("DequantizeLinear", {}, [BYTES, np.float32(0.1), np.uint8(128)]),
    ("DequantizeLinear", {"axis": 1}, [BYTES, np.abs(V) + 0.01, np.array([1, 2, 3, 4], np.uint8)]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'-'.join(case[1])}")
def test_matches_onnx_runtime(case: tuple[str, dict[str, Any], list[np.ndarray]]) -> None:
    import onnxruntime

    name, attributes, inputs = case
    names = [f"i{k}" for k in range(len(inputs))]
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(name, names, ["o"], **attributes)],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(i).dtype), np.shape(i))
            for n, i in zip(names, inputs, strict=True)
        ],
        [helper.make_empty_tensor_value_info("o")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {n: np.asarray(i) for n, i in zip(names, inputs, strict=True)})
    before = [np.array(i) for i in inputs]
    got = OPERATORS[name](attributes, *inputs)
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    for kept, given in zip(before, inputs, strict=True):
        np.testing.assert_array_equal(kept, given)


def test_constants_of_every_kind() -> None:
    constant = OPERATORS["Constant"]
    assert constant({"value_int": 3}).dtype == np.int64
    assert constant({"value_floats": [1.0, 2.0]}).tolist() == [1, 2]
    assert constant({"value": np.int8([4])}).dtype == np.int8


def test_every_operator_is_tested() -> None:
    assert {case[0] for case in CASES} | {"Constant"} == set(OPERATORS)
