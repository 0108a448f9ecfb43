"""A model for live runs: readings of so many bytes in, one number out, some milliseconds of honest work between."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from marram.runtime.bundle import Bundle
from marram.runtime.model import Model

_REAL = onnx.TensorProto.FLOAT
_CHANNELS, _LAYERS, _ROWS = 24, 4, 50
_TIMED, _WARM = 25, 5
_PAUSE_S = 0.1

_CARD = """\
model: live-work
version: 1
task: regression
input: {{kind: tensor, size: [{numbers}, 1]}}
output: {{form: value}}
variants: [{{name: onnx, engine: onnx, file: model.onnx}}]
licence: Apache-2.0
source: made by marram.lab.oracle
"""


def make_model(folder: Path, payload_bytes: int) -> Bundle:
    """A bundle whose readings come to `payload_bytes` or a little less: convolutions over them as a picture."""
    folder.mkdir()
    columns = payload_bytes // 4 // _ROWS
    draw = np.random.default_rng(1)
    nodes = [helper.make_node("Reshape", ["readings", "shape"], ["at0"])]
    weights = [numpy_helper.from_array(np.array([1, 1, _ROWS, columns], np.int64), "shape")]
    for layer in range(_LAYERS):
        into = 1 if layer == 0 else _CHANNELS
        kernel = draw.normal(0, (2 / 9 / into) ** 0.5, (_CHANNELS, into, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{layer}"))
        names = [f"at{layer}", f"kernel{layer}"]
        nodes.append(helper.make_node("Conv", names, [f"conv{layer}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"at{layer + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"at{_LAYERS}"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Reshape", ["mean", "one"], ["value"]))
    weights.append(numpy_helper.from_array(np.array([1, 1], np.int64), "one"))
    numbers = _ROWS * columns
    given = helper.make_tensor_value_info("readings", _REAL, [1, numbers, 1])
    taken = helper.make_tensor_value_info("value", _REAL, [1, 1])
    graph = helper.make_graph(nodes, "work", [given], [taken], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    (folder / "model.yaml").write_text(_CARD.format(numbers=numbers), encoding="utf-8")
    return Bundle.open(folder)


def work_s(bundle: Bundle) -> float:
    """What one inference takes here of a processor, the median: what MARRAM_SLOWDOWN multiplies.

    Frames come some time apart, and what is not in the processor's caches any more takes longer; so with pauses.
    """
    model = Model.load(bundle)
    try:
        data = np.zeros(tuple(bundle.card.input.size), np.float32)
        times = []
        for _ in range(_TIMED):
            time.sleep(_PAUSE_S)
            begun_s = time.thread_time()
            model.predict(data)
            times.append(time.thread_time() - begun_s)
        return sorted(times[_WARM:])[(_TIMED - _WARM) // 2]
    finally:
        model.close()
