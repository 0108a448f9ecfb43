"""What keeps strangers cheap: caps on request bodies, limits on failed attempts by address and by account.

All are in memory and of fixed size. They must never stand between an honest caller with the right token and its
answer, nor shut a person out for good.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marram.cloud.api.faults import TooLarge, TooMany, reply
from marram.schema.api import MAX_BLOB_BYTES, MAX_REQUEST_BYTES, PREFIX
from marram.schema.units import format_size


class BodyLimit:
    """ASGI middleware: refuses a body larger than its path takes, by its declared length or as it streams in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = MAX_BLOB_BYTES if scope["path"].startswith(f"{PREFIX}/blobs/") else MAX_REQUEST_BYTES
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        error = TooLarge(f"the request is larger than {format_size(limit)}, the most this path takes")
        if not declared.isdigit() or int(declared) > limit:
            await reply(error)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise error
            return message

        await self._app(scope, counted, send)


class FailureLimit:
    """A token bucket of failures for each key (an address): `burst` at once, then one every `refill_s` seconds.

    Keeps the `remembered` keys that failed last. Thread-safe.
    """

    def __init__(
        self,
        burst: int = 20,
        refill_s: float = 3.0,
        remembered: int = 4096,
        clock: Callable[[], float] = time.monotonic,
        what: str = "too many wrong tokens from this address",
    ) -> None:
        self._what = what
        self._burst, self._refill_s, self._remembered, self._clock = burst, refill_s, remembered, clock
        self._lock = threading.Lock()
        # address -> failures left and when that was so, least recent first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises TooMany where the address has used its failures up."""
        with self._lock:
            left = self._now_left(address)
        if left < 1:
            raise TooMany(self._what, (1 - left) * self._refill_s)

    def failed(self, address: str) -> None:
        """Count one failure."""
        with self._lock:
            self._left[address] = (max(0.0, self._now_left(address) - 1), self._clock())
            self._left.move_to_end(address)
            if len(self._left) > self._remembered:
                self._left.popitem(last=False)

    def _now_left(self, address: str) -> float:
        left, at_s = self._left.get(address, (float(self._burst), self._clock()))
        return min(float(self._burst), left + (self._clock() - at_s) / self._refill_s)
