"""From an ONNX float model to int8: static, quantise-dequantise form, weights per channel, activations uint8.

`marram model build` and training both come through here. Ranges are the minimum and maximum over the calibration
inputs. What comes out takes its input quantised already (a picture's bytes go straight in) and says the scale in
its metadata, where `engines/onnx.py` and the reference find it. It never changes the float file.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marram.runtime.engines import onnx as onnx_engine
from marram.runtime.session import fits, format_shape
from marram.schema.errors import Invalid, NotReady, Permanent


def quantize_static(
    fp32: Path,
    out: Path,
    calibration: Iterable[NDArray[np.float32]],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Quantise the model `fp32`, which has one input, into `out` (appears whole or not at all).

    `calibration`: real float32 inputs with the batch, such as [1, H, W, 3], some 50 to 500 of what the model will see.
    `progress` is told the number of inputs looked at so far. Raises Invalid where there are none, or the file is no
    model; NotReady where onnx is not installed; Permanent where ONNX Runtime cannot quantise it.
    """
    try:
        import onnx  # of the cloud and torch extras; a device never quantises
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise NotReady("quantising needs the onnx package", hint="`pip install marram[cloud]`") from error
    reader = _reader(quantization, fp32, calibration, progress)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it advises a preparation that has just been done
        try:
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(quantised),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                # All 8 bits of weight: 7 (`reduce_range`), which spare x86 from before VNNI a rare overflow, cost 5 dB.
                reduce_range=False,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            model = onnx.load(str(quantised))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            if reader.seen == 0:
                raise Invalid("there is nothing to calibrate with", where=str(fp32)) from error
            raise Permanent(f"cannot be quantised: {error}", where=str(fp32)) from error
        finally:
            logging.disable(previous)
        _take_quantised_input(onnx, model)
        onnx.save(model, str(quantised))
        quantised.replace(out)


def _reader(quantization: Any, fp32: Path, calibration: Iterable[NDArray[np.float32]], progress: Any) -> Any:
    session = onnx_engine.load(fp32)  # which says what is wrong with the file, and knows its input
    (entry, *more) = session.inputs
    session.close()
    if more:
        raise Invalid(f"has {len(more) + 1} inputs; Marram quantises models that have one", where=str(fp32))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands ONNX Runtime one input after another."""

        seen = 0

        def __init__(self) -> None:
            self._inputs = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            tensor = next(self._inputs, None)
            if tensor is None:
                return None
            if not fits(np.shape(tensor), entry.shape):
                raise Invalid(
                    f"takes shape {format_shape(entry.shape)}, got {format_shape(np.shape(tensor))}", where=str(fp32)
                )
            self.seen += 1
            if progress is not None:
                progress(self.seen)
            return {entry.name: np.asarray(tensor, np.float32)}

    return Reader()


def _take_quantised_input(onnx: Any, model: Any) -> None:
    """Drop the QuantizeLinear behind the input and declare the input as what came out of it.

    A Transpose in between stays: it moves bytes then instead of floats.
    """
    graph = model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    (entry,) = (value for value in graph.input if value.name not in constants)
    here = entry.name
    readers = [node for node in graph.node if here in node.input]
    while len(readers) == 1 and readers[0].op_type == "Transpose":
        here = readers[0].output[0]
        readers = [node for node in graph.node if here in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return
    first = readers[0]
    scale, zero_point = (constants[name] for name in first.input[1:3])
    for node in graph.node:
        node.input[:] = [here if name == first.output[0] else name for name in node.input]
    graph.node.remove(first)
    del graph.value_info[:]  # they still call these tensors floats; engines infer them anew
    entry.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    onnx.helper.set_model_props(
        model, {onnx_engine.QUANTISATION_KEY: json.dumps({entry.name: [float(scale), int(zero_point)]})}
    )
    onnx.checker.check_model(model, full_check=True)
