"""How long a request may take: what the policy allows, within what is left of a frame's deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request to the cloud has, after how long the edge starts too (None: never), which replica it asks."""

    wait_s: float
    hedge_s: float | None = None
    replica: str | None = None

    def after(self, passed_s: float) -> Limits:
        """What is left of them so much later; a clock that was set back adds nothing."""
        passed_s = max(0.0, passed_s)
        hedge_s = None if self.hedge_s is None else max(0.0, self.hedge_s - passed_s)
        return replace(self, wait_s=self.wait_s - passed_s, hedge_s=hedge_s)

    def within(self, left_s: float | None) -> Limits:
        """The same where only `left_s` are left (None: any time)."""
        return self if left_s is None else replace(self, wait_s=min(self.wait_s, left_s))


def left_s(until_s: float | None) -> float | None:
    """What remains until then (by `time.monotonic`); less than nothing where it is past."""
    return None if until_s is None else until_s - time.monotonic()
