"""The placement decision in its plainest form: what `LatencyPolicy` refines, to read and to compare with.

One average of the whole delay for each place, the lower one wins; a failure sends everything to the edge until a probe
comes back. It knows nothing of message sizes, queues or stale measurements. Pure, as every policy.
"""

from __future__ import annotations

import math

from marram.placement.circuit import PROBE_BYTES
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Decision, EdgeOutcome, LinkEstimate
from marram.schema.load import LONGEST_S
from marram.schema.result import Place

_PROBE_EVERY_S = 0.5
_ALPHA = 0.3


class GreedyPolicy:
    """`min` of two averages. Implements `placement.contract.Policy`."""

    def __init__(self) -> None:
        self._edge_s: dict[str, float] = {}
        self._cloud_s: dict[str, float] = {}
        self._probe_s: float | None = None
        self._out: dict[int, CloudSent] = {}
        self._up = False
        self._next_probe_s = -math.inf

    def decide(self, ask: Ask) -> Decision:
        ways = {way.place: way for way in reversed(ask.ways)}
        edge, far = ways.get(Place.EDGE), ways.get(Place.CLOUD)
        may_cloud = far is not None
        edge_s = self._edge_s.get(edge.key if edge else "", 0.0) * (1 + ask.edge_waiting / max(1, ask.edge_parallel))
        cloud_s = self._cloud_s.get(far.key if far else "", self._probe_s or 0.0)
        timeout_s = 2 * cloud_s + 0.1
        if not self._up or not may_cloud:
            place, reason = Place.EDGE, "the cloud is away"
        elif ask.objective in ("edge", "cloud"):
            place, reason = Place(ask.objective), f"always the {ask.objective}"
        else:
            deadline_s = math.inf if ask.deadline_s is None else ask.deadline_s
            wanted = {"surest": Place.CLOUD, "cheapest": Place.EDGE}.get(ask.objective)
            fits = {Place.EDGE: edge_s <= deadline_s, Place.CLOUD: cloud_s <= deadline_s}
            soonest = Place.EDGE if edge_s <= cloud_s else Place.CLOUD
            place, reason = (wanted, ask.objective) if wanted is not None and fits[wanted] else (soonest, "soonest")
        if place is Place.EDGE and edge is None:
            place, reason = (Place.CLOUD, "only the cloud") if self._up and may_cloud else (Place.DROP, "nobody may")
        cloud = place is Place.CLOUD
        predicted_s = cloud_s if cloud else edge_s if place is Place.EDGE else 0.0
        return Decision(place, ways.get(place), predicted_s, reason, timeout_s if cloud else None)

    def hedged(self) -> None:
        """See `Policy.hedged`."""

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        if isinstance(outcome, EdgeOutcome):
            if 0 <= outcome.service_s <= LONGEST_S:
                old_s = self._edge_s.get(outcome.key, outcome.service_s)
                self._edge_s[outcome.key] = old_s + _ALPHA * (outcome.service_s - old_s)
        elif isinstance(outcome, CloudSent):
            self._out[outcome.id] = outcome
        elif (sent := self._out.pop(outcome.id, None)) is not None:
            self._up = outcome.ok
            delay_s = outcome.now_s - sent.now_s
            if outcome.ok and 0 <= delay_s <= LONGEST_S:
                old = self._probe_s if sent.key is None else self._cloud_s.get(sent.key)
                new_s = delay_s if old is None else old + _ALPHA * (delay_s - old)
                if sent.key is None:
                    self._probe_s = new_s
                else:
                    self._cloud_s[sent.key] = new_s

    def probe_due(self, now_s: float) -> int | None:
        if now_s < self._next_probe_s:
            return None
        self._next_probe_s = now_s + _PROBE_EVERY_S
        return PROBE_BYTES

    def link(self) -> LinkEstimate:
        return LinkEstimate(None, self._probe_s, self._up)
