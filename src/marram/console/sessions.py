"""Who may see the page: signed session cookies, and one-time codes that spare a person the token on this machine.

A cookie is an expiry and a signature under the cloud's session key, so it survives a restart of the cloud and dies
with the API token. Nothing is stored. Codes live in memory, work once and for an hour.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable

LIFE_S = 7 * 86400
CODE_LIFE_S = 3600
_MOST_CODES = 100


class Sessions:
    """Makes and checks cookies and codes. `clock` is Unix time. Thread-safe."""

    def __init__(self, key: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        """`key` is asked each time: it changes with the API token."""
        self._key, self._clock = key, clock
        self._lock = threading.Lock()
        self._codes: dict[str, float] = {}

    def cookie(self) -> str:
        """A cookie that opens the page for `LIFE_S` from now."""
        body = f"{int(self._clock() + LIFE_S)}.{secrets.token_hex(8)}"
        return f"{body}.{self._sign(body)}"

    def opens(self, cookie: str | None) -> bool:
        """Whether `cookie` is one of ours and not expired."""
        if not cookie or len(cookie) > 200 or not cookie.isascii():
            return False
        body, _, signature = cookie.rpartition(".")
        expires = body.partition(".")[0]
        if not expires.isdecimal() or not hmac.compare_digest(signature, self._sign(body)):
            return False
        return self._clock() < int(expires)

    def new_code(self) -> str:
        """A code that signs in once, within the hour."""
        code = secrets.token_urlsafe(16)
        with self._lock:
            self._forget()
            while len(self._codes) >= _MOST_CODES:
                self._codes.pop(next(iter(self._codes)))
            self._codes[code] = self._clock() + CODE_LIFE_S
        return code

    def take_code(self, code: str) -> bool:
        """Whether `code` is good; it is used up by that."""
        with self._lock:
            self._forget()
            return self._codes.pop(code, None) is not None

    def _forget(self) -> None:
        now_s = self._clock()
        self._codes = {code: until_s for code, until_s in self._codes.items() if until_s > now_s}

    def _sign(self, body: str) -> str:
        return hmac.digest(self._key(), body.encode(), hashlib.sha256).hex()
