"""Which engines are installed here, told without importing one: the device's agent decides by it what to fetch."""

from __future__ import annotations

import importlib.util

from marram.schema.model import Engine

# The package that each engine's plug-in imports when it is used.
PACKAGES: dict[Engine, str] = {
    Engine.LITERT: "ai_edge_litert",
    Engine.ONNX: "onnxruntime",
    Engine.TORCH: "torch",
    Engine.REFERENCE: "onnx",
}


def installed(engine: Engine) -> bool:
    """Whether the engine's package is here; whether it works is seen when it loads a model."""
    return importlib.util.find_spec(PACKAGES[engine]) is not None
