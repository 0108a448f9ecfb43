"""MQTT by its names: where a broker is, and what a topic may be.

Apart from `brokers`, which speaks MQTT: that an app's topics are right can be said without its library, which with the
TLS and HTTP that it loads is 7 MB of a worker's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from marram.schema.errors import Invalid


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker is and how to sign in. `str` leaves the password out."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_broker(text: str, where: str) -> Broker:
    """`host`, `host:port`, `mqtt://user:password@host:port` or `mqtts://…`. Raises Invalid naming `where`."""
    try:
        url = urlsplit(text if "://" in text else f"mqtt://{text}")
        tls = url.scheme == "mqtts"
        port = url.port or (8883 if tls else 1883)
        good = url.scheme in ("mqtt", "mqtts") and url.hostname and url.path in ("", "/") and " " not in text
    except ValueError:
        good = False
    if not good:
        raise Invalid(f'"{text}" is not a broker; write host:port, as in localhost:1883', where=where)
    return Broker(
        str(url.hostname),
        port,
        unquote(url.username) if url.username else None,
        unquote(url.password) if url.password else None,
        tls,
    )


def check_topic(topic: str, where: str, *, filter_: bool = False) -> None:
    """Raises Invalid where MQTT would not take `topic` (with `filter_`: as a subscription, where + and # may stand)."""
    if not topic or len(topic.encode("utf-8", "replace")) > 65_535 or "\0" in topic:
        raise Invalid(
            f'"{topic:.40}" is not an MQTT topic', where=where, hint="Write for example sensors/pump7/vibration."
        )
    levels = topic.split("/")
    if not filter_ and ("+" in topic or "#" in topic):
        raise Invalid(f'"{topic}" has a wildcard, and one publishes to a single topic', where=where)
    misplaced = any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]
    if filter_ and misplaced:
        raise Invalid(
            f'"{topic}" has a wildcard out of place',
            where=where,
            hint="+ stands for one whole level, # for all at the end.",
        )
