"""What a cascade knows of its two models: of each stratum how many frames there are, and how often the edge is wrong.

The cloud's answer counts as right, so only answers that the cloud gave too have a label. Within a stratum whoever is
labelled is chosen by chance alone (all of it where it escalates, a fixed share where it is checked), so the share of
wrong ones among the labelled is that of the stratum, whichever way they were labelled (post-stratification).

Everything forgets: frames by frames, labels of a stratum by labels of that stratum, so that a stratum rarely labelled
keeps what is known of it. Constant in memory. Pure.
"""

from __future__ import annotations

import math
from typing import Any

from marram.placement.sureness import STRATA

# How many frames, labels of one stratum, labels of all it remembers.
_FRAMES, _LABELS, _RECENT = 2000.0, 1000.0, 200.0
# A stratum's error rate is an expectation from so many labels on.
_KNOWN = 20.0
# What was once counted is scaled down before it leaves the range of numbers.
_LARGEST = 1e9


class Tally:
    """See the module's words. Losses lie in 0 (as the cloud) to 1 (wrong)."""

    def __init__(self) -> None:
        self.labels = [0.0] * STRATA
        self._losses = [0.0] * STRATA
        self._frames = [0.0] * STRATA
        self._weight = 1.0  # of the next frame: growing weights are older frames fading, without touching them
        self._total = 0.0
        self._observed = self._expected = 0.0
        self.seen = 0  # frames, ever
        self.asked = 0  # labels, ever

    def saw(self, stratum: int) -> None:
        """One frame was judged while the cloud could be asked."""
        self.seen += 1
        self._frames[stratum] += self._weight
        self._total += self._weight
        self._weight *= 1 + 1 / _FRAMES
        if self._weight > _LARGEST:
            self._frames = [count / self._weight for count in self._frames]
            self._total, self._weight = self._total / self._weight, 1.0

    def labelled(self, stratum: int, loss: float) -> None:
        """The cloud answered too."""
        self.asked += 1
        if self.labels[stratum] >= _KNOWN:
            keep = 1 - 1 / _RECENT
            self._observed = self._observed * keep + loss
            self._expected = self._expected * keep + self.loss(stratum)
        keep = 1 - 1 / _LABELS
        self.labels[stratum] = self.labels[stratum] * keep + 1
        self._losses[stratum] = self._losses[stratum] * keep + loss

    def share(self, stratum: int) -> float:
        """Of all frames lately, those in this stratum (0–1)."""
        if self._total <= 0:
            return 0.0
        # Both decay alike, so the newest frames' larger weights cancel.
        return self._frames[stratum] / self._total

    def loss(self, stratum: int) -> float:
        """The mean loss there; 1 where nobody knows."""
        return self._losses[stratum] / self.labels[stratum] if self.labels[stratum] > 0 else 1.0

    @property
    def surprise(self) -> float:
        """By how much more is lost lately than was known, where it is no chance any more; 1 where all is as ever.

        Most labels are of unsure answers. When these go wrong more often than they used to, so will the sure ones,
        whose few labels would show it only much later.
        """
        if self._expected <= 0:
            return 1.0
        # Two deviations of a count below what was counted.
        return max(1.0, (self._observed - 2 * math.sqrt(self._observed)) / self._expected)

    def saved(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `restored`."""
        return {
            "labels": [round(count, 4) for count in self.labels],
            "losses": [round(loss, 4) for loss in self._losses],
            "frames": [round(count / self._weight, 4) for count in self._frames],
            "seen": self.seen,
            "asked": self.asked,
        }

    @classmethod
    def restored(cls, document: dict[str, Any]) -> Tally:
        """Raises ValueError, KeyError, TypeError where `document` is no saved tally."""
        tally = cls()
        tally.labels, tally._losses, tally._frames = (
            [_count(value) for value in document[name]] for name in ("labels", "losses", "frames")
        )
        if {len(tally.labels), len(tally._losses), len(tally._frames)} != {STRATA}:
            raise ValueError(f"a tally has {STRATA} strata")
        tally._total = sum(tally._frames)
        tally.seen, tally.asked = int(_count(document["seen"])), int(_count(document["asked"]))
        return tally


def _count(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{value} counts nothing")
    return number
