"""Which engines are installed here, told without importing one: the device's agent decides by it what to fetch.

An engine that is installed may still not load: another processor's build, a library that is missing. That is told by
`importing` to who tries, and by `python -m marram.runtime.loads ENGINE` to who must not import it (`edge/engines`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from marram.schema.errors import NotReady
from marram.schema.model import Engine
from marram.schema.words import first_line

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


@contextmanager
def importing(engine: Engine, name: str, hint: str) -> Iterator[None]:
    """While its plug-in imports the engine's package, called `name`: whatever that raises becomes NotReady."""
    try:
        yield
    except Exception as error:  # a library that is broken may raise anything while it is imported
        if not installed(engine):
            raise NotReady(f"{name} is not installed", hint=hint) from error
        raise NotReady(
            f"{name} is installed but does not load: {first_line(error)}", hint=f"Install it again: {hint}"
        ) from error
