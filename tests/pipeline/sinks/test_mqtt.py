"""mqtt sink: every result arrives, also over an outage; nobody waits for the broker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from marram.pipeline.addresses import parse_broker
from marram.pipeline.brokers import Publisher
from marram.pipeline.contract import Frame
from marram.pipeline.sinks.mqtt import open_sink
from marram.schema.app import MqttSink
from marram.schema.errors import Invalid, Retryable


class Listener:
    """Everything that arrives on one topic."""

    def __init__(self, port: int) -> None:
        self.bodies: list[bytes] = []
        self._changed = threading.Condition()
        ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._received
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("out", qos=1)
        self._client.loop_start()
        assert ready.wait(30)

    def _received(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.bodies.append(bytes(message.payload))
            self._changed.notify_all()

    def until(self, count: int) -> list[bytes]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.bodies) >= count, 30)
            return self.bodies

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listener(mosquitto: Any) -> Iterator[Listener]:
    listening = Listener(mosquitto.port)
    yield listening
    listening.close()


def frame(index: int) -> Frame:
    return Frame(index, 1.0, 0.0, reading={"t": index})


def test_every_result_is_a_message_in_order(mosquitto: Any, listener: Listener) -> None:
    sink = open_sink(MqttSink(mqtt="out", broker=mosquitto.address), Path())
    for index in range(200):
        sink.write(frame(index))
    sink.close()
    assert [json.loads(body)["frame"] for body in listener.until(200)] == list(range(200))


def test_order_holds_from_the_very_first_message_on(mosquitto: Any, listener: Listener) -> None:
    """Published before, while and after the connection is made."""
    for round_ in range(10):
        publisher = Publisher(parse_broker(mosquitto.address, "b"), lambda message: None)
        for number in range(100):
            assert publisher.publish("out", str(100 * round_ + number))
            if number % 20 == 0:
                time.sleep(0.001)  # spread over the few milliseconds that connecting takes
        publisher.close()
    assert [int(body) for body in listener.until(1000)] == list(range(1000))


def test_closing_waits_for_what_is_on_its_way(mosquitto: Any, listener: Listener) -> None:
    sink = open_sink(MqttSink(mqtt="out", broker=mosquitto.address), Path())
    sink.write(frame(7))
    sink.close()
    assert json.loads(listener.until(1)[0])["reading"] == {"t": 7}


def test_what_is_published_while_the_broker_is_away_waits_for_it(mosquitto: Any) -> None:
    mosquitto.stop()
    told: list[str] = []
    heard = threading.Event()
    publisher = Publisher(parse_broker(mosquitto.address, "b"), lambda message: (told.append(message), heard.set())[0])
    try:
        assert publisher.publish("out", b"first")
        assert heard.wait(30)
        assert "no MQTT broker answers" in told[0]
        mosquitto.start()
        listener = Listener(mosquitto.port)
        try:
            # It comes back within its back-off; what waited is not lost.
            assert publisher.publish("out", b"second")
            assert listener.until(2) == [b"first", b"second"]
        finally:
            listener.close()
    finally:
        publisher.close()
    assert publisher.dropped == 0


def test_beyond_the_limit_messages_are_given_up_counted_and_told_once(mosquitto: Any) -> None:
    mosquitto.stop()
    told: list[str] = []
    publisher = Publisher(parse_broker(mosquitto.address, "b"), told.append, limit=10)
    try:
        taken = [publisher.publish("out", b"x") for _ in range(25)]
        assert taken == [True] * 10 + [False] * 15
        assert publisher.dropped == 15
        assert sum("newer ones are given up" in message for message in told) == 1
    finally:
        publisher.close()
        publisher.close()
    assert publisher.dropped == 25
    assert told[-1].startswith("10 messages for the MQTT broker") and told[-1].endswith("not sent before the end")
    assert not publisher.publish("out", b"late")


def test_an_outage_is_told_at_the_next_write(mosquitto: Any) -> None:
    mosquitto.stop()
    sink = open_sink(MqttSink(mqtt="out", broker=mosquitto.address), Path())
    told = ""
    while "no MQTT broker answers" not in told:
        try:
            sink.write(frame(0))
        except Retryable as error:  # or first, where the outage is noticed late: that too many wait
            told = str(error)
    with pytest.raises(Retryable, match="not sent before the end"):
        sink.close()
    sink.close()


@pytest.mark.parametrize(
    ("topic", "broker", "says"),
    [("out/#", "localhost", "wildcard"), ("", "localhost", "not an MQTT topic"), ("out", "::", "host:port")],
)
def test_what_cannot_be_published_to_is_refused_at_the_start(topic: str, broker: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        open_sink(MqttSink(mqtt=topic, broker=broker), Path())
