"""What the version before would have answered: its model asked again on a few of the same inputs, beside the new one.

A new version may be quick, never fail, and be wrong. So for its first hour the model it replaces answers a sample of
the same inputs, and where the two disagree is counted (`shadow_frames`, `shadow_disagreements`): a rollout's gate can
hold a version back on it. It must never cost an answer or delay one: one input at a time, at most one in ten, only when
the edge has nothing else to do, by a thread that steps behind all others, and not at all where both models do not fit
the app's memory limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from marram.pipeline.faults import Faults, words
from marram.pipeline.stats import Stats
from marram.runtime.bundle import Bundle
from marram.runtime.contract import Tensor
from marram.runtime.image import Image
from marram.runtime.model import Model, Options
from marram.schema.agreement import disagree
from marram.schema.app import App, ClassifyStep, DetectStep, InferStep
from marram.schema.errors import MarramError
from marram.schema.result import Result
from marram.schema.units import format_size

log = logging.getLogger(__name__)

# One input in so many.
SHARE = 10
# Enough to tell 1 % of disagreement from 2 %, and longer than a rollout's stage soaks.
MOST_FRAMES, MOST_S = 2000, 3600.0
_NICER = 10
# How long the app's end waits for an answer under way.
_PATIENCE_S = 3.0
# What a model takes in memory, at most, for each byte of its file and beside it; and how full the limit may become.
_MEMORY_A_BYTE, _MEMORY_BESIDE_BYTES, _FULL = 3, 16_000_000, 0.85


@dataclass(frozen=True, slots=True)
class Before:
    """The version before: its app, how its models are found, and the memory that both versions share."""

    app: App
    resolve: Callable[[str], Bundle]
    memory_bytes: int | None = None


def shadow_of(number: int, spec: InferStep, model: Model, before: Before, stats: Stats) -> Shadow | None:
    """The shadow of the app's inference step `number`; None, noted in `stats`, where there is nothing to compare."""
    steps = before.app.inferences
    old = steps[number] if number < len(steps) else None
    if old is None or old.verb != spec.verb:
        stats.skip_shadow("the version before has no such step")
        return None
    try:
        bundle = before.resolve(old.model)
    except MarramError as error:
        stats.skip_shadow(f"the version before is not here whole: {error}")
        return None
    if bundle.card.input.kind != model.card.input.kind:
        stats.skip_shadow("the version before takes another kind of input")
        return None
    if _same(bundle, old.variant, model):
        stats.skip_shadow("the version before has the same model")
        return None
    return Shadow(bundle, old, stats, before.memory_bytes)


class Shadow:
    """One inference step's. `offer` never waits."""

    def __init__(self, bundle: Bundle, spec: InferStep, stats: Stats, memory_bytes: int | None) -> None:
        self._bundle, self._spec, self._stats, self._memory_bytes = bundle, spec, stats, memory_bytes
        self._options = Options(
            top=spec.top if isinstance(spec, ClassifyStep) else 5,
            min_confidence=spec.min_confidence if isinstance(spec, DetectStep) else None,
        )
        self._faults = Faults(log)
        self._inputs: SimpleQueue[tuple[Image | Tensor, Result] | None] = SimpleQueue()
        self._answered = self._taken = 0
        self._busy = self._over = False
        self._lock = threading.Lock()
        self._ends_s = time.monotonic() + MOST_S
        self._thread: threading.Thread | None = None

    def offer(self, data: Image | Tensor, result: Result, *, idle: bool) -> None:
        """The edge answered `data` with `result`; `idle`: it has nothing else to do. From any thread."""
        with self._lock:
            self._answered += 1
            if self._over or self._busy or not idle or self._answered < SHARE * (self._taken + 1):
                return
            if self._taken >= MOST_FRAMES or time.monotonic() > self._ends_s:
                self._over = True
                self._inputs.put(None)
                return
            self._taken += 1
            self._busy = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="marram-shadow", daemon=True)
                self._thread.start()
        self._inputs.put((data, result))

    def close(self) -> None:
        """End the thread and free the model."""
        with self._lock:
            self._over = True
        self._inputs.put(None)
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    def _serve(self) -> None:
        if sys.platform == "linux":  # where each thread has a priority of its own
            with contextlib.suppress(OSError):
                nice = os.getpriority(os.PRIO_PROCESS, 0) + _NICER
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        model = self._load()
        try:
            while (given := self._inputs.get()) is not None:
                if model is not None:
                    self._compare(model, *given)
                with self._lock:
                    self._busy = False
        finally:
            if model is not None:
                model.close()

    def _compare(self, model: Model, data: Image | Tensor, new: Result) -> None:
        try:
            old = model.predict(data, None, self._options)
        except Exception as error:  # noqa: BLE001 - supervisor: what the old version chokes on says nothing of the new one
            self._faults.tell("the version before", error)
            return
        self._stats.count("shadow_frames")
        if disagree(old, new):
            self._stats.count("shadow_disagreements")

    def _load(self) -> Model | None:
        limit = self._memory_bytes
        try:
            if limit is not None:
                largest = max(self._bundle.size_bytes(v) for v in self._bundle.card.variants)
                self._make_room(resident_bytes() + _MEMORY_A_BYTE * largest + _MEMORY_BESIDE_BYTES, limit)
            model = Model.load(self._bundle, variant=self._spec.variant)
            try:
                if limit is not None:
                    self._make_room(resident_bytes(), limit)
            except _NoRoom:
                model.close()
                raise
            return model
        except _NoRoom as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - supervisor: without it the new version runs all the same
            reason = f"the version before does not load: {words(error)}"
        log.info("no comparison with the version before: %s", reason)
        self._stats.skip_shadow(reason)
        with self._lock:
            self._over = True
        return None

    def _make_room(self, needed_bytes: int, limit_bytes: int) -> None:
        if needed_bytes > _FULL * limit_bytes:
            raise _NoRoom(
                f"both versions take {format_size(needed_bytes)}; the app's limit is {format_size(limit_bytes)}"
            )


class _NoRoom(Exception):
    """Both models do not fit the memory limit."""


def resident_bytes() -> int:
    """Of this process; 0 where it cannot be told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _same(bundle: Bundle, variant: str | None, model: Model) -> bool:
    """Whether it is the very model that runs: the same version and, where one is named, the same variant."""
    if bundle.folder == model.bundle.folder:
        return variant in (None, model.variant.name)
    theirs = bundle.card.variants if variant is None else [v for v in bundle.card.variants if v.name == variant]
    if not theirs or bundle.card.model_copy(update={"version": 1, "variants": []}) != model.card.model_copy(
        update={"version": 1, "variants": []}
    ):
        return False
    ours, other = model.bundle.file(model.variant), bundle.file(theirs[0])
    with contextlib.suppress(OSError):
        # Files of one content are one file on a device (hard links), whatever they are called.
        return ours.samefile(other)
    return False
