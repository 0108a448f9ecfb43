"""Keeps a device's certificate young: asked for anew at two thirds of its life, over the bus while that lets us in.

A device that was off past its certificate's end is let in nowhere; it asks its cloud over HTTPS, by proof of its old
key, and is answered within the grace period. Keys and requests are the trustee's business, which is a process of its
own; here is only when to ask. Nothing is decided on the device's clock alone where that may be wrong: a broker that
says "expired" is believed as well.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from marram.bus import subjects
from marram.edge.identity import IdentityFiles
from marram.edge.trustee import Trustee
from marram.schema.errors import MarramError, Refused, Retryable, Threat

log = logging.getLogger("marram.edge")


class Link(Protocol):
    """What of a `Bus` is needed here."""

    refused: str | None

    @property
    def connected(self) -> bool: ...
    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes: ...
    def reconnect(self) -> None:
        """The identity changed: show the new one."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, and shares of a certificate's life."""

    renew_at: float = 2 / 3
    jitter: float = 0.05  # of the life: a fleet that joined in one hour does not renew in one
    look_s: float = 60.0
    again_s: float = 30.0  # after a failure; doubled with each, to at most:
    again_most_s: float = 3600.0
    # After a renewal there is none for so long, whatever the clock says: it may be years off.
    least_s: float = 6 * 3600.0


@dataclass(slots=True)
class Renewal:
    """One device's. `run` for as long as the agent runs."""

    files: IdentityFiles
    trustee: Trustee
    link: Link
    device: str
    cloud: str  # https://HOST:PORT; "": never over HTTPS
    pace: Pace = field(default_factory=Pace)
    now_s: Callable[[], float] = time.time
    spread: float = field(default_factory=random.random)
    _failures: int = 0
    _complained: str = ""

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(await self.step())

    async def step(self) -> float:
        """Renew where it is time; how long to wait before the next look, in seconds."""
        if not self.files.own.exists():
            return self.pace.look_s  # what says so is whoever connects with it
        over = self._over()
        if not over and not self._due():
            return self.pace.look_s
        if not self.link.connected and not over:
            return self.pace.look_s  # the way is the bus, once it is up: there is a third of a life left
        try:
            await self._renew()
        except MarramError as error:
            return self._failed(error)
        log.info("%s has a new certificate", self.device)
        self._failures, self._complained = 0, ""
        self.link.reconnect()
        return self.pace.least_s

    async def _renew(self) -> None:
        if self.link.connected:
            answer = await self.link.request(subjects.renew(self.device), await self.trustee.renewal(), 30.0)
            await self.trustee.renewed(answer)
        elif self.cloud.startswith("https:"):
            await self.trustee.renew_at(self.cloud)
        else:
            raise Refused("the certificate is over and no HTTPS address of the cloud is known", hint="Join again.")

    def _due(self) -> bool:
        """Whether two thirds of the certificate's life are over; also where that cannot be told."""
        valid = self.files.validity_s()
        if valid is None:
            return True
        since_s, until_s = valid
        share = self.pace.renew_at + self.pace.jitter * self.spread
        return self.now_s() >= since_s + share * (until_s - since_s)

    def _over(self) -> bool:
        """Whether the bus is no way any more: the broker says that the certificate is over, or our clock does."""
        if self.link.connected:
            return False
        valid = self.files.validity_s()
        by_clock = valid is not None and self.now_s() > valid[1]
        return by_clock or Threat.EXPIRED.value in (self.link.refused or "")

    def _failed(self, error: MarramError) -> float:
        self._failures += 1
        if str(error) != self._complained:
            log.warning("the certificate of %s cannot be renewed: %s", self.device, error)
            self._complained = str(error)
        if not isinstance(error, Retryable):
            return self.pace.again_most_s  # it will be so again; but a person may mend it in the cloud
        longest_s = min(self.pace.again_most_s, self.pace.again_s * 2.0 ** min(self._failures - 1, 20))
        return longest_s * (0.5 + 0.5 * self.spread)
