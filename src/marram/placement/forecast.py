"""What each way is expected to take now, as a distribution: `fixed_s` and beside it a log-normal part.

Only predicts: what it knows it is given (`Link`, `ServiceTime`, `CloudModel`), and nothing it does changes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from marram.placement.contract import Ask, Considered, Way
from marram.placement.link import Flight, Link
from marram.placement.lognormal import expected_loss, on_time
from marram.placement.services import CloudModel, ServiceTime
from marram.schema.result import Place

# How soon it is tried whether what was slow is still slow, and what of a cold start may have been its coldness: a
# replica may have loaded the model, the edge has it loaded.
_EDGE_HOPE = (20.0, 0.5)
_CLOUD_HOPE = (8.0, 0.05)
_TENTH = 1.2816  # the standard normal's 90th percentile


@dataclass(slots=True)
class Forecast:
    """One way, predicted: medians in seconds, parts as in `Considered`.

    `relief_s`: how much less it might be, were a place not heard of for long as it usually is; decisions count on that,
    people are not told. `edge_busy_s`, `link_busy_s`: for how long it keeps the two queues busy, and until when they
    are busy before it (`edge_wait_s`, `link_wait_s`).
    """

    way: Way
    spread: float
    wait_s: float = 0.0
    front_s: float = 0.0
    transfer_s: float = 0.0
    rtt_s: float = 0.0
    queue_s: float = 0.0
    service_s: float = 0.0
    vary_s: float = 0.0
    relief_s: float = 0.0
    edge_wait_s: float = 0.0
    edge_busy_s: float = 0.0
    link_wait_s: float = 0.0
    link_busy_s: float = 0.0
    on_time: float | None = None
    loss_s: float = 0.0
    price_s: float = 0.0
    replica: str | None = None
    excluded: str = ""

    @property
    def total_s(self) -> float:
        return self.wait_s + self.front_s + self.transfer_s + self.rtt_s + self.queue_s + self.service_s

    @property
    def fixed_s(self) -> float:
        return max(0.0, self.total_s - self.vary_s)

    def at(self, deviations: float) -> float:
        """The quantile at so many standard deviations."""
        return self.fixed_s + self.vary_s * math.exp(deviations * self.spread)

    def weigh(self, deadline_s: float | None, miss_s: float) -> None:
        """Chance of being on time, and expected loss, price included."""
        fixed_s = max(0.0, self.fixed_s - self.relief_s)
        vary_s = self.vary_s if self.way.place is not Place.EDGE else max(0.0, self.total_s - self.relief_s - fixed_s)
        if deadline_s is not None:
            self.on_time = on_time(fixed_s, vary_s, self.spread, deadline_s)
        self.loss_s = expected_loss(fixed_s, vary_s, self.spread, deadline_s, miss_s) + self.price_s

    def considered(self) -> Considered:
        """For whoever wants to know why."""
        total_s, vary_s = self.total_s, self.vary_s
        fixed_s, ratio = max(0.0, total_s - vary_s), math.exp(_TENTH * self.spread)
        return Considered(
            self.way,
            total_s,
            fixed_s + vary_s / ratio,
            fixed_s + vary_s * ratio,
            self.wait_s,
            self.front_s,
            self.transfer_s,
            self.rtt_s,
            self.queue_s,
            self.service_s,
            self.on_time,
            self.price_s,
            self.replica,
            self.excluded,
        )


class EdgeQueue:
    """How long who comes now waits at the edge."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceTime] = {}
        self._idle_s = -math.inf  # when it was last seen without work
        self._ended_s = -math.inf  # when an inference last ended there

    def ended(self, now_s: float, key: str, service_s: float) -> None:
        """An inference ended there."""
        self._ended_s = now_s
        service = self.services.get(key)
        if service is None:
            service = self.services[key] = ServiceTime()
        service.add(now_s, service_s)

    def wait_s(self, ask: Ask, now_s: float, typical_s: float) -> float:
        """Until `ask` would have its turn, each before it taking `typical_s`."""
        waiting, parallel = max(0, ask.edge_waiting), max(1, ask.edge_parallel)
        if not waiting:
            self._idle_s = now_s
        if waiting < parallel:
            return 0.0
        rest = 0.5  # whoever runs now is half done, on average
        if parallel == 1 and typical_s > 0:
            # With one instance it is known since when: it was idle until then, or the one before ended.
            share = (now_s - max(self._idle_s, self._ended_s)) / typical_s
            if share < 2:
                rest = max(0.1, 1 - share)
        return typical_s * (waiting - parallel + rest) / parallel


class Forecaster:
    """Predicts every way of an ask."""

    def __init__(self, link: Link, edge: EdgeQueue, cloud: dict[str, CloudModel]) -> None:
        self._link, self._edge, self._cloud = link, edge, cloud

    def edge(self, way: Way, ask: Ask, now_s: float) -> Forecast | None:
        """None while nothing of that kind ran here."""
        service = self._edge.services.get(way.key)
        if service is None or service.typical_s is None:
            return None
        typical_s = service.typical_s
        wait_s = self._edge.wait_s(ask, now_s, typical_s)
        relief_s = typical_s - (service.hopeful_s(now_s, *_EDGE_HOPE) or 0.0)
        return Forecast(
            way,
            service.spread,
            wait_s=wait_s,
            service_s=typical_s,
            vary_s=typical_s,
            relief_s=relief_s,
            edge_wait_s=wait_s,
            edge_busy_s=typical_s / max(1, ask.edge_parallel),
        )

    def far(self, way: Way, ask: Ask, now_s: float) -> Forecast:
        """In the cloud, all of it or its back."""
        wait_s, front_s, edge_wait_s, edge_busy_s = 0.0, max(0.0, _finite(way.encode_s)), 0.0, 0.0
        if way.place is Place.SPLIT:
            front = self._front_s(way, ask)
            edge_wait_s = wait_s = self._edge.wait_s(ask, now_s, front)
            front_s += front
            edge_busy_s = front / max(1, ask.edge_parallel)
        head = next((flight for flight in self._link.flights.values() if not flight.left), None)
        delay = self._link.delay(now_s, max(0, way.payload_bytes), self._processing_s(head, now_s))
        # What is still leaving goes on leaving while the front runs.
        link_wait_s = max(0.0, delay.wait_s - wait_s - front_s)
        forecast = Forecast(
            way,
            delay.spread,
            wait_s=wait_s + link_wait_s,
            front_s=front_s,
            transfer_s=delay.transfer_s,
            rtt_s=delay.rtt_s,
            vary_s=link_wait_s + delay.transfer_s + delay.rtt_s,
            edge_wait_s=edge_wait_s,
            edge_busy_s=edge_busy_s,
            link_wait_s=delay.wait_s,
            link_busy_s=delay.transfer_s,
        )
        self._replica(forecast, now_s, delay.wait_s + front_s + delay.transfer_s)
        return forecast

    def _front_s(self, way: Way, ask: Ask) -> float:
        """What the front takes; never run here: half of what the whole takes, which is found out by trying it."""
        front = self._edge.services.get(way.front or "")
        if front is not None and front.typical_s is not None:
            return front.typical_s
        for other in ask.ways:
            whole = self._edge.services.get(other.key) if other.place is Place.EDGE else None
            if whole is not None and whole.typical_s is not None:
                return 0.5 * whole.typical_s
        return 0.0

    def _processing_s(self, flight: Flight | None, now_s: float) -> float:
        model = self._cloud.get(flight.key) if flight is not None and flight.key is not None else None
        return 0.0 if model is None else (model.service.typical_s or 0.0) + model.queue.now(now_s)

    def _replica(self, forecast: Forecast, now_s: float, arrives_s: float) -> None:
        """Add what it takes at the replica, `arrives_s` from now; name which one, or say why none is asked."""
        model = self._cloud.get(forecast.way.key)
        if model is None:
            return
        typical_s = model.service.typical_s or 0.0
        hopeful_s = model.service.hopeful_s(now_s, *_CLOUD_HOPE) or 0.0
        choice = model.balancer.choose(now_s)
        if not model.breaker.allows(now_s):
            forecast.excluded = "it failed, and is left alone for a while"
        elif choice is None:
            forecast.excluded = "its replicas have as much as they take, or are left alone"
        if choice is not None and choice.replica is not None:
            forecast.replica = choice.replica
            slowdown = choice.slowdown if 0 < choice.slowdown < math.inf else 1.0
            forecast.service_s = typical_s * slowdown if typical_s else choice.service_s
            forecast.queue_s = choice.queue_s
            forecast.rtt_s += choice.path_s
        else:
            forecast.service_s = typical_s
            forecast.queue_s = model.queue.now(now_s)
            # One replica answers one after another: our own requests under way there come first.
            own = [flight for flight in self._link.flights.values() if flight.key == forecast.way.key]
            if own and typical_s:
                begun_s = max(0.0, now_s - own[0].sent_s - own[0].network_s)
                behind_s = len(own) * typical_s - begun_s - arrives_s
                forecast.queue_s = max(forecast.queue_s, behind_s, 0.0)
        forecast.relief_s = max(0.0, typical_s - hopeful_s)


def _finite(value: float) -> float:
    return value if -math.inf < value < math.inf else 0.0
