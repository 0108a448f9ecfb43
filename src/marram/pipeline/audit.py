"""Audit blocks: now and then, for a second, everything is answered at the edge, or everything in the cloud.

What placement saves is then measured instead of supposed. Pure: time is an argument.
"""

from __future__ import annotations

from marram.schema.result import Place

BLOCK_S = 1.0


class Audit:
    """Of each cycle, `share` of the time is blocks: one at the edge, half a cycle later one in the cloud."""

    def __init__(self, share: float, started_s: float) -> None:
        self._share = share
        # Both blocks of a cycle are `BLOCK_S` long, so that they are `share` of it together.
        self._cycle_s = 2 * BLOCK_S / share if share > 0 else 0.0
        # The first block comes soon, but not among the first frames, when caches and estimates are cold.
        self._started_s = started_s + min(BLOCK_S, self._cycle_s / 2 - BLOCK_S)
        self._given_up: int | None = None

    def block(self, now_s: float) -> Place | None:
        """EDGE or CLOUD within a block, None outside."""
        if self._share <= 0 or now_s < self._started_s:
            return None
        half, position_s = divmod(now_s - self._started_s, self._cycle_s / 2)
        if position_s >= BLOCK_S or half == self._given_up:
            return None
        return Place.EDGE if half % 2 == 0 else Place.CLOUD

    def give_up(self, now_s: float) -> None:
        """End the block at `now_s` early (the cloud did not answer)."""
        if self._share > 0:
            self._given_up = int((now_s - self._started_s) // (self._cycle_s / 2))
