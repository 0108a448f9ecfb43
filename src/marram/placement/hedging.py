"""Hedging: the edge starts on a request of the cloud's too, so late that it mostly need not, so early that it can help.

(Dean & Barroso, "The tail at scale", CACM 2013, with the edge as the second server.) A budget keeps it rare: under
load, copies would only make it worse.
"""

from __future__ import annotations

_MOST_SAVED = 3.0


class HedgeBudget:
    """At most `share` of the requests to the cloud have a copy, whatever happens; what is saved up is little."""

    def __init__(self, share: float) -> None:
        self._share = min(max(share, 0.0), 1.0) if share == share else 0.0
        self._saved = 1.0 if self._share else 0.0

    @property
    def left(self) -> bool:
        """Whether one more may be started."""
        return self._saved >= 1.0

    def asked(self) -> None:
        """One request went to the cloud."""
        self._saved = min(self._saved + self._share, _MOST_SAVED)

    def hedged(self) -> None:
        """One copy was started."""
        self._saved = max(self._saved - 1.0, -_MOST_SAVED)
