"""Models of one layer, `y = relu(W x + b)`, as each engine reads them, float and quantised; bundles to put them in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from marram.runtime import probe
from marram.runtime.engines import PLUGINS
from marram.schema.model import Engine

SUFFIX = {Engine.LITERT: ".tflite", Engine.ONNX: ".onnx", Engine.TORCH: ".pt2", Engine.REFERENCE: ".onnx"}


def layer(x: np.ndarray) -> np.ndarray:
    """What every model here computes. x: float32 (N, 4) -> (N, 3)."""
    return np.maximum(x @ probe.WEIGHTS.T + probe.BIAS, 0)


@dataclass(frozen=True)
class Quantised:
    """A quantised model file, and how coarse it is."""

    file: Path
    input_scale: float
    input_zero: int
    output_scale: float


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Engine], Path]:
    """The float model's file for an engine."""
    folder = tmp_path_factory.mktemp("float")
    made: dict[Engine, Path] = {}

    def make(engine: Engine) -> Path:
        if engine not in made:
            file = folder / f"{engine.value}{SUFFIX[engine]}"
            content = {
                Engine.LITERT: probe.tflite,
                Engine.ONNX: probe.onnx,
                Engine.REFERENCE: probe.onnx,
                Engine.TORCH: lambda: PLUGINS[Engine.TORCH]._probe(),  # type: ignore[attr-defined]
            }[engine]
            file.write_bytes(content())
            made[engine] = file
        return made[engine]

    return make


@pytest.fixture(scope="session")
def quantised_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Engine, str], Quantised]:
    """The quantised model's file for an engine, with `int8` or `uint8` tensors in and out."""
    folder = tmp_path_factory.mktemp("quantised")

    def make(engine: Engine, dtype: str) -> Quantised:
        zero = 0 if dtype == "int8" else 128
        file = folder / f"{engine.value}-{dtype}{SUFFIX[engine]}"
        quantised = Quantised(file, 1 / 32, zero, 1 / 8)
        if not file.exists():
            writer = _quantised_tflite if engine is Engine.LITERT else _quantised_onnx
            file.write_bytes(writer(dtype, quantised))
        return quantised

    return make


@pytest.fixture
def write_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle folder: a card (defaults can be overridden, `input=` and `output=` are merged) and its files."""

    def write(name: str = "tiny", files: dict[str, bytes] | None = None, **card: Any) -> Path:
        folder = tmp_path / "bundles" / name
        folder.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {
            "model": name,
            "task": "classification",
            "input": {"kind": "tensor", "size": [4]},
            "output": {"form": "logits"},
            "variants": [{"name": "fp32", "engine": "litert", "file": "model.tflite"}],
            "labels": ["ant", "bee", "cat"],
            "licence": "Apache-2.0",
            "source": "a test",
        }
        for key, value in card.items():
            if value is None:
                document.pop(key, None)
            else:
                document[key] = {**document[key], **value} if isinstance(value, dict) else value
        for file, content in (files if files is not None else {"model.tflite": probe.tflite()}).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        (folder / "model.yaml").write_text(yaml.safe_dump(document))
        return folder

    return write


def _quantised_onnx(dtype: str, how: Quantised) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    from marram.runtime.engines.onnx import QUANTISATION_KEY

    kind = np.dtype(dtype)
    weight_scale = np.float32(2 / 127)
    constants = [
        numpy_helper.from_array(np.float32(how.input_scale), "sx"),
        numpy_helper.from_array(np.array(how.input_zero, kind), "zx"),
        numpy_helper.from_array(np.rint(probe.WEIGHTS / weight_scale).astype(np.int8), "wq"),
        numpy_helper.from_array(weight_scale, "sw"),
        numpy_helper.from_array(np.int8(0), "zw"),
        numpy_helper.from_array(probe.BIAS, "b"),
        numpy_helper.from_array(np.float32(how.output_scale), "sy"),
        numpy_helper.from_array(np.array(how.input_zero, kind), "zy"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["xr"]),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wr"]),
        helper.make_node("Gemm", ["xr", "wr", "b"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "sy", "zy"], ["y"]),
    ]
    code = TensorProto.INT8 if dtype == "int8" else TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", code, [1, 4])],
        [helper.make_tensor_value_info("y", code, [1, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    scales = {"x": [how.input_scale, how.input_zero], "y": [how.output_scale, how.input_zero]}
    helper.set_model_props(model, {QUANTISATION_KEY: json.dumps(scales)})
    return bytes(model.SerializeToString())


def _quantised_tflite(dtype: str, how: Quantised) -> bytes:
    """int8: one fully connected operator. uint8: the same between two QUANTIZE operators, as converters write it."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    weight_scale = 2 / 127
    weights = np.rint(probe.WEIGHTS / weight_scale).astype(np.int8)
    bias = np.rint(probe.BIAS / (weight_scale * how.input_scale)).astype(np.int32)
    model = schema.ModelT()
    model.version = 3
    model.buffers = []

    def buffer(array: np.ndarray | None) -> int:
        entry = schema.BufferT()
        entry.data = None if array is None else np.frombuffer(array.tobytes(), np.uint8)
        model.buffers.append(entry)
        return len(model.buffers) - 1

    buffer(None)
    types = {"int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8, "int32": schema.TensorType.INT32}
    graph = schema.SubGraphT()
    graph.tensors = []

    def tensor(name: str, shape: list[int], kind: str, scale: float, zero: int, data: np.ndarray | None = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type, entry.buffer = name.encode(), shape, types[kind], buffer(data)
        entry.quantization = schema.QuantizationParametersT()
        entry.quantization.scale, entry.quantization.zeroPoint = [scale], [zero]
        graph.tensors.append(entry)
        return len(graph.tensors) - 1

    def operator(code: int, takes: list[int], gives: int, options: Any = None) -> None:
        entry = schema.OperatorT()
        entry.opcodeIndex, entry.inputs, entry.outputs = code, takes, [gives]
        if options is not None:
            entry.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            entry.builtinOptions = options
        graph.operators.append(entry)

    model.operatorCodes = []
    for builtin in (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.QUANTIZE):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 4 if builtin == schema.BuiltinOperator.FULLY_CONNECTED else 2
        model.operatorCodes.append(code)
    graph.operators = []
    relu = schema.FullyConnectedOptionsT()
    relu.fusedActivationFunction = schema.ActivationFunctionType.RELU
    inner_in = tensor("x8", [1, 4], "int8", how.input_scale, 0)
    w = tensor("w", [3, 4], "int8", weight_scale, 0, weights)
    b = tensor("b", [3], "int32", weight_scale * how.input_scale, 0, bias)
    inner_out = tensor("y8", [1, 3], "int8", how.output_scale, 0)
    if dtype == "int8":
        operator(0, [inner_in, w, b], inner_out, relu)
        graph.inputs, graph.outputs = [inner_in], [inner_out]
    else:
        x = tensor("x", [1, 4], "uint8", how.input_scale, 128)
        y = tensor("y", [1, 3], "uint8", how.output_scale, 128)
        operator(1, [x], inner_in)
        operator(0, [inner_in, w, b], inner_out, relu)
        operator(1, [inner_out], y)
        graph.inputs, graph.outputs = [x], [y]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
