"""Which answers of the edge are sure enough: three rules, each over what a `Tally` knows. Pure.

- `AccuracyTarget`: at most α is lost against the cloud's answers. Conformal risk control (Angelopoulos et al., 2022)
  chooses the threshold, adaptive conformal inference (Gibbs and Candès, 2021) holds it in the long run.
- `OffloadTarget`: at most a share of all frames is sent, the least sure ones.
- `LearntThreshold`: whatever costs less, an error or asking at the price of this moment. Hierarchical inference with a
  lower confidence bound (HI-LCB, arXiv 2508.08985).

Each rule is told of every frame judged while the cloud can be asked, and of every label, and of nothing else: while the
cloud is away they stand still.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from marram.placement.sureness import EMPTY, LEVELS, STRATA, UNTOLD, floor_of
from marram.placement.tally import Tally

# Thresholds follow every label, and the frames (which drift slowly) each time that so many came.
_REFRESH = 32


class Rule(Protocol):
    """One way to say which strata escalate."""

    def escalates(self, stratum: int, cost: float) -> str:
        """Why an answer of this stratum is not accepted, "" where it is. `cost`: of asking, an error being 1."""
        ...

    def judged(self, stratum: int, sent: bool) -> None:
        """A frame was judged, and sent to the cloud or not."""
        ...

    def labelled(self, loss: float, chance: float, accepted: bool) -> None:
        """The tally has a new label; `chance`: of having been asked for it."""
        ...

    def chance(self, stratum: int, checks: float) -> float:
        """That the cloud is asked about an accepted answer too, where `checks` is the share meant (0–1)."""
        ...

    def explain(self) -> list[str]:
        """What is accepted now, and why; lines for people."""
        ...

    def saved(self) -> dict[str, Any]:
        """What it remembers beside the tally."""
        ...

    def restore(self, document: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError where `document` is not what it saved."""
        ...


class AccuracyTarget:
    """What is lost by accepting, of all frames, stays at or below `loss` (α): 0.01 for 99 % of the cloud's.

    With the loss L_i(λ) = 1{surer than λ}·loss_i of n labelled frames, the threshold is the smallest λ for which it
    and all larger ones have n/(n+1)·R̂(λ) + 1/(n+1) ≤ α (Conformal Risk Control, section 2.1). R̂ is estimated by
    strata, and n is how many labels that estimate is worth: F / Σ f_b²/m_b, f_b being a stratum's share of the frames,
    m_b its labels; where all frames are labelled these are the paper's. The level α itself moves with every label:
    α ← α + γ(target - loss·1{accepted}) / chance, which holds in the long run whatever the frames do.
    """

    # A label that went wrong moves the level by this share of it, at 2 % of checks.
    _GAIN = 0.15
    _USUAL_CHECKS = 0.02
    # The level may rise above the target where the estimate proves too careful, but not far: it falls slowly.
    _MOST = 1.5
    # At first all is asked, until the bound is loose by no more than a quarter of the target; within reason.
    _LOOSE, _LEAST_LEARNING, _MOST_LEARNING = 0.25, 200, 1000

    def __init__(self, tally: Tally, loss: float) -> None:
        self._tally, self._target = tally, loss
        self._level = loss
        enough = math.ceil(1 / (self._LOOSE * loss))
        self._learning = min(max(enough, self._LEAST_LEARNING), self._MOST_LEARNING)
        self._accepted = [False] * STRATA
        self._expected = 0.0
        self._stale = 0
        # The surest first; what stands where changes slower than the threshold, and costs more to find out.
        self._order: list[int] = []
        self._order_age = 0  # frames

    def escalates(self, stratum: int, cost: float) -> str:
        if self._tally.asked < self._learning:
            return "learning"
        if self._stale <= 0:
            self._refresh()
        return "" if self._accepted[stratum] else "not sure enough"

    def judged(self, stratum: int, sent: bool) -> None:
        self._stale -= 1
        self._order_age += 1

    def labelled(self, loss: float, chance: float, accepted: bool) -> None:
        self._stale = 0
        gain = self._GAIN * self._target * self._USUAL_CHECKS
        level = self._level + gain * (self._target - (loss if accepted else 0.0)) / chance
        self._level = min(max(level, -self._target), self._MOST * self._target)

    def chance(self, stratum: int, checks: float) -> float:
        # What is hardly known is checked more often: a new kind of sure answer is no blind spot.
        return max(checks, 1 / (1 + self._tally.labels[stratum])) if checks > 0 else 0.0

    def _refresh(self) -> None:
        """Go from the surest answers down, for as long as the bound holds."""
        tally, self._stale = self._tally, _REFRESH
        accepted = [False] * STRATA
        surprise = tally.surprise
        if self._order_age >= _REFRESH or not self._order:
            self._order, self._order_age = chain(tally), 0
        lost = unknown = shares = spread = 0.0
        self._expected = 0.0
        surer: list[int] = []  # than all that the bound was tried on
        for stratum in self._order:
            surer.append(stratum)
            share, labels = tally.share(stratum), tally.labels[stratum]
            if labels > 0:
                shares += share
                spread += share * share / labels
                lost += share * min(1.0, surprise * tally.loss(stratum))
            else:
                unknown += share  # counts as lost
            if share <= 0 or spread <= 0:
                continue
            worth, risk = shares / spread, lost + unknown
            if (worth * risk + 1) / (worth + 1) > self._level:
                break
            self._expected = risk
            for each in surer:
                accepted[each] = True
            surer.clear()
        self._accepted = accepted

    def explain(self) -> list[str]:
        tally = self._tally
        if tally.asked < self._learning:
            return [f"learning: {tally.asked} of {self._learning} answers compared, all are sent to the cloud"]
        self._refresh()
        lines = [_accepts(self._accepted, tally)]
        lines.append(f"expected: {1 - self._expected:.1%} of the cloud's answers (target {1 - self._target:.4g})")
        if tally.surprise > 1:
            lines.append(f"errors come {tally.surprise:.1f} × as often as known: fewer answers are accepted")
        if self._level < 0.5 * self._target:
            lines.append("checks found more errors than expected: the threshold is held higher")
        return lines

    def saved(self) -> dict[str, Any]:
        return {"accuracy_loss": self._target, "level": self._level}

    def restore(self, document: dict[str, Any]) -> None:
        level = float(document["level"])
        if document["accuracy_loss"] == self._target and abs(level) < math.inf:
            self._level = min(max(level, -self._target), self._MOST * self._target)


class OffloadTarget:
    """At most `share` of all frames is sent, never more at any time: those that the edge is least sure of.

    Each frame earns `share` of a token and each frame sent spends one. The threshold is the quantile of sureness at
    share · tokens / half the purse: a full purse sends more, an empty one less, so it settles where as much is spent as
    earned, whatever the answers' sureness does.
    """

    # The purse, in frames' earnings: how long a busy moment may borrow from quiet ones.
    _PURSE = 500

    def __init__(self, tally: Tally, share: float) -> None:
        self._tally, self._share = tally, share
        self._purse = max(2.0, self._PURSE * share)
        self._tokens = 0.0
        self._below = [0.0] * STRATA  # share of the frames that are less sure than this stratum
        self._stale = 0

    def escalates(self, stratum: int, cost: float) -> str:
        if self._tokens + self._share < 1:
            return ""
        if self._stale <= 0:
            self._refresh()
        wanted = self._share * self._tokens / (self._purse / 2)
        return "among the least sure" if self._below[stratum] < wanted else ""

    def judged(self, stratum: int, sent: bool) -> None:
        self._stale -= 1
        self._tokens = min(self._tokens + self._share, self._purse) - (1.0 if sent else 0.0)

    def labelled(self, loss: float, chance: float, accepted: bool) -> None:
        pass

    def chance(self, stratum: int, checks: float) -> float:
        return checks if self._tokens + self._share >= 1 else 0.0

    def _refresh(self) -> None:
        self._stale = _REFRESH
        less_sure = 1.0
        for stratum in chain(self._tally):
            less_sure -= self._tally.share(stratum)
            self._below[stratum] = max(0.0, less_sure)

    def explain(self) -> list[str]:
        self._refresh()
        wanted = self._share * self._tokens / (self._purse / 2)
        accepted = [self._below[stratum] >= wanted for stratum in range(STRATA)]
        return [_accepts(accepted, self._tally), f"at most {self._share:.0%} of the frames are sent"]

    def saved(self) -> dict[str, Any]:
        return {"offload": self._share, "tokens": self._tokens}

    def restore(self, document: dict[str, Any]) -> None:
        tokens = float(document["tokens"])
        if document["offload"] == self._share and abs(tokens) < math.inf:
            self._tokens = min(max(tokens, 0.0), self._purse)


class LearntThreshold:
    """Escalates where 1 - LCB > cost: where even the pessimist's error is dearer than asking.

    LCB_b = p̂_b - √(a ln t / n_b) of the share of right answers in b, and no less than that of any less sure stratum,
    since surer answers are right more often. Labels come only from asking: the bound is what makes it ask enough.
    Strata are taken together by `_WIDE`: each has to be learnt.
    """

    _A = 0.5
    _WIDE = 4

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._bound = [0.0] * STRATA
        self._cost = 0.0
        self._stale = 0

    def escalates(self, stratum: int, cost: float) -> str:
        if self._stale <= 0:
            self._refresh()
        self._cost = cost
        return "asking costs less than the error it may prevent" if 1 - self._bound[stratum] > cost else ""

    def judged(self, stratum: int, sent: bool) -> None:
        self._stale -= 1

    def labelled(self, loss: float, chance: float, accepted: bool) -> None:
        self._stale = 0

    def chance(self, stratum: int, checks: float) -> float:
        return checks

    def _refresh(self) -> None:
        self._stale = _REFRESH
        highest = 0.0
        for first in range(0, LEVELS, self._WIDE):
            strata = range(first, first + self._WIDE)
            highest = max(highest, self._lower(strata))
            for stratum in strata:
                self._bound[stratum] = highest
        for stratum in (EMPTY, UNTOLD):
            self._bound[stratum] = max(0.0, self._lower(range(stratum, stratum + 1)))

    def _lower(self, strata: range) -> float:
        labels = sum(self._tally.labels[stratum] for stratum in strata)
        if labels <= 0:
            return 0.0
        lost = sum(self._tally.labels[stratum] * self._tally.loss(stratum) for stratum in strata) / labels
        return 1 - lost - math.sqrt(self._A * math.log(max(self._tally.seen, 2)) / labels)

    def explain(self) -> list[str]:
        self._refresh()
        accepted = [1 - bound <= self._cost for bound in self._bound]
        return [
            _accepts(accepted, self._tally),
            f"asking the cloud costs as much as {self._cost:.2g} errors; learnt from {self._tally.asked} answers",
        ]

    def saved(self) -> dict[str, Any]:
        return {}

    def restore(self, document: dict[str, Any]) -> None:
        pass


def chain(tally: Tally) -> list[int]:
    """All strata, the surest first. `EMPTY` and `UNTOLD` stand before the first level that goes wrong as often.

    Where none came yet they stand last: a kind of answer that was never seen is not accepted for others' sake.
    """
    levels = list(range(LEVELS - 1, -1, -1))
    others = [stratum for stratum in (EMPTY, UNTOLD) if tally.share(stratum) > 0]
    if not others:
        return [*levels, EMPTY, UNTOLD]
    rising = _rising([(tally.loss(level), tally.labels[level]) for level in levels])
    order = [(loss, place, level) for place, (loss, level) in enumerate(zip(rising, levels, strict=True))]
    order += [(tally.loss(stratum), -1, stratum) for stratum in others]
    return [stratum for _, _, stratum in sorted(order)] + [s for s in (EMPTY, UNTOLD) if s not in others]


def _rising(points: list[tuple[float, float]]) -> list[float]:
    """The nearest values that never fall (pool adjacent violators); each point is (value, weight)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in points:
        pool = (value if weight > 0 else 0.0, weight, 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, other, count = pools.pop()
            both = other + pool[1]
            pool = ((mean * other + pool[0] * pool[1]) / both if both > 0 else 0.0, both, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]


def _accepts(accepted: list[bool], tally: Tally) -> str:
    """`accepts answers surer than 0.93: 71 % of the frames; empty answers are sent`."""
    share = sum(tally.share(stratum) for stratum in range(STRATA) if accepted[stratum])
    lowest = min((stratum for stratum in range(LEVELS) if accepted[stratum]), default=None)
    if share <= 0 or (lowest is None and not (accepted[EMPTY] or accepted[UNTOLD])):
        line = "accepts no answer of the edge"
    elif lowest is None:
        line = f"accepts {share:.0%} of the answers"
    else:
        line = f"accepts answers surer than {floor_of(lowest):.3g}: {share:.0%} of the frames"
    for stratum, what in ((EMPTY, "empty answers"), (UNTOLD, "answers without confidence")):
        if tally.share(stratum) > 0:
            known = f" ({tally.loss(stratum):.0%} of them differ from the cloud's)" if tally.labels[stratum] else ""
            line += f"; {what} are {'accepted' if accepted[stratum] else 'sent'}{known}"
    return line
