"""What a cloud process does again and again, for as long as it runs.

A turn that fails is logged and the next one is taken all the same, whatever it failed of: what one device said, or one
fault of ours, must never end for a whole fleet what only a restart would begin again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from marram.schema.errors import MarramError

log = logging.getLogger(__name__)

# What goes on failing in the same words is told again after so long.
_TELL_AGAIN_S = 600.0


async def for_ever(what: str, work: Callable[[], Awaitable[object]], every_s: float, rest: float = 0.0) -> None:
    """Await `work()` now, then every so often, until cancelled.

    `what`: the failure in words, as the log has it ("rollouts were not taken on"). `rest`: the pause is at least so
    many times as long as the turn took.
    """
    told, told_s = "", float("-inf")
    while True:
        began_s = time.monotonic()
        try:
            await work()
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if words != told or began_s - told_s > _TELL_AGAIN_S:
                told, told_s = words, began_s
                if isinstance(error, MarramError):
                    log.warning("%s: %s", what, error)
                else:
                    log.error("%s", what, exc_info=error)
        else:
            told = ""
        await asyncio.sleep(max(every_s, rest * (time.monotonic() - began_s)))


class Due:
    """Whether what was made to last `life_s` has lasted `share` of it, by the wall clock.

    Looked at often, not slept until: a machine that was suspended slept longer than it knows, and one that started with
    a clock years behind has made what was over as soon as the clock was set.
    """

    def __init__(self, life_s: float, share: float) -> None:
        self._lasts_s = life_s * share
        self._made_s = time.time()

    def __bool__(self) -> bool:
        return not 0 <= time.time() - self._made_s < self._lasts_s

    def made(self) -> None:
        """It was made anew just now."""
        self._made_s = time.time()


# How often one looks at what is due.
DUE_LOOK_S = 60.0
