"""`mqtt: topic`: messages of a local broker as readings, or windows of them.

Every message counts (a handler is called for each), so up to `LIMIT` of them wait; beyond that the oldest is given up
and counted as skipped. With `every`, only the newest message is wanted, so often. Payloads are JSON, numbers or text;
bytes that are none of these stay bytes.

A broker that is away when the app starts is said at once (`frames` raises Retryable). One that goes away later is
counted, and the client comes back by itself, with back-off, for as long as the app runs.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

from marram.pipeline.addresses import check_topic, parse_broker
from marram.pipeline.brokers import make_client, refused, unreachable
from marram.pipeline.contract import Frame, Source
from marram.pipeline.pace import following
from marram.pipeline.plain import parse_payload
from marram.pipeline.windows import Row, Timed, Window, columns_of, tensor_of
from marram.schema.app import MqttSource
from marram.schema.errors import Invalid, MarramError, Refused, Retryable
from marram.schema.units import format_size

LIMIT = 1000
MAX_PAYLOAD_BYTES = 4_000_000
_CONNACK_S = 5.0


def open_source(spec: MqttSource, base: Path) -> Source:
    """Raises Invalid for a wrong topic or address; whether the broker answers is seen by `frames`."""
    return Mqtt(spec)


class _Message(NamedTuple):
    topic: str
    payload: bytes
    time_s: float
    captured_s: float


class Mqtt:
    """See `contract.Source`. `frames` may be asked again after it raised Retryable."""

    live = True

    def __init__(self, spec: MqttSource, limit: int = LIMIT) -> None:
        self.skipped = 0
        self.errors = 0
        self.last_error = ""
        check_topic(spec.mqtt, "source.mqtt", filter_=True)
        for field in ("window", "every"):
            if getattr(spec, field) == 0:
                raise Invalid("must be more than 0", where=f"source.{field}")
        self._spec = spec
        self._broker = parse_broker(spec.broker, "source.broker")
        self._limit = limit
        self._waiting: deque[_Message] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._subscribed = False
        self._refusal: MarramError | None = None

    def close(self) -> None:
        """See `contract.Source`. Messages that still wait are counted as skipped."""
        with self._changed:
            self._closed = True
            self._skip(len(self._waiting))
            self._waiting.clear()
            self._changed.notify_all()

    def frames(self) -> Iterator[Frame]:
        """Readings until `close`. Raises Retryable where no broker answers, Refused where it will not have us."""
        if self._closed:
            return
        client = self._connect()
        try:
            yield from self._messages() if self._spec.window is None else self._windows(self._spec.window)
        finally:
            client.disconnect()
            client.loop_stop()

    # ---------------------------------------------------------------- frames

    def _messages(self) -> Iterator[Frame]:
        every_s, due_s = self._spec.every, 0.0
        for index in count():
            message = self._take() if every_s is None else self._take_newest(due_s)
            if message is None:
                return
            if every_s is not None:
                due_s = following(due_s, every_s, message.captured_s)
            value = parse_payload(message.payload)
            tensor = _tensor(value)
            yield Frame(index, message.time_s, message.captured_s, reading=value, tensor=tensor, name=message.topic)

    def _windows(self, span_s: float) -> Iterator[Frame]:
        # Windows are cut by the monotonic clock: this machine's clock may be set while they are gathered.
        window = Window(float(span_s), None if self._spec.every is None else float(self._spec.every))
        names: list[str] = []
        numeric: list[str] = []
        indices, topic, last_time_s = count(), self._spec.mqtt, time.time()
        while True:
            message = self._take(window.due_s)
            if message is not None:
                row = self._row(message, names, numeric)
                if row is None:
                    continue
                rows = window.add(message.captured_s, row)
                topic = message.topic
            elif self._closed:
                return
            else:
                rows = window.tick(time.monotonic())
            if rows is not None:
                yield self._frame(next(indices), rows, (names, numeric), (last_time_s, topic))
            if message is not None:
                last_time_s = message.time_s

    def _row(self, message: _Message, names: list[str], numeric: list[str]) -> Row | None:
        """A message as a row of the window; the first one says what the columns are."""
        value = parse_payload(message.payload)
        row: Row = value if isinstance(value, dict) else {"value": value}
        if not names:
            names.extend(row)
            numeric.extend(name for name in row if _is_number(row[name]))
            if not numeric:
                names.clear()
                self._failed(f"{message.topic}: a window needs numbers, and the message has none: {value!r:.60}")
                return None
        wrong = next((name for name in names if name not in row), None) or next(
            (name for name in numeric if not _is_number(row[name])), None
        )
        if wrong is not None:
            self._failed(f"{message.topic}: {wrong} is {row.get(wrong, 'missing')!r:.40}; the message was left out")
            return None
        return row

    def _frame(
        self, index: int, rows: list[Timed], columns: tuple[list[str], list[str]], at: tuple[float, str]
    ) -> Frame:
        names, numeric = columns
        reading = columns_of(rows, names)
        tensor = tensor_of([row for _, row in rows], numeric)
        return Frame(index, at[0], rows[-1][0], reading=reading, tensor=tensor, name=at[1])

    # ---------------------------------------------------------------- messages

    def _take(self, until_s: float = math.inf) -> _Message | None:
        """The oldest message that waits; None after `close`, or at `until_s` (monotonic)."""
        with self._changed:
            while not self._waiting and not self._closed:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(None if math.isinf(left_s) else left_s)
            return None if self._closed else self._waiting.popleft()

    def _take_newest(self, due_s: float) -> _Message | None:
        """At `due_s` (monotonic) or later, the newest message; those before it are not wanted. None after `close`."""
        with self._changed:
            while not self._closed:
                left_s = due_s - time.monotonic()
                if left_s <= 0 and self._waiting:
                    newest = self._waiting.pop()
                    self._waiting.clear()
                    return newest
                self._changed.wait(left_s if left_s > 0 else None)
            return None

    def _received(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            self._failed(f"{message.topic}: a message of {format_size(len(message.payload))} is too large, left out")
            return
        arrived = _Message(message.topic, bytes(message.payload), time.time(), time.monotonic())
        with self._changed:
            if self._closed:
                return
            if len(self._waiting) >= self._limit:
                self._waiting.popleft()
                self._skip(1)
            self._waiting.append(arrived)
            self._changed.notify_all()

    def _skip(self, count_: int) -> None:
        # With `every`, what lies between two that are due is not wanted, so not missed either.
        if self._spec.every is None or self._spec.window is not None:
            self.skipped += count_

    # ---------------------------------------------------------------- the broker

    def _connect(self) -> paho.Client:
        """A client that is connected and subscribed, and stays so by itself."""
        client = make_client(self._broker)
        client.on_message = self._received
        client.on_connect = self._connected
        client.on_subscribe = self._answered
        client.on_disconnect = self._disconnected
        self._subscribed, self._refusal = False, None
        try:
            client.connect(self._broker.host, self._broker.port)
        except (OSError, ValueError) as error:
            raise unreachable(self._broker, error) from error
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._subscribed or self._refusal or self._closed, _CONNACK_S)
            fault = self._refusal
            if fault is None and not self._subscribed and not self._closed:
                fault = Retryable(f"what answers at {self._broker} is not an MQTT broker, or a very slow one")
        if fault is not None:
            client.disconnect()
            client.loop_stop()
            raise fault
        return client

    def _connected(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._refuse(refused(self._broker, reason))
        else:
            # Also after each reconnection: a broker forgets us when the connection ends.
            client.subscribe(self._spec.mqtt, qos=1)

    def _answered(self, client: paho.Client, data: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse(Refused(f"the MQTT broker at {self._broker} does not let us read {self._spec.mqtt}"))
            return
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _refuse(self, fault: MarramError) -> None:
        with self._changed:
            if self._subscribed:
                self._failed(str(fault))
            self._refusal = fault
            self._changed.notify_all()

    def _disconnected(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if self._subscribed and not self._closed:
            self._failed(f"the MQTT broker at {self._broker} went away ({str(reason).lower()}); trying again")

    def _failed(self, message: str) -> None:
        self.errors += 1
        self.last_error = message


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _tensor(value: Any) -> NDArray[np.float32] | None:
    """The numbers of a payload as float32 [rows, columns]; None where it has none, or not of one shape.

    A number is [1, 1]; {a: 1, b: 2} is [1, 2]; a list of numbers is [n, 1]; {a: [1, 2, 3], b: [4, 5, 6]} is [3, 2].
    """
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = list(zip(*lists, strict=False)) if lists else [[item for item in value.values() if _is_number(item)]]
    elif _is_number(value):
        value = [[value]]
    elif isinstance(value, list) and all(type(item) is float or _is_number(item) for item in value):
        value = np.array(value, dtype=np.float64)[:, np.newaxis]
    if not isinstance(value, (list, np.ndarray)):
        return None
    try:
        tensor = np.array(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        return None
    return tensor if tensor.ndim == 2 and tensor.size and np.isfinite(tensor).all() else None
