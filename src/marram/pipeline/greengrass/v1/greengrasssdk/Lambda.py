"""The `lambda` client: there are no other functions to invoke on a Marram device, and it says so."""

from __future__ import annotations

from io import BytesIO
from typing import Any


class InvocationException(Exception):
    """The function cannot be invoked."""


class Client:
    """Invokes nothing."""

    def invoke(self, **kwargs: Any) -> dict[str, Any]:
        """Raises ValueError without `FunctionName`, else InvocationException with what to do instead."""
        if "FunctionName" not in kwargs:
            raise ValueError(
                '"FunctionName" argument of Lambda.Client.invoke is a required argument but was not provided.'
            )
        raise InvocationException(
            f"cannot invoke {kwargs['FunctionName']}: a Marram app has its functions as steps. Put the other function "
            "beside this one, import and call it; or publish on a topic that another app reads (`source: {mqtt: …}`)."
        )


class StreamingBody:
    """A payload that is read like a file."""

    def __init__(self, payload: bytes) -> None:
        self._stream = BytesIO(payload)

    def read(self, amt: int | None = None) -> bytes:
        """At most `amt` bytes, all by default."""
        return self._stream.read(amt)

    def close(self) -> None:
        """Let the payload go."""
        self._stream.close()
