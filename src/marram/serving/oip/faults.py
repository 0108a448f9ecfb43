"""Faults as the protocol tells them: a status of HTTP or a code of gRPC, and one line of text.

The text never carries a path of this machine: a person elsewhere can do nothing with it, and a stranger might.
"""

from __future__ import annotations

import re

from marram.schema.errors import Busy, Invalid, MarramError, Refused, Retryable


class TooLarge(Invalid):
    """The request is larger than is taken."""


class NotAllowed(Invalid):
    """Another method belongs here."""


class Unproven(Refused):
    """No token, or a wrong one."""


class TooMany(Retryable):
    """This address failed too often; `wait_s` until the next attempt is looked at."""

    def __init__(self, what: str, wait_s: float) -> None:
        super().__init__(what, hint=f"Wait {max(1, round(wait_s))} s.")
        self.wait_s = wait_s


# By class, the narrowest first; what is not named is told by its `kind`.
_BY_CLASS: tuple[tuple[type[MarramError], int, str], ...] = (
    (TooLarge, 413, "RESOURCE_EXHAUSTED"),
    (NotAllowed, 405, "UNIMPLEMENTED"),
    (Unproven, 401, "UNAUTHENTICATED"),
    (TooMany, 429, "RESOURCE_EXHAUSTED"),
)
_BY_KIND = {
    "invalid": (400, "INVALID_ARGUMENT"),
    "missing": (404, "NOT_FOUND"),
    "refused": (403, "PERMISSION_DENIED"),
    "untrusted": (403, "PERMISSION_DENIED"),
    "conflict": (409, "FAILED_PRECONDITION"),
    "busy": (503, "RESOURCE_EXHAUSTED"),
    "not_ready": (503, "UNAVAILABLE"),
    "retryable": (503, "UNAVAILABLE"),
    "permanent": (500, "INTERNAL"),
}
_PATH = re.compile(r"(?:/[^/\s:]+){2,}/?")


def status_of(error: MarramError) -> int:
    """HTTP's status."""
    return next((status for kind, status, _ in _BY_CLASS if isinstance(error, kind)), _BY_KIND[error.kind][0])


def code_of(error: MarramError) -> str:
    """The name of gRPC's status code."""
    return next((code for kind, _, code in _BY_CLASS if isinstance(error, kind)), _BY_KIND[error.kind][1])


def words(error: MarramError) -> str:
    """The line that is told."""
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], str(error))


def wait_s(error: MarramError) -> float | None:
    """How long to wait before trying again, where that is known."""
    if isinstance(error, TooMany):
        return error.wait_s
    return error.queue_s if isinstance(error, Busy) else None
