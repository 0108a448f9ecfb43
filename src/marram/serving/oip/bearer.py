"""The token that a request brings, over either way: `Authorization: Bearer TOKEN`. It says nothing of whose it is."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope


def by_header(scope: Scope) -> str:
    """Of a request over HTTP; "" where there is none."""
    sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return _token(sent.decode("latin-1"))


def by_metadata(metadata: Mapping[str, str]) -> str:
    """Of a call over gRPC; "" where there is none."""
    return _token(metadata.get("authorization", ""))


def _token(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
