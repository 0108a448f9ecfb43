"""What this device measured of models' variants, kept over restarts, and which of a card's variants that makes best.

A figure belongs to a file on an engine on a machine, not to an app or a version: two apps, or two versions with the
same file, are measured once. The rule: of the variants that keep the card's accuracy floor and fit the app's memory
limit, the fastest; where not all of them are measured, the card's order, and why.
It is read by the agent: no engine, no NumPy here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from marram.runtime.installed import PACKAGES
from marram.runtime.machine import inspect
from marram.schema.device import Chosen, Measured
from marram.schema.model import Engine, File, ModelCard, Variant
from marram.schema.units import format_size
from marram.system import files

log = logging.getLogger("marram.edge")

FILE = "measured.json"
# Of those the oldest go first: each is some hundred bytes.
_MOST = 500
# Two that differ by less are equally fast, and the card's order decides: or noise would.
_ALIKE = 1.05


def keeps_floor(card: ModelCard) -> list[Variant]:
    """The card's variants that keep its accuracy floor, in its order.

    One whose accuracy nobody measured does not, unless it is the card's only one in full precision: that is what the
    others' accuracy is measured against.
    """
    floor = card.accuracy_floor
    if floor is None:
        return list(card.variants)
    full = [variant for variant in card.variants if variant.precision == "fp32"]
    reference = full[0] if len(full) == 1 else None
    return [v for v in card.variants if (v is reference if v.accuracy is None else v.accuracy >= floor)]


class Choices:
    """The figures, in `folder`. Every method may read or write a small file; safe from several threads, not processes.

    Another process (`marram edge bench`) may write the file: what it wrote counts from the next look on.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._stamp: tuple[int, int, int] | None = None
        self._figures: dict[str, dict[str, Any]] = {}
        # Why a model was not measured although it might have been: by `name@version`.
        self.why: dict[str, str] = {}

    def figures(self, card: ModelCard, variant: Variant, parts: Sequence[File]) -> Measured | None:
        """What was measured of a variant whose files are `parts`; None where nothing was."""
        self._read()
        found = self._figures.get(_key(card, variant, parts))
        if found is None:
            return None
        try:
            return Measured.model_validate(found["measured"] | {"variant": variant.name, "accuracy": variant.accuracy})
        except (ValidationError, KeyError, TypeError):
            return None

    def measured_s(self, card: ModelCard, variant: Variant, parts: Sequence[File]) -> float | None:
        """When (Unix time, by this device's clock)."""
        self._read()
        found = self._figures.get(_key(card, variant, parts), {})
        at = found.get("time_s")
        return float(at) if isinstance(at, (int, float)) else None

    def keep(self, card: ModelCard, results: Sequence[tuple[Variant, Sequence[File], Measured]]) -> None:
        """Remember figures. A disk that refuses costs a measurement the next time, and nothing else."""
        self._read()
        for variant, parts, measured in results:
            key = _key(card, variant, parts)
            self._figures.pop(key, None)
            self._figures[key] = {"time_s": time.time(), "measured": measured.model_dump(mode="json")}
        for key in list(self._figures)[:-_MOST]:
            del self._figures[key]
        try:
            files.write(self._file, json.dumps(self._figures).encode())
        except OSError as error:
            log.warning("what was measured cannot be remembered: %s", error.strerror)
        self._stamp = _stamp(self._file)

    def ranked(
        self,
        card: ModelCard,
        among: Sequence[Variant],
        parts: dict[str, list[File]],
        limit_bytes: int | None,
        reference: str,
    ) -> tuple[list[Variant], str]:
        """`among` (in the card's order, each with its files), the best first; and why that one is first.

        `reference`: of the model, for what `why` says of it.

        Those that are measured and cannot run, or take more memory than `limit_bytes`, come last.
        """
        if len(among) < 2:
            return list(among), "the only one that this device can run" if among else ""
        found = {v.name: self.figures(card, v, parts[v.name]) for v in among}
        bad = [v for v in among if (m := found[v.name]) and _unfit(m, limit_bytes)]
        good = [v for v in among if v not in bad]
        if any(found[v.name] is None for v in good):
            return [*good, *bad], self.why.get(reference) or "first on the card: not measured yet"
        if not good:
            return list(among), "first on the card: none of them ran when it was measured within the memory limit"
        speeds = {v.name: _p50(found[v.name]) for v in good}
        fastest = min(speeds.values())
        first = next(v for v in good if speeds[v.name] <= fastest * _ALIKE)
        rest = sorted((v for v in good if v is not first), key=lambda v: speeds[v.name])
        return [first, *rest, *bad], _words(first, rest, bad, speeds, found, limit_bytes)

    def chosen(self, card: ModelCard, variant: Variant, parts: dict[str, list[File]], why: str) -> Chosen:
        """For the report: what runs, why, and all that was measured of the card's variants, fastest first."""
        measured, times = [], []
        for each in card.variants:
            figures = self.figures(card, each, parts.get(each.name, []))
            if figures is not None:
                measured.append(figures)
                times.append(self.measured_s(card, each, parts[each.name]) or 0.0)
        measured.sort(key=_p50)
        return Chosen(
            model=card.reference, variant=variant.name, why=why, measured=measured, measured_s=max(times, default=None)
        )

    def _read(self) -> None:
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            document = json.loads(self._file.read_bytes()) if stamp else {}
        except (OSError, ValueError, RecursionError):
            document = {}  # measured again where it is needed
        self._figures = {k: v for k, v in document.items() if isinstance(v, dict)} if isinstance(document, dict) else {}


def _unfit(measured: Measured, limit_bytes: int | None) -> bool:
    over = limit_bytes is not None and (measured.memory_bytes or 0) > limit_bytes
    return bool(measured.fault) or measured.p50_ms is None or over


def _p50(measured: Measured | None) -> float:
    return float("inf") if measured is None or measured.p50_ms is None else measured.p50_ms


def _words(
    first: Variant, rest: list[Variant], bad: list[Variant], speeds: dict[str, float],
    found: dict[str, Measured | None], limit_bytes: int | None,
) -> str:  # fmt: skip
    def of(variant: Variant) -> str:
        return f"{variant.name} {speeds[variant.name]:.3g} ms"

    said = f"fastest here: {of(first)}" + (f", {', '.join(map(of, rest))}" if rest else "")
    for variant in bad:
        measured = found[variant.name]
        assert measured is not None
        over = measured.memory_bytes and not measured.fault and limit_bytes is not None
        reason = (
            f"takes {format_size(measured.memory_bytes or 0)}, the limit is {format_size(limit_bytes or 0)}"
            if over
            else "does not run here"
        )
        said += f"; {variant.name} {reason}"
    return said


def _key(card: ModelCard, variant: Variant, parts: Sequence[File]) -> str:
    """What a figure belongs to."""
    what = {
        "files": sorted(file.sha256 for file in parts),
        # How pictures are prepared and answers read is part of what is timed.
        "input": card.input.model_dump(mode="json"),
        "output": card.output.model_dump(mode="json"),
        "engine": [variant.engine.value, *_engine(variant.engine)],
        "machine": _machine(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _engine(engine: Engine) -> tuple[int, int]:
    """The installed engine, told without importing it: another version is another file."""
    found = importlib.util.find_spec(PACKAGES[engine])
    stamp = _stamp(Path(found.origin)) if found and found.origin else None
    return stamp[1:] if stamp else (0, 0)


@lru_cache(maxsize=1)
def _machine() -> list[Any]:
    machine = inspect()
    return [machine.processor, machine.architecture, machine.cores, machine.board, machine.power_mode]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What tells one content from the next: two may be of one size and of one tick of the clock, never of one inode."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size
