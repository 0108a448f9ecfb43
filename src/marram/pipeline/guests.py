"""Answers other devices with the models that an app runs here, in moments when it has nothing of its own to do.

What comes from a stranger is decoded where it is computed, in the pool's own thread, within what the model takes. No
frame of the app's ever waits behind more than one such answer, and none is begun where one of its own is about to come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from marram.pipeline.edge_pool import EdgePool, Job, Ran, Seat
from marram.pipeline.stats import Stats
from marram.runtime.codecs import decode
from marram.schema.errors import Busy, MarramError, Missing, Permanent
from marram.schema.payload import Payload
from marram.schema.result import Result

Key = tuple[str, int]  # a model's name and version

# Called once, in any thread: with the result, or what was wrong; how long it took, seconds.
Answered = Callable[[Result | MarramError, float], None]


class Guests:
    """One app's. `pools`: who computes with which model. Safe from any thread; nothing here blocks."""

    def __init__(self, pools: Mapping[Key, EdgePool], stats: Stats) -> None:
        self._pools, self._stats = pools, stats

    def ask(self, key: Key, payload: Payload, left_s: float | None, answered: Answered) -> None:
        """One question. Answered at once with Busy where the app needs its model itself, Missing where it has none."""
        pool = self._pools.get(key)
        if pool is None:
            answered(Missing(f"no step here asks {key[0]}@{key[1]}"), 0.0)
            return
        until_s = None if left_s is None else time.monotonic() + left_s
        job = Job(partial(_predict, payload), partial(self._ran, answered), f"guest {key[0]}@{key[1]}", until_s)
        if not pool.offer(job):
            answered(Busy("it has work of its own"), 0.0)

    def _ran(self, answered: Answered, ran: Ran) -> None:
        if isinstance(ran.value, Result):
            self._stats.count("guests")
            answered(ran.value, ran.service_s)
        elif isinstance(ran.failure, MarramError):
            answered(ran.failure, ran.service_s)
        elif ran.failure is not None:
            answered(Permanent(f"the model failed: {type(ran.failure).__name__}"), ran.service_s)
        else:
            answered(Busy("the app ends, or it came too late"), 0.0)


def _predict(payload: Payload, seat: Seat) -> Result:
    return seat.model.predict(decode(payload, seat.model.card), payload.frame_size)
