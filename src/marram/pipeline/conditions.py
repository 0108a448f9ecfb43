"""Conditions in CEL: `result.score > result.threshold for 10 s`. Compiled when the app starts, asked once a frame.

What a condition sees: `result` (`Result.to_dict` and `anomaly`), `reading` (what a sensor source read), `frame`
(index, name, time_s, hour, minute, weekday, latency_ms, place, escalated, verified) and `device` (its name). A
condition that cannot be answered for a frame (its result has no such field) is false there, and counted: it never
stops an app. Where a detector found nothing, `result.label` is null and `result.confidence` 0: a plain answer, not a
fault.

Nothing here is Python's `eval`, and nothing here does I/O.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.util
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from marram.pipeline.contract import Frame, StepContext
from marram.schema.app import App, Step
from marram.schema.errors import Invalid
from marram.schema.model import Task
from marram.schema.units import parse_duration
from marram.schema.words import did_you_mean, first_line

EXAMPLE = 'result.label == "person" && result.confidence > 0.6'

# ` for 10 s` at the end. A quote cannot be part of the unit, so a string that ends in these words is not taken for it.
_FOR = re.compile(r"^(?P<condition>.*\S)\s+for\s+(?P<held>[\d.]+\s*[^\W\d]*)\s*$", re.DOTALL)
# `all(d, …)` binds d: such names are variables of the condition's own.
_BOUND = re.compile(r"\b(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")
_FUNCTIONS = frozenset({
    "size", "contains", "startsWith", "endsWith", "matches", "has", "max", "min", "dyn", "type",
    "int", "uint", "double", "string", "bytes", "bool", "timestamp", "duration",
    "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes",
    "getSeconds",
})  # fmt: skip
_BUILT_IN_TYPES = frozenset({"int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type", "type"})

_FRAME_FIELDS: dict[str, Callable[[Frame], Any]] = {
    "index": lambda frame: frame.index,
    "name": lambda frame: frame.name,
    "time_s": lambda frame: frame.time_s,
    # On the device's own local time, as a person at the site would say it.
    "hour": lambda frame: time.localtime(frame.time_s).tm_hour,
    "minute": lambda frame: time.localtime(frame.time_s).tm_min,
    # Monday is 1, Sunday is 7 (ISO 8601).
    "weekday": lambda frame: time.localtime(frame.time_s).tm_wday + 1,
    "latency_ms": lambda frame: None if frame.placed is None else frame.placed.latency_s * 1000,
    "place": lambda frame: None if frame.placed is None else frame.placed.place.value,
    # In a cascade: the edge was unsure and the cloud answered; nobody could say whether the edge is right.
    "escalated": lambda frame: None if frame.placed is None else frame.placed.escalated,
    "verified": lambda frame: None if frame.placed is None else frame.placed.verified,
}


def field_of(spec: Step, app: App) -> str:
    """The app's field that `spec` stands in, for messages: `steps[1].keep`; `raw` where that alone put the step in."""
    index = next((i for i, step in enumerate(app.steps) if step is spec), None)
    return "raw" if index is None else f"steps[{index}].{spec.verb}"


def condition_of(spec: Step, context: StepContext) -> Condition:
    """The condition that is the main argument of `filter`, `keep` and `alert`. Raises Invalid."""
    return Condition(
        getattr(spec, spec.verb),
        where=field_of(spec, context.app),
        device=context.device,
        on_error=context.counters.error,
    )


class Condition:
    """One compiled condition. Not thread-safe: one step owns it, one thread at a time asks it.

    `errors` counts the frames it could not be answered for, `last_error` says why the last of them could not.
    """

    def __init__(
        self, text: str, *, where: str, device: str = "", on_error: Callable[[str], None] | None = None
    ) -> None:
        """`where` names the app's field in messages, such as `steps[1].alert`; `on_error` hears of every error.

        Raises Invalid.
        """
        self.text = text.strip()
        self.errors = 0
        self.last_error = ""
        self._where = where
        self._device = device
        self._on_error = on_error
        expression, held_s = _split_for(self.text, where)
        self._hold = _Hold(held_s) if held_s is not None else None
        self._program = _compile(expression, where)
        self._check(expression)

    @property
    def held_s(self) -> float:
        """How long it must hold, in seconds; 0 where the condition has no `for`."""
        return 0.0 if self._hold is None else self._hold.needed_s

    def __call__(self, frame: Frame) -> bool:
        """Whether it holds for `frame`, and with `for` has held that long by the frames' own clock. Never raises."""
        holds = self._holds(frame)
        return holds if self._hold is None else self._hold.update(frame.time_s, holds)

    def _holds(self, frame: Frame) -> bool:
        try:
            answer = self._program.execute(self._variables(frame))
        except (KeyError, ValueError, TypeError, RuntimeError, ArithmeticError, IndexError) as error:
            self._count(_explain(error))
            return False
        if answer is True or answer is False:
            return bool(answer)
        self._count(f"gives {answer!r:.60}, not true or false")
        return False

    def _count(self, why: str) -> None:
        self.errors += 1
        self.last_error = f"{self._where}: `{self.text}` {why}"
        if self._on_error is not None:
            self._on_error(self.last_error)

    def _variables(self, frame: Frame) -> dict[str, Any]:
        """Only what the expression names: converting a whole result would cost more than answering it."""
        variables: dict[str, Any] = {}
        if self._result is not None:
            variables["result"] = self._result.pick(_result_fields(frame))
        if self._frame is not None:
            wanted = self._frame.names or _FRAME_FIELDS
            variables["frame"] = {name: _FRAME_FIELDS[name](frame) for name in wanted}
        if self._reading is not None:
            reading = frame.reading
            variables["reading"] = self._reading.pick(reading) if isinstance(reading, dict) else reading
        if self._uses_device:
            variables["device"] = self._device
        return variables

    def _check(self, expression: str) -> None:
        """Refuse unknown names now, while a person is watching, instead of being false for ever."""
        references = self._program.references()
        known = ["result", "reading", "frame", "device"]
        bound = set(_BOUND.findall(expression))
        for name in references["variables"]:
            if name not in known and name not in bound and name not in _BUILT_IN_TYPES:
                help_ = did_you_mean(name, known) or f'; a text is written "{name}"'
                raise Invalid(
                    f'no variable "{name}" in `{self.text}`{help_}',
                    where=self._where,
                    hint=f"Conditions see {', '.join(known)}, as in: {EXAMPLE}",
                )
        for name in references["functions"]:
            if name.isidentifier() and name not in _FUNCTIONS:
                raise Invalid(
                    f'no function "{name}" in `{self.text}`',
                    where=self._where,
                    hint="CEL has size(…), .contains(…), .startsWith(…), .matches(…), .exists(x, …), .all(x, …)",
                )
        used = set(references["variables"])
        self._result = _Fields.of("result", expression) if "result" in used else None
        self._reading = _Fields.of("reading", expression) if "reading" in used else None
        self._frame = _Fields.of("frame", expression) if "frame" in used else None
        self._uses_device = "device" in used
        for name in (self._frame.names or ()) if self._frame else ():
            if name not in _FRAME_FIELDS:
                near = difflib.get_close_matches(name, _FRAME_FIELDS, n=1)
                help_ = f"; did you mean frame.{near[0]}?" if near else f"; it has {', '.join(_FRAME_FIELDS)}"
                raise Invalid(f"a frame has no {name}{help_}", where=self._where)
        if not used:
            self._refuse_constant_other_than_bool()

    def _refuse_constant_other_than_bool(self) -> None:
        try:
            answer = self._program.execute({})
        except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
            raise Invalid(f"`{self.text}` {_explain(error)}", where=self._where) from error
        if not isinstance(answer, bool):
            raise Invalid(
                f"`{self.text}` is not a condition: it is always {answer!r:.60}",
                where=self._where,
                hint=f"Write for example: {EXAMPLE}",
            )


@dataclass(frozen=True, slots=True)
class _Fields:
    """Which fields of one variable an expression reads; `names` None where it may read any (`size(result)`)."""

    names: frozenset[str] | None

    @classmethod
    def of(cls, variable: str, expression: str) -> _Fields:
        uses = len(re.findall(rf"\b{variable}\b", expression))
        names = re.findall(rf"\b{variable}\s*\.\s*(\w+)\b(?!\s*\()", expression)
        return cls(frozenset(names) if len(names) == uses else None)

    def pick(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self.names is None else {name: values[name] for name in self.names if name in values}


class _Hold:
    """How long a condition has held without a break, by a clock that may jump.

    It adds up the steps between frames instead of subtracting a start: a clock set back adds nothing, and what was
    already counted stays.
    """

    def __init__(self, needed_s: float) -> None:
        self.needed_s = needed_s
        self._held_s: float | None = None
        self._last_s = 0.0

    def update(self, time_s: float, holds: bool) -> bool:
        if not holds:
            self._held_s = None
            return False
        self._held_s = 0.0 if self._held_s is None else self._held_s + max(0.0, time_s - self._last_s)
        self._last_s = time_s
        return self._held_s >= self.needed_s


def _result_fields(frame: Frame) -> dict[str, Any]:
    result = frame.result
    if result is None:
        return {}
    fields = result.to_dict()
    if result.task is Task.DETECTION and not result.detections:
        fields = {"label": None, "confidence": 0.0, **fields}
    anomaly = result.anomaly
    if anomaly is not None:
        fields["anomaly"] = anomaly
    return fields


def _split_for(text: str, where: str) -> tuple[str, float | None]:
    """`… for 10 s` -> (condition, 10.0)."""
    match = _FOR.match(text)
    if not match:
        return text, None
    try:
        return match["condition"], parse_duration(match["held"])
    except ValueError as error:
        raise Invalid(f"`for {match['held']}`: {error}", where=where, hint="Write for example: … for 10 s") from error


def _compile(expression: str, where: str) -> Any:
    try:
        return _engine().compile(expression)
    except ValueError as error:
        raise Invalid(
            f"`{expression:.200}` is not a condition: {_parser_words(str(error))}",
            where=where,
            hint=f"Conditions are CEL, for example: {EXAMPLE}",
        ) from error


def _parser_words(message: str) -> str:
    """The parser's first fault, with the column, without its repetition of the whole expression."""
    fault = re.search(r"<input>:\d+:(\d+): (?:Syntax error: )?([^\n]*)", message)
    if not fault:
        return "it cannot be parsed"
    column, words = fault.groups()
    words = re.sub(r" expecting .*", "", words).replace("<EOF>", "end")
    if "token recognition error at: '= '" in words:
        words = "a single = where == belongs"
    elif "'and'" in words or "'or'" in words or "'not'" in words:
        words = "and, or, not are written &&, ||, !"
    return f"column {column}: {words}"


def _explain(error: Exception) -> str:
    """CEL's run-time faults in a few words."""
    if isinstance(error, KeyError):
        return f"has no {error.args[0]} here"
    if isinstance(error, TypeError):
        return "compares or adds values of different types; convert with double(…), int(…) or string(…)"
    return f"cannot be answered: {first_line(error):.120}"


_loaded: ModuleType | None = None


def _engine() -> ModuleType:
    """CEL's compiled extension on its own.

    `import cel` would also import the command line of that package (prompt-toolkit, pygments): 25 MB and 0.3 s
    against 3 MB and 0.02 s, on a device that never shows it.
    """
    global _loaded
    if _loaded is None:
        package = importlib.util.find_spec("cel")
        folders = list(package.submodule_search_locations or ()) if package else []
        found = importlib.machinery.PathFinder.find_spec("cel", folders)
        if found is None or found.loader is None:
            raise Invalid(
                "conditions need the package common-expression-language, which is not installed whole",
                hint="pip install --force-reinstall common-expression-language",
            )
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        _loaded = module
    return _loaded
