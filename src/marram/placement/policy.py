"""`LatencyPolicy`: each inference goes where the least loss is expected: the soonest, surest or cheapest way in time.

`T = min(T_transfer + T_queue + T_service in the cloud, T_wait + T_service at the edge)` from live measurements, each
delay a distribution, and the frames that come after this one looked at too. What each part does, and why, stands in its
own module: `link`, `services`, `forecast`, `lookahead`, `choosing`, `patience`, `circuit`, `hedging`, `prices`,
`balance`. This one puts them together and keeps the books of what is under way.

Pure: time is an argument; nothing here waits, reads a clock, or raises, whatever it is told.
"""

from __future__ import annotations

import random
from dataclasses import replace

from marram.placement import patience
from marram.placement.balance import Balancer
from marram.placement.choosing import Choice, choose, energy_j, miss
from marram.placement.circuit import Circuit, Reach
from marram.placement.clock import Clock
from marram.placement.constants import SHIPPED, Constants
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Decision, EdgeOutcome, LinkEstimate, Way
from marram.placement.forecast import EdgeQueue, Forecast, Forecaster
from marram.placement.hedging import HedgeBudget
from marram.placement.link import Flight, Link
from marram.placement.prices import Budget, Prices
from marram.placement.services import CloudModel
from marram.schema.load import LONGEST_S, Load
from marram.schema.placing import HEDGE
from marram.schema.result import Place

# After this share of the time that a request has, a probe asks whether the link is there.
_DOUBT = 0.7
# Why a way is no choice yet.
_UNKNOWN_LINK, _FIRST_UNDER_WAY = "the link is not measured yet", "its first answer is under way"


class LatencyPolicy:
    """See the module's words. One for each app on a device; implements `placement.contract.Policy`.

    `budget`: what may be spent in the long run. `hedge_share`: of the cloud's requests, so many may be started at the
    edge too. `seed`: of the draws among replicas; another one for each device, so that they do not move as a herd.
    """

    def __init__(
        self,
        *,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        hedge_share: float = HEDGE,
        seed: int = 0,
        constants: Constants = SHIPPED,
    ) -> None:
        self._constants = constants
        self._draw = random.Random(seed).random
        self._clock = Clock()
        self._link = Link(constants)
        self._edge = EdgeQueue()
        self._cloud: dict[str, CloudModel] = {}
        self._circuit = Circuit(constants.probe_after_s)
        self._forecaster = Forecaster(self._link, self._edge, self._cloud)
        self._hedges = HedgeBudget(hedge_share)
        self._prices = Prices(budget)

    # ------------------------------------------------ deciding

    def decide(self, ask: Ask) -> Decision:
        """See `Policy.decide`."""
        now_s = self._clock(ask.now_s)
        self._give_up_lost(now_s)
        ask = _sane(ask)
        forecasts, unmeasured = self._forecasts(ask, now_s)
        choice = self._choose(ask, forecasts, unmeasured)
        chosen = choice.forecast
        considered = tuple([each.considered() for each in forecasts])
        if chosen is None:
            return Decision(Place.DROP, None, 0.0, choice.reason, considered=considered)
        place = chosen.way.place
        self._prices.asked(now_s, ask.costs, chosen.total_s)
        timeout_s = hedge_s = None
        if place is not Place.EDGE:
            edge = next((each for each in forecasts if each.way.place is Place.EDGE), None)
            hedge_s = self._hedge(ask, chosen, edge)
            measured, hedged = edge is not unmeasured, hedge_s is not None
            timeout_s = patience.timeout_s(
                ask, chosen, edge, self._patience_s(chosen), measured=measured, hedged=hedged
            )
        shown = considered[next(i for i, each in enumerate(forecasts) if each is chosen)]
        return Decision(
            place=place,
            way=chosen.way,
            predicted_s=shown.total_s,
            reason=choice.reason,
            timeout_s=timeout_s,
            hedge_s=hedge_s,
            replica=chosen.replica,
            low_s=shown.low_s,
            high_s=shown.high_s,
            idle_s=_idle(ask, chosen, forecasts),
            renew=place in (Place.CLOUD, Place.PEER) and self._renews(ask, now_s),
            considered=considered,
            costs=ask.costs,
        )

    def _forecasts(self, ask: Ask, now_s: float) -> tuple[list[Forecast], Forecast | None]:
        """All ways, predicted, and the edge's where it never ran here (predicted to take nothing)."""
        forecasts: list[Forecast] = []
        unmeasured: Forecast | None = None
        for way in ask.ways:
            if way.place is Place.EDGE:
                forecast = self._forecaster.edge(way, ask, now_s)
                if forecast is None:
                    forecast = unmeasured = Forecast(way, 1.0)
            elif way.place is Place.DROP:
                continue
            else:
                forecast = self._forecaster.far(way, ask, now_s)
                if self._circuit.away:
                    forecast.excluded = "the cloud is away"
                elif not self._link.known:
                    forecast.excluded = _UNKNOWN_LINK
                elif ask.objective != "cloud" and self._awaits_first(way.key):
                    forecast.excluded = _FIRST_UNDER_WAY
            self._weigh(ask, forecast)
            forecasts.append(forecast)
        return forecasts, unmeasured

    def _renews(self, ask: Ask, now_s: float) -> bool:
        """Whether the edge, which is not asked now, is to be measured: it is idle, and may have become quicker."""
        if ask.edge_waiting or ask.objective == "cloud":
            return False
        for way in ask.ways:
            if way.place is Place.EDGE:
                service = self._edge.services.get(way.key)
                return service is not None and service.stale(now_s)
        return False

    def _awaits_first(self, key: str) -> bool:
        """Whether the first answer of a model is under way: what it takes is not known, nor whether it is loaded."""
        model = self._cloud.get(key)
        if model is None or model.service.count:
            return False
        return any(flight.key == key and not flight.given_up for flight in self._link.flights.values())

    def _weigh(self, ask: Ask, forecast: Forecast) -> None:
        if self._prices.any:
            costs = ask.costs
            forecast.price_s = self._prices.joule_s * energy_j(forecast, costs.edge_w, costs.send_w)
            if forecast.way.place not in (Place.EDGE, Place.PEER):
                forecast.price_s += self._prices.coin_s * costs.cloud_money
        forecast.weigh(ask.deadline_s, miss(ask))

    def _choose(self, ask: Ask, forecasts: list[Forecast], unmeasured: Forecast | None) -> Choice:
        if not forecasts:
            return Choice(None, "no way is allowed")
        usable = [each for each in forecasts if not each.excluded]
        edge = next((each for each in usable if each.way.place is Place.EDGE), None)
        far = [each for each in usable if each is not edge]
        if edge is None or (edge.on_time is not None and edge.on_time < 0.5 and edge is not unmeasured):
            # Where the edge cannot answer (in time), trying what was never measured costs nothing.
            tried = [each for each in forecasts if each.excluded in (_UNKNOWN_LINK, _FIRST_UNDER_WAY)]
            if tried and not far:
                return Choice(
                    min(tried, key=lambda each: each.loss_s), "the cloud is tried: nothing is known of it yet"
                )
        if not usable:
            return Choice(None, f"nobody can answer: {forecasts[0].excluded}")
        if edge is not None and edge is unmeasured and ask.objective != "cloud":
            # The first frame measures the edge, those behind it need not wait for that.
            if not far or not ask.edge_waiting or ask.objective == "edge":
                return Choice(edge, "the edge is measured by it")
            usable = far
        if edge is not None and not far:
            others = [each.excluded for each in forecasts if each.excluded]
            reason = f"the edge: {others[0]}" if others else "only the edge may answer"
            if not (ask.may_drop and ask.deadline_s is not None):
                return Choice(edge, reason)
        return choose(ask, usable, self._constants)

    # ------------------------------------------------ until when the cloud is waited for

    def _hedge(self, ask: Ask, chosen: Forecast, edge: Forecast | None) -> float | None:
        """When the edge begins too: only where it would then be on time, and beyond the reply's usual time."""
        spare = patience.spare_s(ask, edge)
        return spare if spare is not None and spare > chosen.total_s and self._hedges.left else None

    def _patience_s(self, chosen: Forecast) -> float:
        """See `patience.patience_s`."""
        model = self._cloud.get(chosen.way.key)
        return patience.patience_s(chosen, known=self._link.known and model is not None and model.service.count > 0)

    # ------------------------------------------------ learning

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        """See `Policy.learn`."""
        now_s = self._clock(outcome.now_s)
        if isinstance(outcome, EdgeOutcome):
            if 0 <= outcome.service_s <= LONGEST_S:
                self._edge.ended(now_s, outcome.key, outcome.service_s)
                self._prices.computed(outcome.service_s)
        elif isinstance(outcome, CloudSent):
            self._sent(now_s, outcome)
        elif outcome.ok or outcome.busy:
            self._answered(now_s, outcome)
        else:
            self._unanswered(now_s, outcome)

    def hedged(self) -> None:
        """See `Policy.hedged`."""
        self._hedges.hedged()

    def _sent(self, now_s: float, sent: CloudSent) -> None:
        size = max(0, sent.bytes)
        flight = Flight(now_s, sent.key, size)
        way = Way(Place.CLOUD, sent.key or "", size)
        if sent.key is None:
            flight.patience_s = patience.overdue_s(self._forecaster.far(way, _NOTHING, now_s))
            flight.behind = any(
                each.key is not None and not each.left and not each.given_up for each in self._link.flights.values()
            )
        else:
            model = self._cloud.get(sent.key)
            if model is None:
                model = self._cloud[sent.key] = CloudModel(Balancer(self._draw))
            expected = self._forecaster.far(way, _NOTHING, now_s)
            flight.patience_s = self._patience_s(expected)
            model.balancer.sent(now_s, sent)
            model.breaker.sent(now_s, flight.patience_s)
            self._hedges.asked()
            flight.network_s = expected.vary_s
        self._link.sent(sent.id, flight)
        self._prices.sent(size * self._link.per_byte_s, sent.key is not None)

    def _answered(self, now_s: float, outcome: CloudOutcome) -> None:
        """A reply, or a refusal for the queue there: over the link it came all the same."""
        flight = self._link.ended(outcome.id)
        if flight is None:
            return
        self._circuit.heard(now_s)
        model = self._cloud.get(flight.key) if flight.key is not None else None
        queue_s, service_s = _duration(outcome.queue_s), _duration(outcome.service_s)
        if model is not None:
            if outcome.busy:
                model.queue.value_s, model.queue.heard_s = max(model.queue.value_s, queue_s), now_s
                model.balancer.failed(now_s, outcome)
            else:
                model.balancer.heard(now_s, outcome, flight.network_s)
        elif outcome.loads:
            self._announced(now_s, outcome.loads)
        self._link.measure(now_s, flight, 0.0 if outcome.busy else queue_s + service_s)
        if model is not None and not outcome.busy:
            model.service.add(now_s, service_s)
            model.queue.add(now_s, queue_s)
            model.breaker.succeed()

    def _announced(self, now_s: float, loads: tuple[Load, ...]) -> None:
        """A probe's answer told the load of replicas. A key begins with the model; the rest of it is the shape."""
        for key, model in self._cloud.items():
            reference = key.partition(" ")[0]
            model.balancer.learn_probe(now_s, [load for load in loads if load.model == reference])

    def _unanswered(self, now_s: float, outcome: CloudOutcome) -> None:
        """Refused at once, or not answered in time. A censored sample: what is overdue counts as still on its way."""
        flight = self._link.flights.get(outcome.id)
        if flight is None:
            return
        if not outcome.timed_out:
            self._link.ended(outcome.id)
            if flight.key is None:
                self._probe_failed(now_s, flight)
            else:
                self._failed(now_s, flight, outcome)
            return
        flight.given_up = True
        if flight.key is None:
            self._probe_failed(now_s, flight)
        elif not flight.lost and now_s - flight.sent_s >= 0.99 * flight.patience_s:
            self._failed(now_s, flight, outcome)

    def _give_up_lost(self, now_s: float) -> None:
        """What nobody waits for any more, but what may still have been under way, is lost once it is overdue.

        Before that a probe goes, so that it is known by then whether it is the link, or whoever was asked.
        """
        for number, flight in self._link.flights.items():
            waited_s = now_s - flight.sent_s
            if flight.lost:
                continue
            if flight.key is None:
                if waited_s >= flight.patience_s:
                    flight.lost = True
                    self._open_where_silent(now_s)
                continue
            if not flight.doubted and not flight.left and waited_s >= _DOUBT * flight.patience_s:
                flight.doubted = True
                self._circuit.doubt()
            if flight.given_up and waited_s >= flight.patience_s:
                self._failed(now_s, flight, CloudOutcome(now_s, number, False, timed_out=True))

    def _failed(self, now_s: float, flight: Flight, outcome: CloudOutcome) -> None:
        """A request was refused, or is missing: whoever was asked is left alone, the edge answers.

        Whether the link is there at all is for probes to find out.
        """
        flight.lost = True
        model = self._cloud[flight.key or ""]
        model.balancer.failed(now_s, outcome)
        # One replica of several that fails is left alone, not the model.
        if outcome.replica is None or not model.balancer.others(now_s, outcome.replica):
            model.breaker.fail(now_s)
        if not flight.doubted and not flight.left:
            self._circuit.doubt()
        self._open_where_silent(now_s)

    def _probe_failed(self, now_s: float, flight: Flight) -> None:
        flight.lost = True
        if not flight.left:
            self._circuit.failed(now_s)

    def _open_where_silent(self, now_s: float) -> None:
        """The circuit opens once a request and a probe are missing, and nothing was answered that was sent later."""
        missing = [flight for flight in self._link.flights.values() if flight.lost and not flight.left]
        if any(flight.key is None for flight in missing) and any(flight.key is not None for flight in missing):
            self._circuit.failed(now_s)

    # ------------------------------------------------ the link

    def probe_due(self, now_s: float) -> int | None:
        """See `Policy.probe_due`."""
        now_s = self._clock(now_s)
        self._give_up_lost(now_s)
        waited_for = sum(not flight.given_up for flight in self._link.flights.values())
        return self._circuit.probe_due(now_s, waited_for, self._link.heard_s, measured=self._link.measured)

    def link(self) -> LinkEstimate:
        """See `Policy.link`."""
        if not self._link.known:
            return LinkEstimate(None, None, False)
        return LinkEstimate(8 / self._link.per_byte_s, self._link.rtt_s, self._circuit.reach is Reach.CLOSED)


_NOTHING = Ask(0.0, ())


def _sane(ask: Ask) -> Ask:
    """The same with a deadline that is one: what is no number is none, what has passed is now."""
    deadline_s = ask.deadline_s
    if deadline_s is None or 0 <= deadline_s < LONGEST_S:
        return ask
    return replace(ask, deadline_s=0.0 if deadline_s < 0 else None)


def _idle(ask: Ask, chosen: Forecast, forecasts: list[Forecast]) -> float:
    """See `Decision.idle_s`."""
    if ask.objective != "soonest":
        return chosen.total_s - chosen.wait_s
    return min(each.total_s - each.wait_s for each in forecasts if not each.excluded or each is chosen)


def _duration(value: float) -> float:
    return value if 0 <= value <= LONGEST_S else 0.0
