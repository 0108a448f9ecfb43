"""`LatencyPolicy`: each inference goes where it is expected to be answered soonest (or surest, or cheapest).

`T = min(T_transfer + T_queue + T_service in the cloud, T_wait + T_service at the edge)` from live measurements: every
reply carries the replica's own queue and service time, so the network and the processing are learnt apart; small probes
keep the picture of an idle link true, which matters more than anything else here. A cloud that stays silent is left
alone until a probe comes back. Frames are never sent just to learn: in simulation forced exploration cost far more
than probes do.

Pure: time is an argument; nothing here waits, reads a clock, or raises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from marram.placement.contract import (
    Ask,
    CloudOutcome,
    CloudSent,
    Considered,
    Decision,
    EdgeOutcome,
    LinkEstimate,
    Way,
)
from marram.placement.estimators import LONGEST_S, LinkModel, Queue, ServiceTime
from marram.schema.app import Objective
from marram.schema.result import Place

# A small probe tells the round trip, a large one the rate as well.
_PING_BYTES = 200
_PROBE_BYTES = 6000
_PROBE_AFTER_S = 0.7
_STARTUP_PROBES_S = 0.15
_RETRY_PROBE_S = 0.4
_MAX_PROBES_OUT = 4
# A probe that took longer says that the link is back, but nothing of what it is like.
_TIMELY_S = 1.5
_EDGE_HALF_LIFE_S = 20.0
_CLOUD_HALF_LIFE_S = 8.0
_TIMEOUT_SLACK_S = 0.05
_UNKNOWN_TIMEOUT_S = 2.0
_ALONE_TIMEOUT_S = 5.0
_MAX_BAR_S = 16.0
_FORGET_AFTER_S = 60.0
_MAX_OVERDUE = 64


class Circuit(StrEnum):
    """Whether the cloud is asked: `open` after a request went unanswered, `closed` again by a timely reply."""

    UNKNOWN = "unknown"  # nothing heard yet
    CLOSED = "closed"
    OPEN = "open"


@dataclass(slots=True)
class _Flight:
    """A request or probe under way."""

    sent_s: float
    key: str | None
    size: int
    predicted_s: float = 0.0


@dataclass(slots=True)
class _CloudModel:
    """One cloud model: its service time and queue, and until when it is left alone after failing."""

    service: ServiceTime
    queue: Queue
    deviation_s: float = 0.0  # mean |error| of the predicted whole, as TCP keeps it (RFC 6298)
    barred_until_s: float = -math.inf
    bar_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _CloudDelay:
    """The predicted delay of the cloud, in parts, seconds. `wait_s`: what of it is our own earlier requests' doing."""

    wait_s: float
    transfer_s: float
    queue_s: float
    service_s: float

    @property
    def total_s(self) -> float:
        return self.transfer_s + self.queue_s + self.service_s

    @property
    def alone_s(self) -> float:
        """Were nothing of our own under way."""
        return self.total_s - self.wait_s


@dataclass(frozen=True, slots=True)
class _Asked:
    """An ask with at most one way of each kind."""

    now_s: float
    edge_key: str
    cloud_key: str | None
    payload_bytes: int
    edge_waiting: int
    edge_parallel: int
    deadline_s: float | None
    objective: Objective
    edge_allowed: bool
    cloud_allowed: bool

    @classmethod
    def of(cls, ask: Ask, edge: Way | None, cloud: Way | None) -> _Asked:
        return cls(
            ask.now_s,
            edge.key if edge else "",
            cloud.key if cloud else None,
            cloud.payload_bytes if cloud else 0,
            ask.edge_waiting,
            ask.edge_parallel,
            ask.deadline_s,
            ask.objective,
            edge is not None,
            cloud is not None,
        )


class LatencyPolicy:
    """See the module's words. One for each app on a device; implements `placement.contract.Policy`."""

    def __init__(self) -> None:
        self._link = LinkModel()
        self._edge: dict[str, ServiceTime] = {}
        self._cloud: dict[str, _CloudModel] = {}
        self._flights: dict[int, _Flight] = {}
        self._overdue: dict[int, _Flight] = {}  # given up, but a late reply is still a true measurement
        self._circuit = Circuit.UNKNOWN
        self._uploaded_s = -math.inf  # when the last answered request had left, by the estimate of the time
        self._link_free_s = -math.inf  # when everything sent so far will have left
        self._probe_not_before_s = -math.inf
        self._probed = 0

    # ------------------------------------------------ deciding

    def decide(self, asked: Ask) -> Decision:
        """See `Policy.decide`."""
        ways = {way.place: way for way in reversed(asked.ways)}
        ask = _Asked.of(asked, ways.get(Place.EDGE), ways.get(Place.CLOUD))
        edge_s = self._edge_delay(ask) if ask.edge_allowed else None
        cloud = self._cloud_delay(ask.now_s, ask.cloud_key, ask.payload_bytes) if ask.cloud_allowed else None
        place, reason = self._choose(ask, edge_s, cloud)
        # What a person reads is what is expected, not the hope that has a silent place tried again.
        cloud_s = cloud.total_s if cloud else None
        predicted = edge_s if place is Place.EDGE else cloud_s if place is Place.CLOUD else 0.0
        considered = []
        if edge_s is not None:
            considered.append(Considered(ways[Place.EDGE], edge_s, edge_s, edge_s, service_s=edge_s))
        if cloud is not None:
            considered.append(
                Considered(
                    ways[Place.CLOUD],
                    cloud.total_s,
                    cloud.total_s,
                    cloud.total_s,
                    transfer_s=cloud.transfer_s,
                    queue_s=cloud.queue_s,
                    service_s=cloud.service_s,
                )
            )
        return Decision(
            place=place,
            way=ways.get(place),
            predicted_s=predicted if predicted is not None else 0.0,
            timeout_s=self._timeout(ask, edge_s, cloud_s) if place is Place.CLOUD else None,
            reason=reason,
            idle_s=self._idle(ask, place, cloud),
            considered=tuple(considered),
        )

    def hedged(self, now_s: float) -> None:
        """See `Policy.hedged`."""

    def _choose(self, ask: _Asked, edge_s: float | None, cloud: _CloudDelay | None) -> tuple[Place, str]:
        may_cloud = ask.cloud_allowed and ask.cloud_key is not None
        silent = may_cloud and self._silent(ask)
        if not ask.edge_allowed:
            if not may_cloud:
                return Place.DROP, "neither the edge nor the cloud may answer"
            if silent:
                return Place.DROP, "the cloud is away and the edge may not answer"
            return Place.CLOUD, "only the cloud may answer"
        if not may_cloud or ask.objective == "edge":
            return Place.EDGE, "only the edge may answer" if not may_cloud else "always the edge"
        if silent:
            return Place.EDGE, "the cloud is away"
        if ask.objective == "cloud":
            return Place.CLOUD, "always the cloud"
        if cloud is None:
            return Place.EDGE, "the link is not measured yet"
        if edge_s is None:
            # Nothing ran here yet: the first frame measures the edge, those behind it need not wait for that.
            return (Place.CLOUD, "the edge is not measured yet and busy") if ask.edge_waiting else (Place.EDGE, "first")
        return self._weigh(ask, edge_s, cloud)

    def _weigh(self, ask: _Asked, edge_s: float, cloud: _CloudDelay) -> tuple[Place, str]:
        deadline_s = ask.deadline_s if ask.deadline_s is not None else math.inf
        cloud_s = cloud.total_s
        if ask.objective == "surest":
            if cloud_s <= deadline_s:
                return Place.CLOUD, "surest, and within the deadline" if ask.deadline_s else "surest"
            if edge_s <= deadline_s:
                return Place.EDGE, "the cloud would miss the deadline"
        elif ask.objective == "cheapest":
            if edge_s <= deadline_s:
                return Place.EDGE, "cheapest"
            if cloud_s <= deadline_s:
                return Place.CLOUD, "the edge would miss the deadline"
        hope_edge, hope_cloud = self._hopes(ask, edge_s, cloud)
        return (Place.EDGE, "soonest") if hope_edge <= hope_cloud else (Place.CLOUD, "soonest")

    def _hopes(self, ask: _Asked, edge_s: float, cloud: _CloudDelay) -> tuple[float, float]:
        """Both delays, each allowed the benefit of the doubt where nothing was heard of it for long."""
        service = self._edge[ask.edge_key]
        if service.typical_s:
            edge_s *= (service.hopeful_s(ask.now_s, _EDGE_HALF_LIFE_S) or 0.0) / service.typical_s
        hope = self._cloud[ask.cloud_key].service.hopeful_s(ask.now_s, _CLOUD_HALF_LIFE_S) if (
            ask.cloud_key in self._cloud
        ) else None  # fmt: skip
        cloud_s = cloud.transfer_s + cloud.queue_s + (hope if hope is not None else cloud.service_s)
        return edge_s, cloud_s

    def _idle(self, ask: _Asked, place: Place, cloud: _CloudDelay | None) -> float | None:
        """See `Decision.idle_s`."""
        edge = self._edge.get(ask.edge_key)
        edge_s = edge.typical_s if edge is not None and ask.edge_allowed else None
        cloud_s = cloud.alone_s if cloud is not None and not self._silent(ask) else None
        if ask.objective != "soonest":
            return cloud_s if place is Place.CLOUD else edge_s
        return min((s for s in (edge_s, cloud_s) if s is not None), default=None)

    def _silent(self, ask: _Asked) -> bool:
        if self._circuit is Circuit.OPEN:
            return True
        model = self._cloud.get(ask.cloud_key or "")
        return model is not None and ask.now_s < model.barred_until_s

    # ------------------------------------------------ predicting

    def _edge_delay(self, ask: _Asked) -> float | None:
        service = self._edge.get(ask.edge_key)
        if service is None or service.typical_s is None:
            return None
        parallel = max(1, ask.edge_parallel)
        # Whoever runs now is half done, on average.
        ahead = max(0.0, ask.edge_waiting - parallel + 0.5) if ask.edge_waiting >= parallel else 0.0
        return service.typical_s * (1 + ahead / parallel)

    def _cloud_delay(self, now_s: float, key: str | None, payload_bytes: int) -> _CloudDelay | None:
        if not self._link.known:
            return None
        model = self._cloud.get(key or "")
        service_s = 0.0 if model is None or model.service.typical_s is None else model.service.typical_s
        queue_s = 0.0 if model is None else model.queue.now(now_s)
        link_wait_s = max(0.0, self._link_free_s + self._link.deviation_s - now_s) if self._flights else 0.0
        transfer_s = self._link.predict(max(0, payload_bytes)) + link_wait_s
        transfer_s = max(transfer_s, self._late(now_s, service_s + queue_s))
        # One replica answers one after another: never sooner than our own last request there, and its service time.
        last_s = max((f.sent_s + f.predicted_s for f in self._flights.values() if f.key == key), default=-math.inf)
        behind_s = max(0.0, last_s - now_s + service_s - transfer_s - queue_s - service_s)
        return _CloudDelay(link_wait_s + behind_s, transfer_s, queue_s + behind_s, service_s)

    def _late(self, now_s: float, processing_s: float) -> float:
        """The oldest request under way is overdue: the link is at best as slow as that shows, for this decision only.

        Written into the estimate it would make it worse (the regret rose from 18 to 28 % in simulation).
        """
        oldest = next(iter(self._flights.values()), None)
        return max(0.0, now_s - oldest.sent_s - processing_s) if oldest is not None else 0.0

    def _timeout(self, ask: _Asked, edge_s: float | None, cloud_s: float | None) -> float:
        """How long the cloud has: until the edge could just still answer in time, or well beyond what it takes."""
        if cloud_s is None:
            generous_s = _UNKNOWN_TIMEOUT_S
        else:
            # Generous: giving up on a cloud that is only slow makes several frames queue at the edge at once, while one
            # that is away costs this but once, for what was under way.
            generous_s = max(2 * cloud_s, cloud_s + 4 * self._deviation(ask)) + _TIMEOUT_SLACK_S
        if not ask.edge_allowed:
            return max(4 * generous_s, _ALONE_TIMEOUT_S)
        if ask.deadline_s is None or edge_s is None:
            return generous_s
        service = self._edge[ask.edge_key]
        spare_s = ask.deadline_s - max(edge_s, service.quantile_s(0.95) or 0.0)
        # Where the edge alone would be late anyway, giving up early saves nothing.
        return min(spare_s, generous_s) if cloud_s is None or spare_s > cloud_s else generous_s

    def _deviation(self, ask: _Asked) -> float:
        """How far off predictions were lately: of the whole where requests were answered, else of the link."""
        model = self._cloud.get(ask.cloud_key or "")
        return model.deviation_s if model is not None and model.service.count else self._link.deviation_s

    # ------------------------------------------------ learning

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        if isinstance(outcome, EdgeOutcome):
            self._edge.setdefault(outcome.key, ServiceTime()).add(outcome.now_s, outcome.service_s)
        elif isinstance(outcome, CloudSent):
            self._sent(outcome)
        else:
            self._answered(outcome)

    def _sent(self, sent: CloudSent) -> None:
        size = max(0, sent.bytes)
        expected = self._cloud_delay(sent.now_s, sent.key, size)
        self._flights[sent.id] = _Flight(sent.now_s, sent.key, size, expected.total_s if expected else 0.0)
        self._link_free_s = max(sent.now_s, self._link_free_s) + size * self._link.per_byte_s
        # What a caller never reports the end of must not be waited for, nor kept, for ever.
        oldest_id, oldest = next(iter(self._flights.items()))
        if sent.now_s - oldest.sent_s > _FORGET_AFTER_S:
            del self._flights[oldest_id]

    def _answered(self, outcome: CloudOutcome) -> None:
        flight = self._flights.pop(outcome.id, None)
        now_s = outcome.now_s
        if not outcome.ok:
            if flight is not None:
                self._failed(flight, now_s)
                if outcome.timed_out:
                    self._overdue[outcome.id] = flight
                    if len(self._overdue) > _MAX_OVERDUE:
                        del self._overdue[next(iter(self._overdue))]
            return
        flight = flight or self._overdue.pop(outcome.id, None)
        if flight is None:
            return
        elapsed_s = now_s - flight.sent_s
        if self._circuit is Circuit.OPEN and elapsed_s > _TIMELY_S:
            self._probe_not_before_s = now_s  # something came through: ask again at once
            return
        self._circuit = Circuit.CLOSED
        queue_s, service_s = _duration(outcome.queue_s), _duration(outcome.service_s)
        self._measure_link(flight, now_s, queue_s + service_s)
        if flight.key is not None:
            model = self._cloud_model(flight.key)
            error_s = min(abs(elapsed_s - flight.predicted_s), LONGEST_S)
            model.deviation_s += (0.25 if model.service.count else 1.0) * (error_s - model.deviation_s)
            model.service.add(now_s, service_s)
            model.queue.add(now_s, queue_s)
            model.bar_s, model.barred_until_s = 0.0, -math.inf

    def _measure_link(self, flight: _Flight, now_s: float, processing_s: float) -> None:
        # Its own turn on the link began when it was sent, or when the one before it had left.
        begin_s = max(flight.sent_s, self._uploaded_s)
        delay_s = now_s - processing_s - begin_s
        if delay_s > 0:
            self._link.add(now_s, flight.size, delay_s)
        self._uploaded_s = max(begin_s, now_s - processing_s - (self._link.rtt_s or 0.0))
        # Those behind it began to leave no sooner than it had left, and no sooner than they were sent.
        free_s = self._uploaded_s
        for waiting in self._flights.values():
            free_s = max(free_s, waiting.sent_s) + waiting.size * self._link.per_byte_s
        self._link_free_s = free_s

    def _failed(self, flight: _Flight, now_s: float) -> None:
        """Unanswered or refused: the circuit opens, the edge answers, probes find out when it is over.

        A model that fails although probes come back (its replica hangs, or nobody serves it) is left alone for itself,
        for twice as long each time.
        """
        if flight.key is not None:
            model = self._cloud_model(flight.key)
            model.bar_s = min(max(0.25, 2 * model.bar_s), _MAX_BAR_S)
            model.barred_until_s = now_s + model.bar_s
        if self._circuit is not Circuit.OPEN:
            self._circuit = Circuit.OPEN
            self._probe_not_before_s = now_s

    def _cloud_model(self, key: str) -> _CloudModel:
        model = self._cloud.get(key)
        if model is None:
            model = self._cloud[key] = _CloudModel(ServiceTime(), Queue())
        return model

    # ------------------------------------------------ probing

    def probe_due(self, now_s: float) -> int | None:
        if now_s < self._probe_not_before_s:
            return None
        if self._circuit is Circuit.OPEN or not self._link.known:
            if len(self._flights) >= _MAX_PROBES_OUT:
                return None
            self._probe_not_before_s = now_s + _RETRY_PROBE_S
            return _PING_BYTES
        if self._flights or now_s - self._link.heard_s < self._probe_after_s():
            return None
        self._probe_not_before_s = now_s + self._probe_after_s()
        self._probed += 1
        return _PROBE_BYTES if self._probed % 2 else _PING_BYTES

    def _probe_after_s(self) -> float:
        # A few in quick succession at first: the sooner the link is known, the fewer frames go the wrong way.
        return _STARTUP_PROBES_S if self._probed < 4 else _PROBE_AFTER_S

    def link(self) -> LinkEstimate:
        per_byte_s = self._link.per_byte_s
        rate = 8 / per_byte_s if self._link.known and per_byte_s > 0 else None
        return LinkEstimate(rate, self._link.rtt_s, self._circuit is Circuit.CLOSED)


def _duration(value: float) -> float:
    return value if 0 <= value <= LONGEST_S else 0.0
