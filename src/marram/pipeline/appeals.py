"""Takes the edge's answers to the cloud: those that are not sure enough, and a few that are, to see whether they were.

They go there by whichever way is the soonest, the whole input or what crosses a cut, as any other frame does. An answer
is never lost over it: where the cloud does not say otherwise by the deadline, the edge's stands, unverified.
Checks happen behind the frame's back, when its answer is on its way already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from marram.pipeline.attempt import Attempt
from marram.pipeline.carrier import Carrier, Inquiry
from marram.pipeline.contract import Reply
from marram.pipeline.escalation import ERROR_S, Escalation, Verdict
from marram.pipeline.limits import Limits
from marram.pipeline.offload import Ended
from marram.placement.cascade import Action
from marram.placement.contract import Decision, Way
from marram.schema.result import Place, Result

# Of these so many at once: a link that is slow has better things to carry.
MOST_CHECKS = 2

# What asking the cloud about this frame would take now; None where it cannot be asked.
Quote = Callable[[Attempt], tuple[Decision, Way] | None]


class Appeals:
    """One step's cascade, carried out. `limits_of` says how long a request has."""

    def __init__(
        self, escalation: Escalation, carrier: Carrier, quote: Quote, limits_of: Callable[[Decision], Limits]
    ) -> None:
        self._escalation, self._carrier, self._quote, self._limits_of = escalation, carrier, quote, limits_of
        self._lock = threading.Lock()
        self._checks = 0

    def judge(self, attempt: Attempt, seen: Result) -> None:
        """The edge answered `seen`: give it to the frame now, or once the cloud had its say."""
        if attempt.choice.audit or attempt.settled:
            self._carrier.answer(attempt, seen, Place.EDGE)
            return
        quote = self._quote(attempt)
        verdict = self._escalation.judge(seen, _price_s(quote), reachable=quote is not None)
        if verdict.action is Action.ESCALATE and quote is not None:
            self._escalate(attempt, seen, verdict, quote)
            return
        attempt.choice = replace(attempt.choice, verified=verdict.verified, reason=verdict.reason)
        self._carrier.answer(attempt, seen, Place.EDGE)
        if verdict.action is Action.CHECK and quote is not None:
            self._check(attempt, seen, verdict, quote)

    def _escalate(self, attempt: Attempt, seen: Result, verdict: Verdict, quote: tuple[Decision, Way]) -> None:
        decision, way = quote
        attempt.choice = replace(attempt.choice, reason=verdict.reason, decision=_after(attempt, decision))
        late = partial(self._compare, seen, verdict)

        def said(ended: Ended) -> None:
            if ended.reply is not None and ended.reply.result is not None:
                self._escalation.compare(seen, ended.reply.result, verdict)
                attempt.choice = replace(attempt.choice, escalated=True)
                self._carrier.answer(attempt, ended.reply.result, way.place)
                return
            self._carrier.missed(ended)
            self._escalation.unanswered(verdict)
            attempt.choice = replace(attempt.choice, fallback=True, verified=False)
            self._carrier.answer(attempt, seen, Place.EDGE)

        # No hedge: the edge has answered. For the same reason nobody waits for a cloud that fell silent as long as is
        # worth it where there is no answer yet.
        limits = replace(self._limits_of(decision), hedge_s=None)
        if attempt.until_s is None:
            limits = replace(limits, wait_s=min(limits.wait_s, max(ERROR_S, 2 * decision.predicted_s)))
        self._carrier.inquire(attempt, Inquiry(way, limits, said, late))

    def _check(self, attempt: Attempt, seen: Result, verdict: Verdict, quote: tuple[Decision, Way]) -> None:
        with self._lock:
            if self._checks >= MOST_CHECKS:
                return
            self._checks += 1
        decision, way = quote
        late = partial(self._compare, seen, verdict)

        def checked(ended: Ended) -> None:
            with self._lock:
                self._checks -= 1
            if ended.reply is not None:
                late(ended.reply)
            else:
                self._carrier.missed(ended, awaited=False)

        limits = replace(self._limits_of(decision), hedge_s=None)
        self._carrier.inquire(attempt, Inquiry(way, limits, checked, late, hurried=False))

    def _compare(self, seen: Result, verdict: Verdict, reply: Reply) -> None:
        if reply.result is not None:
            self._escalation.compare(seen, reply.result, verdict)


def _price_s(quote: tuple[Decision, Way] | None) -> float | None:
    """The time until the cloud's answer, with what it costs at present prices; None where nobody knows."""
    if quote is None:
        return None
    decision, way = quote
    considered = next((each for each in decision.considered if each.way == way), None)
    return None if considered is None else considered.total_s + considered.price_s


def _after(attempt: Attempt, decision: Decision) -> Decision:
    """The cloud's decision as predicted from the start: the edge answers before it."""
    before = attempt.choice.decision
    if before is None:
        return decision
    return replace(
        decision,
        predicted_s=before.predicted_s + decision.predicted_s,
        low_s=before.low_s + decision.low_s,
        high_s=before.high_s + decision.high_s,
    )
