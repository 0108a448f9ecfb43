"""The supervised client: one connection to the broker that is rebuilt until it is closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class BusState(StrEnum):
    """Where the connection stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"  # the broker knows us not (see `Bus.refused`); tried again, slowly
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Message:
    """What a handler gets. What the handler returns (bytes) is the reply, where one is `wanted`."""

    subject: str
    payload: bytes
    wanted: bool


Handler = Callable[[Message], Awaitable[bytes | None]]


class Bus:
    """One connection. All methods on one event loop.

    A handler that raises a MarramError makes the asker's `request` raise the same error (kind and text); any other
    exception is logged and becomes Retryable there.
    """

    refused: str | None  # why the broker refuses us, else None
    rtt_s: float | None  # last measured round trip to the broker

    @classmethod
    async def connect(
        cls,
        urls: str | Sequence[str],
        user: str,
        password: str,
        *,
        name: str = "",
        inbox_prefix: str | None = None,  # default _INBOX_<user>
        on_state: Callable[[BusState], None] | None = None,
    ) -> Bus:
        """Start connecting and return at once; the broker need not be there yet."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        raise NotImplementedError

    @property
    def state(self) -> BusState:
        raise NotImplementedError

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Raises NotReady (timeout), Refused (the broker refuses us), Permanent (closed)."""
        raise NotImplementedError

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Raises NotReady (not connected, nobody answers there), Retryable (timeout, link lost), Refused (not permitted),
        Invalid (too big), or the MarramError the handler at the other end raised."""
        raise NotImplementedError

    async def publish(self, subject: str, payload: bytes) -> None:
        """Raises NotReady (not connected), Invalid (too big). Arrival is not promised."""
        raise NotImplementedError

    async def subscribe(self, subject: str, handler: Handler, queue: str | None = None, *, parallel: int = 1) -> None:
        """From now on, over every reconnect. `parallel` > 1: so many messages are handled side by side, order not kept."""
        raise NotImplementedError

    async def close(self) -> None:
        """Any number of times."""
        raise NotImplementedError
