"""The engines, a plug-in each: the module's name is the variant's `engine`. Their libraries are imported on use."""

from __future__ import annotations

from marram.runtime.contract import Engine as Plugin
from marram.runtime.engines import litert, onnx, reference, torch
from marram.schema.model import Engine

PLUGINS: dict[Engine, Plugin] = {
    Engine.LITERT: litert,
    Engine.ONNX: onnx,
    Engine.TORCH: torch,
    Engine.REFERENCE: reference,
}
