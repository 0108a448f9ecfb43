"""A secret that is no token: the key that signs the console's sessions."""

from __future__ import annotations

import hashlib
import hmac


def session_key(api_secret_hash: str) -> bytes:
    """What signs the console's cookies: the same after a restart, another where the API token is another."""
    return hmac.digest(api_secret_hash.encode(), b"marram console session", hashlib.sha256)
