"""The few errors Marram raises, named by the caller's next move.

A library's own exceptions are translated at the seam (`raise Retryable(...) from error`), so that the
floors above never need to know which library stands below. Every message to a person names the thing,
what is wrong with it, and the next step.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import ClassVar


class MarramError(Exception):
    """The root: `what` is wrong, `where` it is (file:line, field, device …), `hint`: the next step.

    `str(error)` is the one line a person reads: ``where: what. hint``. `kind` names the class wherever an error travels
    (the HTTP API, the bus, a worker's channel); `KINDS` is the way back.
    """

    kind: ClassVar[str] = "permanent"

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if not self.hint:
            return line
        return f"{line} {self.hint}" if line.endswith((".", "?", "!")) else f"{line}. {self.hint}"


class Retryable(MarramError):
    """It failed now and may work later, unchanged: try again, with back-off."""

    kind = "retryable"


class NotReady(Retryable):
    """Something it needs is not there yet (a replica starting, a link not up): wait for that, then try again."""

    kind = "not_ready"


class Busy(Retryable):
    """Nothing is wrong but the queue: ask elsewhere, or after `queue_s`, which one more would have waited."""

    kind = "busy"

    def __init__(
        self, what: str, *, queue_s: float = 0.0, waiting: int = 0, where: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.queue_s = queue_s
        self.waiting = waiting


class Permanent(MarramError):
    """It will fail again however often it is tried: change something first."""

    kind = "permanent"


class Invalid(Permanent):
    """The input is wrong (app file, model, tensor, image, argument): mend it at `where`."""

    kind = "invalid"


class Missing(Permanent):
    """The named thing does not exist (model, device, file, camera, app)."""

    kind = "missing"


class Refused(Permanent):
    """The caller is not allowed to: another identity, token or setting is needed."""

    kind = "refused"


class Conflict(Permanent):
    """Somebody else holds it, or it exists already with other content (a second agent on a folder, a taken name)."""

    kind = "conflict"


class Threat(StrEnum):
    """What a refusal defends against: a name for each, so that an operator (and a test) knows which check held."""

    UNSIGNED = "unsigned"  # nobody we trust has signed it
    TAMPERED = "tampered"  # its content is not what was signed
    ROLLBACK = "rollback"  # older than what was seen before
    FREEZE = "freeze"  # signed long ago and expired: somebody may be holding the newer one back
    MIX_AND_MATCH = "mix and match"  # parts that were never signed together
    ENDLESS = "endless data"  # more bytes than were announced or allowed
    SLOW = "slow data"  # so slow that it would never end
    WRONG_KEY = "wrong key"  # signed by keys that are not (or not enough of) those we trust
    SPENT = "spent token"  # a join token used before
    STALE = "expired token"
    UNKNOWN = "unknown token"  # a guess, or one that was revoked
    OTHER_CLOUD = "other cloud"  # not the cloud that the token or the certificate names
    CLONED = "cloned identity"  # an identity that somebody else uses, or one that was replaced
    REVOKED = "revoked identity"
    EXPIRED = "expired identity"
    NOT_YOURS = "not yours"  # speaking or listening as another
    TRAVERSAL = "path traversal"
    BOMB = "zip bomb"
    PICKLE = "pickle"
    EXHAUSTION = "exhaustion"  # takes more memory or time than a file of its size may
    CRASH = "crash"  # takes down whoever opens it


class Untrusted(Refused):
    """A check of identity, signature or content failed: `threat` names what it would have let in.

    Its words begin with the threat's name, from which it is known again where it travelled as text, `where` before it.
    """

    kind = "untrusted"

    def __init__(
        self, what: str, *, threat: Threat | None = None, where: str | None = None, hint: str | None = None
    ) -> None:
        named = next((each for each in Threat if re.match(rf"(\S+: )?{each.value}: ", what)), None)
        super().__init__(f"{threat.value}: {what}" if threat and threat is not named else what, where=where, hint=hint)
        self.threat = threat or named


KINDS: dict[str, type[MarramError]] = {
    error.kind: error
    for error in (Retryable, NotReady, Busy, Permanent, Invalid, Missing, Refused, Conflict, Untrusted)
}
