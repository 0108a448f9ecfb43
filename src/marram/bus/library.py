"""The NATS client library, imported without what we never use of it.

- aiohttp, for WebSockets: 16 MB more, where it is installed, for an agent that may have 45.
- JetStream: our bus carries and never stores. Its client brings a mail parser along.
- What is installed, to tell the server the library's own version.
"""

from __future__ import annotations

import sys
from types import ModuleType

_unwanted: dict[str, ModuleType | None] = {
    "aiohttp": None,  # how Python spells "not to be found", which is expected of this one
    "importlib.metadata": None,
    "nats.js.client": ModuleType("nats.js.client"),
    "nats.js.manager": ModuleType("nats.js.manager"),
}
_unwanted = {name: stand_in for name, stand_in in _unwanted.items() if name not in sys.modules}
for _module, _named in (("nats.js.client", "JetStreamContext"), ("nats.js.manager", "JetStreamManager")):
    if (_stand_in := _unwanted.get(_module)) is not None:
        setattr(_stand_in, _named, type(_named, (), {}))
sys.modules.update(_unwanted)  # type: ignore[arg-type]
try:
    from nats import errors as nats_errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.transport import Transport
finally:
    for _module in _unwanted:
        del sys.modules[_module]

__all__ = ["Client", "Msg", "Transport", "nats_errors"]
