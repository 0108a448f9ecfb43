"""How far apart a live source's frames come, learnt from their coming: for looking ahead where no `every:` says it.

Cameras and brokers have a rate of their own, which nobody writes down. What counts is when frames come, not when they
are taken: a step that is slow takes each third picture of a camera, and two come between.

It is a mean (time passed over frames that came), fading. Not a median: where messages come in bursts, most gaps are
next to nothing, and who expected the next frame so soon would drop all but one of a burst that could well be answered
until the next. A gap that is longer than usual makes the mean too long for a while, which only means looking ahead less
far. Pure: time is an argument.
"""

from __future__ import annotations

# Of what is known, so much is left after each frame that comes: the last 60 or so count.
_KEPT = 63 / 64
# Before so many were taken, nothing is known: cameras stutter when they start.
_FEW = 8


class Rhythm:
    """One step's. `came` from one thread at a time; `every_s` may be read in any."""

    def __init__(self) -> None:
        self.every_s: float | None = None
        self._last: tuple[float, int, int, int] | None = None
        self._gaps = 0
        self._passed_s = self._frames = 0.0

    def came(self, captured_s: float, index: int, skipped: int, errors: int) -> None:
        """A frame came, captured at `captured_s` (monotonic), the source's `index`th that was taken.

        `skipped`, `errors`: the source's so far (see `contract.Source`). What was skipped came too. What was taken and
        never got here (a `filter` held it back) did not, and of what was skipped the same share would not have. Across
        an error of the source's (a camera unplugged, a broker away) nothing is learnt.
        """
        before, self._last = self._last, (captured_s, index, skipped, errors)
        if before is None or errors != before[3] or captured_s < before[0]:
            return
        taken = max(1, index - before[1])
        came = 1 + max(0, skipped - before[2]) / taken
        kept = _KEPT**came
        self._passed_s = kept * self._passed_s + captured_s - before[0]
        self._frames = kept * self._frames + came
        self._gaps += 1
        if self._gaps >= _FEW and self._passed_s > 0:
            self.every_s = self._passed_s / self._frames
