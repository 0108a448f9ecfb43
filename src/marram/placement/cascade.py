"""The cascade: the edge answers, and where it is not sure enough the cloud is asked. Pure: draws are arguments.

What is sure enough is learnt from the answers that the cloud gave too, and those count as right: the ones escalated,
and a few of the accepted ones, checked in the background. While the cloud is away every answer is accepted and nothing
is learnt nor forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from marram.placement.tally import Tally
from marram.placement.thresholds import AccuracyTarget, LearntThreshold, OffloadTarget, Rule

_FORM = 1  # of what `saved` gives


class Action(StrEnum):
    """What becomes of the edge's answer."""

    ACCEPT = "accept"
    ESCALATE = "escalate"
    # Accepted, and the cloud is asked in the background whether it would have said the same.
    CHECK = "check"


@dataclass(frozen=True, slots=True)
class Judged:
    """What was decided of one answer. `chance`: that the cloud is asked, for what its label is worth.

    `verified`: the rule stands behind it; False where the cloud was away and nobody could have been asked.
    """

    action: Action
    stratum: int
    chance: float
    reason: str
    verified: bool = True


class Cascade:
    """One pair of models. `checks`: of the accepted answers, the share asked about in the background (0–1).

    `accuracy` (of the cloud's answers) or `offload` (share of the frames) is the target; with neither the cost decides.
    Not safe from several threads at once.
    """

    def __init__(self, *, accuracy: float | None = None, offload: float | None = None, checks: float = 0.02) -> None:
        self._accuracy, self._offload, self._checks = accuracy, offload, checks
        self._tally = Tally()
        self._rule = self._make_rule()

    def judge(self, stratum: int, cost: float, draw: float, *, reachable: bool = True) -> Judged:
        """What becomes of an answer of this stratum (`sureness.stratum_of`).

        `cost`: of asking the cloud now, where an error costs 1. `draw`: a random number, 0–1, one for each answer.
        """
        if not reachable:
            return Judged(Action.ACCEPT, stratum, 0.0, "the cloud is away", verified=False)
        self._tally.saw(stratum)
        reason = self._rule.escalates(stratum, cost)
        if reason:
            judged = Judged(Action.ESCALATE, stratum, 1.0, reason)
        else:
            chance = self._rule.chance(stratum, self._checks)
            action = Action.CHECK if draw < chance else Action.ACCEPT
            judged = Judged(action, stratum, chance, "sure enough")
        self._rule.judged(stratum, judged.action is not Action.ACCEPT)
        return judged

    def learn(self, judged: Judged, loss: float) -> None:
        """The cloud answered too. `loss`: 0 where it said the same, 1 where another thing, between where in part."""
        loss = min(max(loss, 0.0), 1.0)
        self._tally.labelled(judged.stratum, loss)
        self._rule.labelled(loss, judged.chance, judged.action is Action.CHECK)

    def explain(self) -> list[str]:
        """What is accepted now, and why; lines for people."""
        return self._rule.explain()

    def saved(self) -> dict[str, Any]:
        """All that was learnt, in plain JSON types, for `restore`."""
        return {"form": _FORM, "tally": self._tally.saved(), "rule": self._rule.saved()}

    def restore(self, document: dict[str, Any]) -> bool:
        """Go on with what another run saved. False, and nothing changed, where it is not such a document.

        What was learnt of the two models stays true under another target; what belongs to the target does not.
        """
        try:
            if document["form"] != _FORM:
                return False
            tally = Tally.restored(document["tally"])
            rule = dict(document["rule"])
        except (KeyError, TypeError, ValueError):
            return False
        self._tally = tally
        self._rule = self._make_rule()
        try:
            self._rule.restore(rule)
        except (KeyError, TypeError, ValueError):
            self._rule = self._make_rule()
        return True

    def _make_rule(self) -> Rule:
        if self._accuracy is not None:
            return AccuracyTarget(self._tally, 1 - self._accuracy)
        if self._offload is not None:
            return OffloadTarget(self._tally, self._offload)
        return LearntThreshold(self._tally)
