"""`mqtt: topic`: every result as JSON to a topic of a local broker, in the background (see `brokers.Publisher`)."""

from __future__ import annotations

import threading
from pathlib import Path

from marram.pipeline.addresses import check_topic, parse_broker
from marram.pipeline.brokers import Publisher
from marram.pipeline.contract import Frame, Sink
from marram.pipeline.records import line
from marram.schema.app import MqttSink
from marram.schema.errors import Retryable


def open_sink(spec: MqttSink, base: Path) -> Sink:
    """Raises Invalid for a wrong topic or address. A broker that is away is not a fault here: messages wait for it."""
    check_topic(spec.mqtt, "sinks.mqtt")
    return MqttResults(spec)


class MqttResults:
    """See `contract.Sink`."""

    def __init__(self, spec: MqttSink) -> None:
        self._topic = spec.mqtt
        self._lock = threading.Lock()
        self._faults: list[str] = []
        self._publisher = Publisher(parse_broker(spec.broker, "sinks.mqtt.broker"), self._failed)

    def write(self, frame: Frame) -> None:
        """Hand one message over. Raises Retryable once for each outage or overflow since the last `write`."""
        self._publisher.publish(self._topic, line(frame))
        self._raise_fault()

    def close(self) -> None:
        """Give what waits two seconds to leave."""
        self._publisher.close()
        self._raise_fault()

    def _failed(self, message: str) -> None:
        with self._lock:
            self._faults.append(message)

    def _raise_fault(self) -> None:
        with self._lock:
            fault = self._faults.pop(0) if self._faults else None
        if fault is not None:
            raise Retryable(fault)
