"""Finds the plug-in of a verb: `sources/VERB.py`, `steps/VERB.py`, `sinks/VERB.py`. The file name is the registration.

Plug-ins are imported only when an app names them: a camera's OpenCV costs nothing to an app that reads a CSV file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from marram.pipeline.contract import Sink, Source, Step, StepContext
from marram.schema.app import SINKS, SOURCES, STEPS, App, InferStep


def verb_of(spec: Any, table: Mapping[str, type[Any]]) -> str:
    """The verb under which `spec`'s model stands in one of the tables of `schema/app.py`."""
    return next(verb for verb, model in table.items() if type(spec) is model)


def open_source(spec: Any, base: Path) -> Source:
    """Raises Missing or Invalid where the source can already be seen to be wrong."""
    plugin = importlib.import_module(f"marram.pipeline.sources.{verb_of(spec, SOURCES)}")
    return cast(Source, plugin.open_source(spec, base))


def check_step(spec: Any, app: App) -> None:
    """What the step's plug-in can say of it from the app alone: its `check_step`, where it has one. Raises Invalid."""
    if isinstance(spec, InferStep):
        return
    plugin = importlib.import_module(f"marram.pipeline.steps.{verb_of(spec, STEPS)}")
    check = getattr(plugin, "check_step", None)
    if check is not None:
        check(spec, app)


def make_step(spec: Any, context: StepContext) -> Step:
    """Raises Missing or Invalid where the step cannot be made."""
    plugin = importlib.import_module(f"marram.pipeline.steps.{verb_of(spec, STEPS)}")
    return cast(Step, plugin.make_step(spec, context))


def open_sink(spec: Any, base: Path) -> Sink:
    """Raises Missing, Invalid or Conflict where the sink cannot be opened."""
    plugin = importlib.import_module(f"marram.pipeline.sinks.{verb_of(spec, SINKS)}")
    return cast(Sink, plugin.open_sink(spec, base))
