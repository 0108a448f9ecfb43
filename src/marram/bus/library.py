"""The NATS client library, imported without what we never use of it.

Where aiohttp is installed, nats-py loads it for WebSockets: 16 MB more for an agent that may have 45.
"""

from __future__ import annotations

import sys

_unwanted = "aiohttp" not in sys.modules
if _unwanted:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # how Python spells "not to be found"
try:
    from nats import errors as nats_errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.transport import Transport
finally:
    if _unwanted:
        del sys.modules["aiohttp"]

__all__ = ["Client", "Msg", "Transport", "nats_errors"]
