"""What a service manager wants to hear (sd_notify): that the agent has started, that it lives, that it stops.

A datagram each, without a library; where nobody asked to be told (`NOTIFY_SOCKET`), nothing is sent. "It lives" comes
from the agent's own event loop: one that no longer turns is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import MutableMapping


class Notifier:
    """Takes what the manager asked for out of `environment`, so that no child takes itself for the service."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self._address = given.pop("NOTIFY_SOCKET", "")
        period, pid = given.pop("WATCHDOG_USEC", ""), given.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        # Three signs of life in the time that the manager waits for one.
        self._every_s = int(period) / 3e6 if ours and period.isdigit() and int(period) else None

    def ready(self) -> None:
        """The agent runs, whether or not its cloud is there."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """It ends clean."""
        self._tell("STOPPING=1")

    async def live(self) -> None:
        """Say so for ever; ends at once where nobody wants to hear it."""
        while self._every_s is not None and self._address:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._every_s)

    def _tell(self, what: str) -> None:
        if self._address:
            # An abstract address is written with an @.
            address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.setblocking(False)
                telling.sendto(what.encode(), address)
