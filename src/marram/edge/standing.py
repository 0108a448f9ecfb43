"""Why the broker lets this device in no more: it says so to nobody, so the agent asks its cloud, by proof of its key.

Asking changes nothing, in the cloud or here: no certificate is made and none counts as used. It goes over HTTPS, to the
cloud that the device joined and no other, soon after a refusal and then at a rate that a revoked fleet may keep up for
ever. What comes of an answer is a person's business: the device goes on trying as it did.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from marram.edge.trustee import Trustee
from marram.schema.errors import MarramError, Retryable

log = logging.getLogger("marram.edge")

NOTHING = "its cloud has nothing against this device: the cloud's log says why its broker refuses it"


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. `first_s`: at most so long after a refusal, so that a fleet does not ask in one instant.

    `again_s`: between two questions, doubled with each, to at most `most_s`; from the start once it was let in.
    """

    first_s: float = 4.0
    again_s: float = 60.0
    most_s: float = 3600.0


class Standing:
    """One device's. `run` for as long as the agent runs; `why`: what its cloud says, "" while that is nothing."""

    def __init__(
        self,
        trustee: Trustee,
        cloud: str,
        pace: Pace | None = None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`cloud`: https://HOST:PORT; otherwise it is never asked."""
        self.why = ""
        self._trustee, self._cloud = trustee, cloud
        self._pace, self._spread = pace or Pace(), spread
        self._refused = asyncio.Event()
        self._times = 0

    def told(self, *, refused: bool, connected: bool) -> None:
        """How the broker takes this device now."""
        if refused:
            self._refused.set()
            return
        self._refused.clear()
        if connected:
            self.why, self._times = "", 0

    async def run(self) -> None:
        """For ever."""
        if not self._cloud.startswith("https:"):
            await asyncio.Event().wait()
        while True:
            await self._refused.wait()
            await asyncio.sleep(self._pace.first_s * self._spread())
            if self._refused.is_set():
                await asyncio.sleep(await self.ask())

    async def ask(self) -> float:
        """Ask once; how long to wait before the next question, in seconds."""
        try:
            await self._trustee.standing(self._cloud)
            why = NOTHING
        except Retryable as error:
            log.debug("why the broker refuses this device could not be asked: %s", error)
            why = self.why
        except MarramError as error:
            why = str(error)
        if not self._refused.is_set():
            why = ""  # let in meanwhile
        if why and why != self.why:
            log.warning("the broker refuses this device: %s", why)
        self.why = why
        self._times += 1
        return min(self._pace.most_s, self._pace.again_s * 2.0 ** min(self._times - 1, 20))
