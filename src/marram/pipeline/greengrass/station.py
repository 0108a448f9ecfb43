"""Where a handler's messages go: events into the outlet, and, where the step says so, to a local broker.

User code publishes from anywhere: the handler, the module's top level, threads and timers it started. A client of
`greengrasssdk` belongs to the function step in whose code it was made, and keeps publishing there from any thread.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marram.pipeline.addresses import check_topic
from marram.pipeline.brokers import Publisher
from marram.pipeline.contract import StepContext
from marram.pipeline.greengrass.shadow import Shadows
from marram.pipeline.plain import parse_payload, plain
from marram.schema import paths
from marram.schema.errors import Invalid, MarramError
from marram.schema.event import Event, EventKind
from marram.schema.units import format_size

MAX_PAYLOAD_BYTES = 3_000_000


class Station:
    """One function step's way out. Safe from any thread."""

    def __init__(self, context: StepContext, name: str, publisher: Publisher | None) -> None:
        """`name` is the function's, for messages: `handler.py:function_handler`."""
        self.name = name
        self.base = context.base.resolve()
        self.shadows = Shadows(paths.home() / "shadows" / (context.device or "here"))
        self._context = context
        self._publisher = publisher
        self._closed = False

    def publish(self, topic: str, payload: Any) -> None:
        """One message event, and one message to the local broker where there is one.

        Raises Invalid for a topic or payload that cannot travel, and what the outlet raises (a full disk).
        """
        if self._closed:
            return  # a timer of the handler that outlived the app
        check_topic(topic, self.name)
        body = _to_bytes(payload, self.name)
        if len(body) > MAX_PAYLOAD_BYTES:
            raise Invalid(
                f"a message of {format_size(len(body))} on {topic} is too large",
                where=self.name,
                hint=f"{format_size(MAX_PAYLOAD_BYTES)} is the most.",
            )
        value = parse_payload(body)
        data = {"topic": topic, "function": self.name}
        if isinstance(value, bytes):
            event = Event(EventKind.MESSAGE, self.app, time.time(), data, value, "application/octet-stream")
        else:
            event = Event(EventKind.MESSAGE, self.app, time.time(), {**data, "payload": value})
        if self._publisher is not None:
            self._publisher.publish(topic, body)
        self._context.outlet.emit(event)

    @property
    def app(self) -> str:
        """The app's name."""
        return self._context.app.app

    def error(self, message: str) -> None:
        """Count what failed in user code."""
        self._context.counters.error(message)

    def owns(self, file: str) -> bool:
        """Whether `file` lies in the app's folder."""
        return Path(file).is_relative_to(self.base)

    def close(self) -> None:
        """Later messages go nowhere; those for the broker get two seconds to leave. Any number of times."""
        self._closed = True
        if self._publisher is not None:
            self._publisher.close()
        with _lock:
            if self in _stations:
                _stations.remove(self)


_lock = threading.Lock()
_stations: list[Station] = []
_current = threading.local()


def open_station(station: Station) -> None:
    """Make it known to code that runs outside any call of ours (its own threads)."""
    with _lock:
        _stations.append(station)


@contextmanager
def entered(station: Station) -> Iterator[None]:
    """While this thread runs code of `station`'s function."""
    before = getattr(_current, "station", None)
    _current.station = station
    try:
        yield
    finally:
        _current.station = before


def current() -> Station | None:
    """The station of the code that runs in this thread; in a thread of the user's own, the last one opened."""
    found: Station | None = getattr(_current, "station", None)
    if found is not None:
        return found
    with _lock:
        return _stations[-1] if _stations else None


def owner_of(files: list[str]) -> Station | None:
    """The station whose app one of `files` belongs to."""
    with _lock:
        stations = list(_stations)
    return next((station for station in stations if any(station.owns(file) for file in files)), None)


def _to_bytes(payload: Any, name: str) -> bytes:
    if payload is None:
        return b""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    if isinstance(payload, str):
        return payload.encode("utf-8", "replace")
    try:
        return json.dumps(plain(payload, "payload"), ensure_ascii=False).encode()
    except MarramError as error:
        raise Invalid(str(error), where=name) from error
