"""Imported first of all in the agent's process: keeps out what others would load and the agent never uses.

nats-py imports aiohttp for WebSockets wherever it happens to be installed (13 MB, where the cloud's packages are too);
Marram speaks plain NATS. Never import this anywhere but in the agent's own `__main__`.
"""

from __future__ import annotations

import sys

sys.modules["aiohttp"] = None  # type: ignore[assignment]  # an import of it fails now, which nats-py expects
