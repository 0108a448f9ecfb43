"""Chooses among the ways as predicted, by the app's objective. A function of what it is given, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marram.placement.constants import Constants
from marram.placement.contract import Ask, Considered, Costs
from marram.placement.forecast import Forecast
from marram.placement.lookahead import First, Lane, Rollout
from marram.schema.result import Place

# A frame of a live source with a lesser chance of being on time is dropped rather than queued behind others.
_HOPELESS = 0.02
# Accuracies nearer to each other than about this were measured as the same: on hundreds of pictures at best.
_TELLABLE = 0.005
# Where nobody measured accuracy: the cloud's model is the larger one, in two parts as well.
# (A peer's is the edge's own.)
_TRUST = {Place.CLOUD: 2, Place.SPLIT: 2, Place.EDGE: 0, Place.PEER: 0}


@dataclass(frozen=True, slots=True)
class Choice:
    """`forecast` None: drop it."""

    forecast: Forecast | None
    reason: str


def choose(ask: Ask, forecasts: Sequence[Forecast], constants: Constants) -> Choice:
    """The best of `forecasts` (all of them usable, at least one) for the ask's objective."""
    if len(forecasts) == 1 and not _droppable(ask):
        return Choice(forecasts[0], f"only the {forecasts[0].way.place} may answer")
    if ask.objective == "edge":
        return _always(forecasts, Place.EDGE)
    if ask.objective == "cloud":
        return _always(forecasts, Place.CLOUD)
    if ask.objective in ("surest", "cheapest"):
        timely = [each for each in forecasts if each.on_time is None or each.on_time >= constants.sure]
        if timely:
            rank = _surest if ask.objective == "surest" else _cheapest
            kept = _affordable(timely)
            spared = " within the budget" if len(kept) < len(timely) else ""
            within = ", and on time" if ask.deadline_s is not None else ""
            return Choice(rank(ask, kept), f"{ask.objective}{spared}{within}")
    return _soonest(ask, forecasts, constants)


def _droppable(ask: Ask) -> bool:
    return ask.may_drop and ask.deadline_s is not None


def _always(forecasts: Sequence[Forecast], place: Place) -> Choice:
    """That place wherever it can, by the soonest way; a split counts as the cloud's, whose model answers."""
    places = (place, Place.SPLIT) if place is Place.CLOUD else (place,)
    there = [each for each in forecasts if each.way.place in places]
    if there:
        return Choice(min(there, key=_loss), f"always the {place}")
    return Choice(min(forecasts, key=_loss), f"the {place} cannot")


def _affordable(timely: Sequence[Forecast]) -> Sequence[Forecast]:
    """Without those whose price is more than the delay itself, which is how a budget holds where delay is no matter."""
    within = [each for each in timely if each.price_s <= each.total_s]
    return within or [min(timely, key=lambda each: each.price_s)]


def _surest(ask: Ask, timely: Sequence[Forecast]) -> Forecast:
    """The most accurate; where not all are measured, by place. Of equals the soonest."""
    if all(each.way.accuracy is not None for each in timely):
        return max(timely, key=lambda each: (_told(each.way.accuracy), -each.loss_s))
    return max(timely, key=lambda each: (_TRUST[each.way.place], _told(each.way.accuracy), -each.loss_s))


def _told(accuracy: float | None) -> int:
    """An accuracy in steps that can be told apart: what is less is not worth a later answer."""
    return round((accuracy or 0.0) / _TELLABLE)


def _cheapest(ask: Ask, timely: Sequence[Forecast]) -> Forecast:
    """The least money, then the least energy, then the edge; of equals the soonest."""
    costs = ask.costs

    def rank(each: Forecast) -> tuple[float, float, int, float]:
        return money(each, costs), energy_j(each, costs.edge_w, costs.send_w), _TRUST[each.way.place], each.loss_s

    return min(timely, key=rank)


def money(forecast: Forecast | Considered, costs: Costs) -> float:
    """What one way costs, in the currency of the costs."""
    return 0.0 if forecast.way.place in (Place.EDGE, Place.PEER) else costs.cloud_money


def energy_j(forecast: Forecast | Considered, edge_w: float, send_w: float) -> float:
    """What one way draws on this device, joules."""
    here_s = forecast.service_s if forecast.way.place is Place.EDGE else forecast.front_s
    return edge_w * here_s + send_w * forecast.transfer_s


def _soonest(ask: Ask, forecasts: Sequence[Forecast], constants: Constants) -> Choice:
    """The least expected loss, that of the frames after it included where it is known when they come."""
    miss_s = miss(ask)
    drop = _droppable(ask)
    if drop:
        forecasts = [each for each in forecasts if (each.on_time or 0.0) > _HOPELESS or not _queued(each)]
        if not forecasts:
            return Choice(None, "it would be late, behind others")
    if ask.every_s is None or not ask.every_s > 0 or not constants.depth:
        best = min(forecasts, key=_loss)
        return Choice(best, "soonest")
    edge_s = max(each.edge_wait_s for each in forecasts)
    link_s = max(each.link_wait_s for each in forecasts)
    rollout = Rollout(
        constants.depth,
        ask.every_s,
        _lane(forecasts, edge=True),
        _lane(forecasts, edge=False),
        ask.deadline_s,
        miss_s,
        drop,
    )
    if rollout.overloaded:
        # For certain of the edge only: how long the link keeps a frame waiting is a guess.
        forecasts = [each for each in forecasts if each.way.place is not Place.EDGE or each.wait_s < ask.every_s]
        if not forecasts:
            return Choice(None, "those behind it are answered sooner without it")
    best = greedy = min(forecasts, key=_loss)
    best_s = greedy_s = float("inf")
    for each in forecasts:
        first = First(
            each.loss_s,
            edge_s + each.edge_busy_s,
            max(link_s, each.edge_wait_s + each.edge_busy_s) + each.link_busy_s if each.link_busy_s else link_s,
        )
        loss_s = rollout.loss_s(first)
        if each is greedy:
            greedy_s = loss_s
        if loss_s < best_s:
            best, best_s = each, loss_s
    # Not for a gain that the estimates cannot tell from none: what is sent is also measured.
    if best is not greedy and best_s > greedy_s - constants.gain * miss_s:
        best = greedy
    return Choice(best, "soonest")


def miss(ask: Ask) -> float:
    """What an answer after the deadline costs, seconds."""
    return 2 * ask.deadline_s if ask.deadline_s is not None else 0.0


def _queued(forecast: Forecast) -> bool:
    return forecast.wait_s > 0


def _loss(forecast: Forecast) -> float:
    return forecast.loss_s


def _lane(forecasts: Sequence[Forecast], *, edge: bool) -> Lane | None:
    """How later frames fare on one of the two queues: as the best of today's ways there, were nothing in its way."""
    there = [each for each in forecasts if (each.way.place is Place.EDGE) is edge]
    if not there:
        return None
    best = min(there, key=_loss)
    if edge:
        return Lane(0.0, best.service_s, best.spread, best.edge_busy_s, best.price_s)
    vary_s = best.transfer_s + best.rtt_s
    return Lane(best.front_s + best.queue_s + best.service_s, vary_s, best.spread, best.link_busy_s, best.price_s)
