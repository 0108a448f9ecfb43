"""One-time codes: they spare a person on the cloud's own machine the typing of a token. In memory, once, for an hour.

A session itself is an API token like any other (`cloud.access`), in a cookie that no script reads: it ends with its
person, by signing out, or by its time, whichever process of the cloud is asked.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

CODE_LIFE_S = 3600
# A person's session in a browser; the machine's is `access.MACHINE_SESSION_S`.
LIFE_S = 7 * 86400
_MOST_CODES = 100


class Codes:
    """Makes codes and takes them back. `clock` is Unix time. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[str, float] = {}

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
