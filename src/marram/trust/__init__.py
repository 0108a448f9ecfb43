"""Tokens, keys, certificates, signatures: what proves who speaks. No network, no database here.

A token is `mrm1.<id><secret>.<cloud>` (a device joins with it; `cloud` is the fingerprint of the authority it may be
shown to) or `mra1.<id><secret>` (a person or program uses the API with
it). Only the SHA-256 of a secret is kept: with 190 random bits, there is nothing to guess and nothing to salt.
"""

from __future__ import annotations

from marram.trust.tokens import API, JOIN, Token, hash_secret, new_token, parse_token, proves

__all__ = [
    "API",
    "JOIN",
    "Token",
    "hash_secret",
    "new_token",
    "parse_token",
    "proves",
]
