"""mqtt source: a real broker, one that is away, one that goes away, and what people publish."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from marram.pipeline.addresses import parse_broker
from marram.pipeline.contract import Frame
from marram.pipeline.sources.mqtt import Mqtt, open_source
from marram.schema.app import MqttSource
from marram.schema.errors import Invalid, Refused, Retryable

Send = Callable[..., None]


@pytest.fixture
def send(mosquitto: Any) -> Iterator[Send]:
    """Publish to the broker; returns when the broker has taken it."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()

    def publish(topic: str, payload: Any) -> None:
        body = payload if isinstance(payload, (bytes, str)) else json.dumps(payload)
        client.publish(topic, body, qos=1).wait_for_publish(30)

    yield publish
    client.disconnect()
    client.loop_stop()


class Reading:
    """A source whose frames are read in a thread, as the runner does."""

    def __init__(self, source: Mqtt) -> None:
        self.source = source
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self.ended = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        with source._changed:
            source._changed.wait_for(lambda: source._subscribed or self.ended, 30)

    def _read(self) -> None:
        try:
            for frame in self.source.frames():
                with self._changed:
                    self.frames.append(frame)
                    self._changed.notify_all()
        except Exception as error:
            self.error = error
        finally:
            self.ended = True

    def until(self, count: int) -> list[Frame]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.frames) >= count, 30)
            return list(self.frames)

    def close(self) -> None:
        self.source.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def subscribe(mosquitto: Any) -> Iterator[Callable[..., Reading]]:
    opened: list[Reading] = []

    def start(topic: str = "plant/#", *, limit: int = 1000, **options: Any) -> Reading:
        spec = MqttSource.model_validate({"mqtt": topic, "broker": mosquitto.address, **options})
        opened.append(Reading(Mqtt(spec, limit=limit)))
        return opened[-1]

    yield start
    for reading in opened:
        reading.close()


def test_each_message_is_a_reading_in_order(subscribe: Any, send: Send) -> None:
    reading = subscribe()
    for number in range(50):
        send("plant/pump7", {"n": number})
    frames = reading.until(50)
    assert [f.reading["n"] for f in frames] == list(range(50))
    assert [f.index for f in frames] == list(range(50))
    assert {f.name for f in frames} == {"plant/pump7"}
    assert frames[0].time_s > 1_700_000_000
    assert reading.source.skipped == reading.source.errors == 0


@pytest.mark.parametrize(
    ("payload", "wanted", "tensor"),
    [
        ('{"a": 1, "b": 2.5, "unit": "K"}', {"a": 1, "b": 2.5, "unit": "K"}, [[1, 2.5]]),
        ("21.5", 21.5, [[21.5]]),
        ("[1, 2, 3]", [1, 2, 3], [[1], [2], [3]]),
        ('{"x": [1, 2], "y": [3, 4]}', {"x": [1, 2], "y": [3, 4]}, [[1, 3], [2, 4]]),
        ("on", "on", None),
        ('{"a": null}', {"a": None}, None),
        ('{"a": "b"}', {"a": "b"}, None),
        ("[1, null]", [1, None], None),
        ("true", True, None),
        ("", "", None),
        ("{broken", "{broken", None),
        ('{"a": NaN}', '{"a": NaN}', None),
        (b"\xff\x00\x01", b"\xff\x00\x01", None),
        ("[" * 5000, "[" * 5000, None),
        ("[[1], [2, 3]]", [[1], [2, 3]], None),
    ],
)
def test_payloads_are_what_they_say(subscribe: Any, send: Send, payload: Any, wanted: Any, tensor: Any) -> None:
    reading = subscribe()
    send("plant/x", payload)
    (frame,) = reading.until(1)
    assert frame.reading == wanted
    assert (frame.tensor if frame.tensor is None else frame.tensor.tolist()) == tensor


def test_only_the_topic_asked_for(subscribe: Any, send: Send) -> None:
    reading = subscribe("plant/+/temperature")
    send("plant/1/pressure", 1)
    send("plant/1/temperature", 2)
    send("office/1/temperature", 3)
    send("plant/2/temperature", 4)
    assert [f.reading for f in reading.until(2)] == [2, 4]


def test_a_flood_keeps_the_newest_and_counts_the_rest(mosquitto: Any, send: Send) -> None:
    source = Mqtt(MqttSource(mqtt="plant/#", broker=mosquitto.address), limit=10)
    frames = source.frames()
    send_first = threading.Thread(target=lambda: send("plant/x", -1))
    # The first frame also subscribes; from then on nobody takes any.
    timer = threading.Timer(0, lambda: _when(source, send_first.start))
    timer.start()
    assert next(frames).reading == -1
    for number in range(30):
        send("plant/x", number)
    with source._changed:
        assert source._changed.wait_for(lambda: source.skipped + len(source._waiting) == 30, 30)
    assert source.skipped == 20
    assert [next(frames).reading for _ in range(10)] == list(range(20, 30))
    source.close()
    assert list(frames) == []
    timer.join()


def _when(source: Mqtt, then: Callable[[], None]) -> None:
    with source._changed:
        source._changed.wait_for(lambda: source._subscribed, 30)
    then()


def test_every_takes_the_newest_so_often(subscribe: Any, send: Send) -> None:
    reading = subscribe(every="1 h")
    send("plant/x", 1)
    reading.until(1)
    for number in range(5):
        send("plant/x", number)
    assert len(reading.frames) == 1
    assert reading.source.skipped == 0


def test_windows_gather_rows_by_arrival(subscribe: Any, send: Send) -> None:
    reading = subscribe(window="200 ms")
    sent = 0
    while len(reading.frames) < 3:
        send("plant/x", {"t": sent, "name": "a"})
        sent += 1
    reading.close()
    values = [value for frame in reading.frames for value in frame.reading["t"]]
    assert values == list(range(len(values)))
    for frame in reading.frames:
        assert frame.tensor is not None
        assert frame.tensor.shape == (len(frame.reading["t"]), 1)
        assert set(frame.reading) == {"t", "name"}


def test_a_window_is_due_also_where_messages_stop(subscribe: Any, send: Send) -> None:
    reading = subscribe(window="100 ms")
    send("plant/x", 1)
    send("plant/x", 2)
    (frame, *_) = reading.until(1)
    assert frame.reading["value"][0] == 1


def test_messages_that_do_not_fit_the_window_are_counted(subscribe: Any, send: Send) -> None:
    reading = subscribe(window="300 ms")
    for payload in ('"text"', '{"a": 1, "b": 2}', '{"a": 1}', '{"a": "x", "b": 1}', "7", '{"a": 3, "b": 4, "c": 5}'):
        send("plant/x", payload)
    (frame, *_) = reading.until(1)
    assert frame.reading == {"a": [1, 3], "b": [2, 4]}
    assert reading.source.errors == 4
    assert "the message was left out" in reading.source.last_error


# ---------------------------------------------------------------- the broker


def test_a_broker_that_is_away_is_said_at_once(mosquitto: Any) -> None:
    mosquitto.stop()
    source = open_source(MqttSource(mqtt="t", broker=mosquitto.address), Path())
    with pytest.raises(Retryable, match=f"no MQTT broker answers at {mosquitto.address} .*refused") as away:
        next(source.frames())
    assert "Is it running" in str(away.value)
    mosquitto.start()
    threading.Timer(0, lambda: _when(source, source.close)).start()  # type: ignore[arg-type]
    assert list(source.frames()) == []


def test_a_name_that_is_no_host_is_said_at_once() -> None:
    source = open_source(MqttSource(mqtt="t", broker="no-such-host.invalid:1883"), Path())
    with pytest.raises(Retryable, match=r"no MQTT broker answers at no-such-host\.invalid:1883"):
        next(source.frames())


def test_what_is_no_broker_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.pipeline.sources.mqtt._CONNACK_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = open_source(MqttSource(mqtt="t", broker=f"127.0.0.1:{silent.getsockname()[1]}"), Path())
        with pytest.raises(Retryable, match="is not an MQTT broker"):
            next(source.frames())


def test_a_user_who_is_refused_is_said(tmp_path: Path, mosquitto: Any) -> None:
    locked = type(mosquitto)(tmp_path, "allow_anonymous false")
    try:
        source = open_source(MqttSource(mqtt="t", broker=locked.address), Path())
        with pytest.raises(Refused, match="refuses this user") as refused:
            next(source.frames())
        assert "mqtt://user:password@" in str(refused.value)
    finally:
        locked.stop()


def test_a_broker_that_goes_away_comes_back_and_so_do_we(subscribe: Any, mosquitto: Any) -> None:
    reading = subscribe("plant/x")
    source = reading.source
    client = paho.Client(CallbackAPIVersion.VERSION2)
    again = threading.Event()
    answered = source._answered

    def subscribed_again(*arguments: Any) -> None:
        answered(*arguments)
        again.set()

    # paho looks its callbacks up at each packet: the next subscription tells us.
    source._answered = subscribed_again
    mosquitto.stop()
    mosquitto.start()
    with source._changed:
        assert source._changed.wait_for(lambda: source.errors > 0, 30)
    assert "went away" in source.last_error
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    try:
        # Retained: it is there whenever the source has subscribed again.
        client.publish("plant/x", "5", qos=1, retain=True).wait_for_publish(30)
        assert reading.until(1)[0].reading == 5
    finally:
        client.disconnect()
        client.loop_stop()
    assert reading.error is None


@pytest.mark.parametrize("topic", ["", "a/#/b", "a+/b", "#/a", "a\0b", "a/b#"])
def test_a_topic_that_is_none_is_refused_at_the_start(topic: str) -> None:
    with pytest.raises(Invalid, match=r"source\.mqtt"):
        open_source(MqttSource(mqtt=topic), Path())


@pytest.mark.parametrize(
    ("text", "host", "port", "user", "tls"),
    [
        ("localhost:1883", "localhost", 1883, None, False),
        ("10.0.0.7", "10.0.0.7", 1883, None, False),
        ("[::1]:1884", "::1", 1884, None, False),
        ("mqtt://ann:p%40ss@plc:1999", "plc", 1999, "ann", False),
        ("mqtts://plc", "plc", 8883, None, True),
    ],
)
def test_addresses(text: str, host: str, port: int, user: str | None, tls: bool) -> None:
    broker = parse_broker(text, "source.broker")
    assert (broker.host, broker.port, broker.user, broker.tls) == (host, port, user, tls)
    assert "p@ss" not in str(broker)


@pytest.mark.parametrize("text", ["", "host:port", "http://host:1883", "host:99999", "a b", "host:1883/path", ":1883"])
def test_an_address_that_is_none_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(Invalid, match=r"source\.broker: .*host:port"):
        open_source(MqttSource(mqtt="t", broker=text), Path())
