"""Greengrass V1's SDK as user code sees it: `greengrasssdk.client("iot-data")`. Marram's own, from its documentation.

| client | here |
|---|---|
| `iot-data` | `publish`, `get_thing_shadow`, `update_thing_shadow`, `delete_thing_shadow` |
| `lambda` | `invoke` raises InvocationException: name what to do instead |
| `secretsmanager` | `get_secret_value` raises SecretsManagerError: likewise |
"""

from __future__ import annotations

from typing import Any

from . import IoTDataPlane, Lambda, SecretsManager
from .Lambda import StreamingBody

__all__ = ["INTERFACE_VERSION", "StreamingBody", "client"]
__version__ = "1.6.1"
INTERFACE_VERSION = "1.5"

_CLIENTS: dict[str, type[Any]] = {
    "iot-data": IoTDataPlane.Client,
    "lambda": Lambda.Client,
    "secretsmanager": SecretsManager.Client,
}


def client(client_type: str, *args: Any) -> Any:
    """A client of one service. Raises ValueError for one that there is not."""
    if client_type not in _CLIENTS:
        raise ValueError(f'no service "{client_type}" on this device; there is {", ".join(_CLIENTS)}')
    return _CLIENTS[client_type]()
