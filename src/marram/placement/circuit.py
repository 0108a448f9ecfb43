"""Whether the cloud can be reached, and when to probe: so that an idle link stays known, and a lost one is found again.

Not probing an idle link was the largest single error of all policies compared in planning.
"""

from __future__ import annotations

import math
from enum import StrEnum

# A small probe tells the round trip, a large one the rate as well.
PING_BYTES = 200
PROBE_BYTES = 6000
# A few in quick succession at first: the sooner the link is known, the fewer frames go the wrong way.
_STARTUP_PROBES = 4
_STARTUP_S = 0.15
_RETRY_S = 0.4
_MOST_PROBES_OUT = 4


class Reach(StrEnum):
    """Of the cloud as a whole: `open` once not even a probe is answered, `closed` again by any reply."""

    UNKNOWN = "unknown"  # nothing heard yet
    CLOSED = "closed"
    OPEN = "open"


class Circuit:
    """The circuit breaker of the way to the cloud; probes are its trials. (Each model has one more: `Breaker`.)"""

    def __init__(self, probe_after_s: float) -> None:
        self._probe_after_s = probe_after_s
        self._not_before_s = -math.inf
        self._probed = 0
        self._doubted = False
        self.reach = Reach.UNKNOWN

    @property
    def away(self) -> bool:
        return self.reach is Reach.OPEN

    def doubt(self) -> None:
        """A request was refused, or is late: a small probe at once, whatever is under way, tells if it is the link."""
        self._doubted = True

    def failed(self, now_s: float) -> None:
        """Nothing answers, not even a probe: no request, but a probe at once."""
        if self.reach is not Reach.OPEN:
            self.reach = Reach.OPEN
            self._not_before_s = now_s

    def heard(self, now_s: float) -> None:
        """A reply came, however late: the way is open. What it then says of the link is for the link's filter."""
        if self.reach is not Reach.CLOSED:
            self._not_before_s = now_s
        self.reach, self._doubted = Reach.CLOSED, False

    def probe_due(self, now_s: float, waited_for: int, heard_s: float, *, measured: bool) -> int | None:
        """Bytes of a probe to send now. `waited_for`: messages under way; `heard_s`: when the last reply came;
        `measured`: small ones may be among them, the rate is known.
        """
        if self._doubted and self.reach is Reach.CLOSED:
            self._doubted = False
            return PING_BYTES
        if now_s < self._not_before_s:
            return None
        if self.reach is not Reach.CLOSED:
            if waited_for >= _MOST_PROBES_OUT:
                return None
            self._not_before_s = now_s + (_RETRY_S if self.reach is Reach.OPEN else _STARTUP_S)
            return PING_BYTES
        starting = self._probed < _STARTUP_PROBES
        # The first large one goes as soon as something was heard: of the rate nothing is known until then.
        after_s = (_STARTUP_S if self._probed else 0.0) if starting else self._probe_after_s
        if waited_for or now_s - heard_s < after_s:
            return None
        self._not_before_s = now_s + after_s
        self._probed += 1
        return PROBE_BYTES if self._probed % 2 or (starting and not measured) else PING_BYTES
