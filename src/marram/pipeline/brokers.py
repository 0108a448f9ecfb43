"""Local MQTT brokers: how a client is made, and a publisher that never makes anybody wait.

These are the brokers of the site (Mosquitto on the gateway, a PLC's), not Marram's own bus to the cloud.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from marram.pipeline.addresses import Broker
from marram.schema.errors import MarramError, Refused, Retryable

_CONNECT_TIMEOUT_S = 5.0
_FLUSH_S = 2.0
# CONNACK reasons that another try will not mend: the two of MQTT 3.1.1 that name the user.
_REFUSALS = (
    ReasonCode(PacketTypes.CONNACK, "Bad user name or password"),
    ReasonCode(PacketTypes.CONNACK, "Not authorized"),
)


def make_client(broker: Broker) -> paho.Client:
    """A client that is not connected yet; it reconnects by itself, after 1 s first and 30 s at most."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect_timeout = _CONNECT_TIMEOUT_S
    client.reconnect_delay_set(min_delay=1, max_delay=30)
    # What a callback raises belongs in the log of that callback, never in paho's network thread.
    client.suppress_exceptions = True
    if broker.user is not None:
        client.username_pw_set(broker.user, broker.password)
    if broker.tls:
        client.tls_set()
    return client


def unreachable(broker: Broker, error: OSError | ValueError) -> Retryable:
    """What a person reads where nothing answers at `broker`."""
    why = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    return Retryable(f"no MQTT broker answers at {broker} ({why})", hint="Is it running, and is the address right?")


def refused(broker: Broker, reason: ReasonCode) -> MarramError:
    """What a person reads where `broker` answers and will not have us."""
    if reason in _REFUSALS:
        hint = "Write the broker as mqtt://user:password@host:port."
        return Refused(f"the MQTT broker at {broker} refuses this user ({str(reason).lower()})", hint=hint)
    return Retryable(f"the MQTT broker at {broker} refuses the connection ({str(reason).lower()})")


class Publisher:
    """Publishes in the background, at least once (QoS 1), through reconnections.

    Bounded: beyond `limit` unacknowledged messages new ones are given up and counted in `dropped`. `publish` never
    blocks and never raises; `on_error` hears once of each outage and each overflow. Messages keep their order, but for
    those under way when a connection breaks: they are sent again, and may come after newer ones.
    """

    def __init__(self, broker: Broker, on_error: Callable[[str], None], limit: int = 1000) -> None:
        self.dropped = 0
        self._broker = broker
        self._on_error = on_error
        self._changed = threading.Condition()
        # What is published while there is no connection. Left to paho it would be overtaken by what is published
        # between the socket's opening and the broker's word that we are in.
        self._waiting: deque[tuple[str, bytes | str]] = deque()
        self._in = False
        self._unacknowledged: set[int] = set()
        self._early: set[int] = set()
        self._limit = limit
        self._away_told = self._full_told = self._closed = False
        self._client = make_client(broker)
        self._client.max_queued_messages_set(limit)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._failed
        self._client.on_disconnect = self._disconnected
        self._client.on_publish = self._acknowledged
        self._client.connect_async(broker.host, broker.port)
        self._client.loop_start()

    def publish(self, topic: str, body: bytes | str) -> bool:
        """Whether the message was taken. Safe from any thread."""
        if self._closed:
            return False
        with self._changed:
            full = len(self._waiting) + len(self._unacknowledged) >= self._limit
            if not full and not self._in:
                self._waiting.append((topic, body))
                return True
        return self._send(topic, body) if not full else self._overflow()

    def _send(self, topic: str, body: bytes | str) -> bool:
        try:
            info = self._client.publish(topic, body, qos=1)
        except ValueError as error:  # a topic or a payload that MQTT cannot carry
            self._drop(f"cannot publish to {topic}: {error}")
            return False
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            return self._overflow()
        with self._changed:
            if info.mid in self._early:
                self._early.discard(info.mid)
            else:
                self._unacknowledged.add(info.mid)
        return True

    def _overflow(self) -> bool:
        if not self._full_told:
            self._full_told = True
            self._drop(f"{self._limit} messages wait for the MQTT broker at {self._broker}: newer ones are given up")
        else:
            self.dropped += 1
        return False

    def close(self) -> None:
        """Give what waits two seconds to leave, then stop; what did not is dropped, told. Any number of times."""
        if self._closed:
            return
        self._closed = True
        with self._changed:
            until_s = time.monotonic() + _FLUSH_S
            # Also while it is still connecting for the first time: only a broker known to be away is not waited for.
            while (self._waiting or self._unacknowledged) and not self._away_told:
                if not self._changed.wait(until_s - time.monotonic()):
                    break
        self._client.disconnect()
        self._client.loop_stop()
        left = len(self._waiting) + len(self._unacknowledged)
        if left:
            self._drop(f"{left:,} messages for the MQTT broker at {self._broker} were not sent before the end", left)

    def _drop(self, message: str, by: int = 1) -> None:
        self.dropped += by
        self._on_error(message)

    def _connected(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._tell_away(str(refused(self._broker, reason)))
        else:
            self._away_told = self._full_told = False
            self._send_waiting()

    def _send_waiting(self) -> None:
        """In order: what is published meanwhile waits too, until nothing does."""
        while True:
            with self._changed:
                if not self._waiting:
                    self._in = True
                    return
                topic, body = self._waiting.popleft()
            self._send(topic, body)

    def _failed(self, client: paho.Client, data: Any) -> None:
        self._tell_away(f"no MQTT broker answers at {self._broker}; what is published waits")

    def _disconnected(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._in = False
        if reason.is_failure and not self._closed:
            self._tell_away(f"the MQTT broker at {self._broker} went away; what is published waits")

    def _tell_away(self, message: str) -> None:
        if not self._away_told:
            self._away_told = True
            self._on_error(message)
        with self._changed:
            self._changed.notify_all()

    def _acknowledged(self, client: paho.Client, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        with self._changed:
            # The acknowledgement may overtake the return of `publish`.
            if mid in self._unacknowledged:
                self._unacknowledged.discard(mid)
            else:
                self._early.add(mid)
            self._changed.notify_all()
