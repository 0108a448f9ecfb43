"""The word `serve` of an app: who else may ask its models, on which ports.

YAML reads `yes` and `no` as true and false: neither is ever taken for a port.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from marram.schema.addresses import is_loopback
from marram.schema.model import Strict

_Port = Annotated[int, Field(ge=1, le=65_535)]


class Serve(Strict):
    """The app's models answer others through the Open Inference Protocol: over HTTP, over gRPC, on `host`."""

    http: _Port | None = None
    grpc: _Port | None = None
    host: str = Field(default="127.0.0.1", min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _no_switch(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name in ("http", "grpc"):
                if isinstance(value.get(name), bool):
                    raise ValueError(f"{name} is a port, such as 8000")
        return value

    @model_validator(mode="after")
    def _somewhere(self) -> Serve:
        if self.http is None and self.grpc is None:
            raise ValueError("names no port; write serve: 8000, or http: and grpc: with one each")
        if self.http == self.grpc:
            raise ValueError(f"http and grpc both have port {self.http}; give each its own")
        if not is_loopback(self.host):
            raise ValueError(f"host {self.host} would let in whoever reaches the device; write 127.0.0.1 or ::1")
        return self


def _serve(value: object) -> object:
    if value is False:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 65_535:
            raise ValueError(f"{value} is no port; write 1 to 65535")
        return {"http": value}
    if not isinstance(value, dict | Serve | None):
        raise ValueError("is a port, such as 8000, or {http: 8000, grpc: 8001, host: 127.0.0.1}")
    return value


_PORT_SCHEMA = {"type": "integer", "minimum": 1, "maximum": 65_535}
ServeField = Annotated[
    Serve | None,
    BeforeValidator(_serve),
    WithJsonSchema(
        {
            "anyOf": [
                _PORT_SCHEMA,
                {"const": False},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"http": _PORT_SCHEMA, "grpc": _PORT_SCHEMA, "host": {"type": "string"}},
                },
            ]
        },
        mode="validation",
    ),
]
