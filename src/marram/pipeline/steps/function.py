"""`function: handler.py:name`: a user's Python function is called for each reading or frame.

Two styles, told apart by the first parameter's name:

- `f(event, context)`, as in Greengrass V1: `event` is the reading (for MQTT the decoded message), `context` Lambda's. A
  dict it returns becomes the frame's result (see `result_of`); anything else it returns means nothing, as there.
- `f(frame, result)`: returns a Result, a dict that is added to it, a number (its value), a text (its label), a Frame, a
  list of Frames, None (the frame goes on unchanged) or False (it ends here).

Whatever user code raises ends that frame only, and is counted by the runner, with the user's file and line. It runs in
this process: what it must not do to others is the worker's limit to keep, not this step's.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from marram.pipeline.addresses import parse_broker
from marram.pipeline.brokers import Publisher
from marram.pipeline.conditions import field_of
from marram.pipeline.contract import Frame, Step, StepContext
from marram.pipeline.functions import Loading, Style, argument_count, check_requirements, explain, style_of
from marram.pipeline.greengrass import v1
from marram.pipeline.greengrass.context import ClientContext, LambdaContext, arn
from marram.pipeline.greengrass.station import Station, entered, open_station, owner_of
from marram.pipeline.plain import plain
from marram.schema.app import FunctionStep
from marram.schema.errors import Invalid, Permanent
from marram.schema.model import Task
from marram.schema.result import Result

log = logging.getLogger("marram.function")

# A file that imports torch on a small device takes tens of seconds; one that never ends is then let be.
_LOAD_S = 60.0
_VERSION = "1"


def make_step(spec: FunctionStep, context: StepContext) -> Step:
    """Load the function. Raises NotReady (a package of `requires`), Missing (the file), Invalid (what is in it)."""
    where = field_of(spec, context.app)
    check_requirements(spec.requires, where)
    publisher = None
    if spec.mqtt is not None:
        publisher = Publisher(parse_broker(spec.mqtt, f"{where}.mqtt"), context.counters.error)
    station = Station(context, spec.function, publisher)
    try:
        return Function(spec, context, station, where)
    except BaseException:
        station.close()
        raise


class Function:
    """The step. `close` stops its messages; threads that user code started end with the process."""

    def __init__(self, spec: FunctionStep, context: StepContext, station: Station, where: str) -> None:
        self._context = context
        # As tracebacks have it, wherever the app was started from.
        self._base = context.base.resolve()
        self._station = station
        self._name = spec.function
        self._attribute = spec.function.rpartition(":")[2]
        self._where = where
        self._log = _Log(context.app.app)
        self._function: Callable[..., Any] | None = None
        self._style: Style = "greengrass"
        self._arguments = 2
        file = self._base / spec.file
        prepare_process([self._base, file.parent], context.device)
        open_station(station)
        self._loading = Loading(file, where, lambda: entered(station))
        self._adopt(self._loading.function(self._attribute, _LOAD_S))

    def __call__(self, frame: Frame) -> Iterable[Frame]:
        """The frame as the function leaves it. Raises Permanent, with file and line, where user code fails."""
        if self._function is None:
            self._adopt(self._loading.function(self._attribute, 0.0))
        if self._function is None:
            self._context.counters.error(
                f"{self._name} is not there yet: the top level of its file still runs; frame {frame.index} passed by"
            )
            return (frame,)
        try:
            with entered(self._station):
                answer = self._call(self._function, frame)
            return self._frames(answer, frame)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # user code: whatever it raises, SystemExit included, ends this frame only
            message = explain(error, self._base)
            self._log.failed(message)
            raise Permanent(message) from error

    def close(self) -> None:
        """See the class."""
        self._station.close()

    def _adopt(self, function: Callable[..., Any] | None) -> None:
        if function is not None:
            self._style = style_of(function, self._where)
            self._arguments = argument_count(function)
            self._function = function

    def _call(self, function: Callable[..., Any], frame: Frame) -> Any:
        first, second = (
            (frame, frame.result) if self._style == "frame" else (event_of(frame), self._lambda_context(frame))
        )
        return function(first, second) if self._arguments == 2 else function(first)

    def _frames(self, answer: Any, frame: Frame) -> Iterable[Frame]:
        """What the function returned, as frames. Raises Invalid where it means nothing here."""
        if self._style == "greengrass":
            # There, nobody read what a handler returned: "ok" and True say nothing about the reading.
            answer = answer if isinstance(answer, (dict, Result)) else None
        else:
            if answer is False:
                return ()
            if isinstance(answer, Frame):
                return (answer,)
            if isinstance(answer, (list, tuple)):
                if not all(isinstance(item, Frame) for item in answer):
                    raise Invalid(f"{self._name} returned a list of what are not frames")
                return answer
        if isinstance(answer, Result):
            frame.result = answer
        elif answer is not None:
            frame.result = result_of(answer, frame.result, self._name)
        return (frame,)

    def _lambda_context(self, frame: Frame) -> LambdaContext:
        limit = self._context.app.limits.memory
        return LambdaContext(
            function_name=self._attribute,
            function_version=_VERSION,
            invoked_function_arn=arn(self._context.device, self._attribute, _VERSION),
            memory_limit_in_mb=0 if limit is None else limit // 10**6,
            client_context=ClientContext(custom={"subject": frame.name}),
            log_group_name=f"/marram/{self._context.app.app}",
            log_stream_name=f"{self._context.device}/{self._name}",
        )


def event_of(frame: Frame) -> Any:
    """What a Greengrass handler is given: the reading; for a picture a dict with it and what is known of it."""
    if frame.image is None:
        return frame.reading
    return {
        "image": frame.image,
        "index": frame.index,
        "name": frame.name,
        "time": frame.time_s,
        "result": None if frame.result is None else frame.result.to_dict(),
    }


def result_of(answer: Any, before: Result | None, name: str) -> Result:
    """A function's return value as a result: what it answers itself, or added to the result `before` it.

    Fields that a Result has, of the type it has, become its own; other names are extra. A Result's name with something
    else in it (`value: "ok"`) is kept as `returned_value`, so that no reader of results meets it. Raises Invalid where
    `answer` holds what JSON has no word for.
    """
    values = plain(answer, f"{name}'s return value")
    if isinstance(values, str):
        values = {"label": values}
    elif not isinstance(values, dict):
        values = {"value": values}
    own: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in values.items():
        if key in _OWN:
            fitting = _OWN[key](value)
            if fitting is not None:
                own[key] = fitting
                continue
        if value is not None:
            extra[f"returned_{key}" if key in _OWN or key in ("task", "model", "anomaly") else key] = value
    if before is not None:
        return replace(before, **own, extra={**before.extra, **extra})
    task = Task.REGRESSION
    for field, means in (("detections", Task.DETECTION), ("score", Task.ANOMALY), ("label", Task.CLASSIFICATION)):
        if field in own:
            task = means
            break
    return Result(task=task, model=name, **own, extra=extra)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _parsed(field: str) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        try:
            result = Result.from_dict({"task": Task.DETECTION, "model": "", field: value})
        except (KeyError, TypeError, ValueError, IndexError):
            return None
        return getattr(result, field)

    return parse


_OWN: dict[str, Callable[[Any], Any]] = {
    "label": _text, "confidence": _number, "value": _number, "unit": _text, "score": _number, "threshold": _number,
    "top": _parsed("top"), "detections": _parsed("detections"),
}  # fmt: skip


class _Log:
    """Logs what is new of the errors of user code: a handler that fails at 30 Hz must not fill the disk."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._last = ""
        self._times = 0

    def failed(self, message: str) -> None:
        """Log it when it is another than before, and at its 10th, 100th, 1000th … repetition."""
        self._times = self._times + 1 if message == self._last else 1
        self._last = message
        if str(self._times).strip("0") == "1":
            log.error("%s: %s%s", self._app, message, f" ({self._times} times)" if self._times > 1 else "")


# ---------------------------------------------------------------- the process

_V1 = str(Path(v1.__file__).parent)
_prepare = threading.Lock()


def prepare_process(folders: list[Path], device: str) -> None:
    """Make `greengrasssdk` and what lies in `folders` importable, and count what user threads raise.

    Only a process that runs a function step is changed. Any number of times.
    """
    with _prepare:
        for folder in (_V1, *map(str, folders)):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        # What Greengrass V1 told every function of the device it ran on.
        os.environ.setdefault("AWS_IOT_THING_NAME", device)
        os.environ.setdefault("AWS_GREENGRASS_GROUP_NAME", "marram")
        if threading.excepthook is not _thread_failed:
            _before.append(threading.excepthook)
            threading.excepthook = _thread_failed


_before: list[Callable[[threading.ExceptHookArgs], Any]] = []


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """What a thread or timer of user code raised is counted like what its handler raises; others go the usual way."""
    error = failure.exc_value
    files = [frame.filename for frame in traceback.extract_tb(failure.exc_traceback)]
    station = owner_of(files) if error is not None else None
    if station is None or error is None:
        _before[-1](failure)
        return
    message = f"a thread of {station.name} ended: {explain(error, station.base)}"
    station.error(message)
    log.error("%s: %s", station.app, message)
