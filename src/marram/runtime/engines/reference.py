"""The readable definition of what an engine does: ONNX graphs, operator by operator, in NumPy. Slow and plain.

It exists so that what the seam means can be read, and so that a fast engine's answer can be checked against one that
shares no code with it. Each operator follows the ONNX operator specification (opset 13 and later).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from marram.runtime import probe
from marram.runtime.contract import Accelerator, Session, Tensor, TensorInfo
from marram.runtime.engines.onnx import QUANTISATION_KEY
from marram.runtime.installed import importing
from marram.runtime.operators import OPERATORS, Attributes
from marram.runtime.session import CheckedSession
from marram.schema.errors import Invalid
from marram.schema.model import Engine


def load(file: Path, *, threads: int = 1, free: bool = False) -> Session:
    """See `contract.Engine.load`. One thread, whatever is asked."""
    return ReferenceSession(file)


def describe() -> list[Accelerator]:
    """The one row: NumPy."""
    return [probe.attempt("reference", "CPU (NumPy)", load, probe.onnx, lambda: f"numpy {np.__version__}")]


class ReferenceSession(CheckedSession):
    """One graph: `constants` by name, then its nodes in order, each reading and writing values by name."""

    def __init__(self, file: Path) -> None:
        onnx = _onnx()
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load(str(file))
            onnx.checker.check_model(model)
        except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
            raise Invalid("not an ONNX model", where=str(file), hint="Is the file complete?") from error
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node} - set(OPERATORS))
        if unknown:
            raise Invalid(f"the reference engine has no operator {', '.join(unknown)}", where=str(file))
        self._constants: dict[str, Tensor] = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self._nodes = [
            (node.op_type, list(node.input), list(node.output), _attributes(onnx, node)) for node in graph.node
        ]
        scales = _scales(model)
        inputs = [value for value in graph.input if value.name not in self._constants]
        super().__init__(
            str(file),
            tuple(_info(onnx, value, scales) for value in inputs),
            tuple(_info(onnx, value, scales) for value in graph.output),
        )

    def _infer(self, tensors: list[Tensor]) -> list[Tensor]:
        values = dict(self._constants)
        values.update((info.name, tensor) for info, tensor in zip(self.inputs, tensors, strict=True))
        for operator, takes, gives, attributes in self._nodes:
            # An empty name stands for an optional input that is absent.
            results = OPERATORS[operator](attributes, *(values[name] if name else None for name in takes))
            values.update(zip(gives, results if isinstance(results, tuple) else (results,), strict=False))
        return [np.asarray(values[info.name]) for info in self.outputs]

    def _free(self) -> None:
        self._constants.clear()
        self._nodes.clear()


def _onnx() -> Any:
    with importing(Engine.REFERENCE, "the onnx package, which the reference engine needs,", "`pip install onnx`"):
        import onnx
        import onnx.checker
        import onnx.numpy_helper
    return onnx


def _attributes(onnx: Any, node: Any) -> Attributes:
    attributes: Attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        attributes[attribute.name] = value
    return attributes


def _scales(model: Any) -> dict[str, tuple[float, int]]:
    text = {entry.key: entry.value for entry in model.metadata_props}.get(QUANTISATION_KEY, "{}")
    return {name: (float(scale), int(zero_point)) for name, (scale, zero_point) in json.loads(text).items()}


def _info(onnx: Any, value: Any, scales: dict[str, tuple[float, int]]) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    scale, zero_point = scales.get(value.name, (None, 0))
    return TensorInfo(value.name, shape, dtype, scale, zero_point)
