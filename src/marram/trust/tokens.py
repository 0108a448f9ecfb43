"""Tokens: made, taken apart, and proven against the hash that was kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass

from marram.schema.errors import Refused

JOIN = "mrm1"
API = "mra1"

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 8
_SECRET_LENGTH = 32  # 62^32: 190 bits
_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{43}")  # SHA-256 in base64url


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart. `id` is no secret: it finds the row; `secret` proves it."""

    kind: str
    id: str
    secret: str
    # Of a join token: which cloud it is for, the fingerprint of its authority (`trust.pki.fingerprint`).
    cloud: str = ""

    @property
    def text(self) -> str:
        """As a person carries it: `mrm1.k7Qe…`."""
        return f"{self.kind}.{self.id}{self.secret}" + (f".{self.cloud}" if self.cloud else "")

    @property
    def secret_hash(self) -> str:
        """What is kept of it: hex SHA-256."""
        return hash_secret(self.secret)


def new_token(kind: str, cloud: str = "") -> Token:
    """A fresh token of `kind` (JOIN or API), from the system's own randomness; JOIN: for the cloud so fingerprinted."""
    return Token(kind, _random(_ID_LENGTH), _random(_SECRET_LENGTH), cloud)


def parse_token(text: str, kind: str) -> Token:
    """Take `text` apart. Raises Refused where it is no token of `kind`; the message never repeats the token."""
    prefix, dot, rest = text.strip().partition(".")
    if prefix != kind or not dot:
        what = "a join token starts with mrm1." if kind == JOIN else "an API token starts with mra1."
        raise Refused(f"this is not a token of the right kind: {what}", hint=_hint(kind))
    rest, _, cloud = rest.partition(".") if kind == JOIN else (rest, "", "")
    whole = len(rest) == _ID_LENGTH + _SECRET_LENGTH and set(rest) <= set(_ALPHABET)
    if not whole or (kind == JOIN and not _FINGERPRINT.fullmatch(cloud)):
        raise Refused("the token is not complete", hint=f"Copy all of it. {_hint(kind)}")
    return Token(kind, rest[:_ID_LENGTH], rest[_ID_LENGTH:], cloud)


def hash_secret(secret: str) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()


def proves(secret: str, secret_hash: str) -> bool:
    """Whether `secret` is the one `secret_hash` was made of; takes the same time wherever they differ."""
    return hmac.compare_digest(hash_secret(secret), secret_hash)


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _hint(kind: str) -> str:
    return "Make one on the cloud: marram token create" if kind == JOIN else "`marram cloud` prints where it keeps it."
