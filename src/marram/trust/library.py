"""python-tuf's client, imported without its own way to the network, which we never use: the device's bus brings all.

urllib3 and what it loads are a quarter of the time that a question about a signature takes on a small device.
"""

from __future__ import annotations

import sys
from types import ModuleType

_NETWORK = "tuf.ngclient.urllib3_fetcher"
_unwanted = _NETWORK not in sys.modules
if _unwanted:
    # The client names this class as its default, for callers who bring no fetcher of their own.
    sys.modules[_NETWORK] = ModuleType(_NETWORK)
    sys.modules[_NETWORK].Urllib3Fetcher = type("Urllib3Fetcher", (), {})  # type: ignore[attr-defined]
try:
    from tuf.ngclient.config import UpdaterConfig
    from tuf.ngclient.fetcher import FetcherInterface
    from tuf.ngclient.updater import Updater
finally:
    if _unwanted:
        del sys.modules[_NETWORK]

__all__ = ["FetcherInterface", "Updater", "UpdaterConfig"]
