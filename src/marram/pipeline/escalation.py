"""A step's cascade: what becomes of each of the edge's answers, and what is learnt from the cloud's.

    verdict = escalation.judge(result, price_s, reachable=not offload.away)
    # ACCEPT: the answer stands. CHECK: it stands, and the cloud is asked in the background, then `compare`.
    # ESCALATE: the cloud is asked; then `compare`, or `unanswered` where it does not answer in time.

Binds the pure `placement/cascade.py` to a step of the app: results become strata, prices become errors, answers become
losses, and all of it is counted. Safe from any thread. It never asks anybody itself.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

from marram.pipeline.memory import Memory
from marram.pipeline.stats import Stats
from marram.placement.cascade import Action, Cascade, Judged
from marram.placement.sureness import stratum_of
from marram.schema.agreement import lost
from marram.schema.app import InferStep
from marram.schema.result import Result

log = logging.getLogger(__name__)

Verdict = Judged

# Without a deadline, an error is worth so long a wait.
ERROR_S = 1.0
# A loss from here on counts as another answer.
_ANOTHER = 0.5
# So many answers of which none agreed are no chance.
_NEVER = 100


class Escalation:
    """One step's, between the two models that `pair` names. `draws`: makes the random numbers for the checks.

    `memory`: where what it learns outlives the app's restarts.
    """

    def __init__(self, spec: InferStep, pair: str, stats: Stats, memory: Memory, draws: random.Random) -> None:
        assert spec.cascade is not None
        goal = spec.cascade
        self._cascade = Cascade(accuracy=goal.accuracy, offload=goal.offload, checks=goal.checks)
        self._worth_s = spec.deadline or ERROR_S
        self._stats, self._draws = stats, draws
        self._lock = threading.Lock()
        self._compared = self._agreed = 0
        name = f"cascade {spec.verb} {pair}"
        before = memory.hold(name, self._saved)
        if before is not None and not self._cascade.restore(before):
            log.info("%s: what an earlier run learnt is not readable here and is learnt anew", name)
        stats.tell("cascade", self._words)

    def judge(self, result: Result, price_s: float | None, *, reachable: bool) -> Verdict:
        """What becomes of the edge's `result`.

        `price_s`: what asking the cloud would cost now, in seconds: the time until its answer, with energy and money at
        their present prices; None where nobody knows yet, which is best found out. An error is worth the deadline.
        """
        cost = max(0.0, price_s) / self._worth_s if price_s is not None else 0.0
        with self._lock:
            draw = self._draws.random()
            verdict = self._cascade.judge(stratum_of(result), cost, draw, reachable=reachable)
        if verdict.action is Action.ESCALATE:
            self._stats.count("escalated")
        elif not verdict.verified:
            self._stats.count("unverified")
        return verdict

    def compare(self, edge: Result, cloud: Result, verdict: Verdict) -> bool:
        """The cloud answered too, in time or not: learn from it. Whether both say the same."""
        loss = lost(edge, cloud)
        another = loss >= _ANOTHER
        with self._lock:
            self._cascade.learn(verdict, loss)
            self._compared += 1
            self._agreed += not another
        if verdict.action is Action.CHECK:
            self._stats.count("checked")
        if another:
            self._stats.count("disagreed")
        return not another

    def unanswered(self, verdict: Verdict) -> None:
        """The cloud did not answer an escalated one in time: the edge's answer stands, unverified."""
        if verdict.action is Action.ESCALATE:
            self._stats.count("unverified")

    def explain(self) -> list[str]:
        """What is accepted now, and why; lines for people."""
        with self._lock:
            lines = self._cascade.explain()
            never = self._compared >= _NEVER and not self._agreed
        if never:
            lines.append("the two models never agree: do both have the same labels?")
        return lines

    def _words(self) -> str:
        return "; ".join(self.explain())

    def _saved(self) -> dict[str, Any]:
        with self._lock:
            return self._cascade.saved()
