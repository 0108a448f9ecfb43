"""The policy on a virtual clock: late heads of line, open circuits, hedges, budgets, drops, slow replicas, clocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.placement.contract import Ask, CloudOutcome, CloudSent, Considered, Costs, Decision, EdgeOutcome, Way
from marram.placement.hedging import HedgeBudget
from marram.placement.lognormal import beyond, expected_loss, on_time
from marram.placement.policy import LatencyPolicy
from marram.placement.prices import Budget
from marram.placement.services import Breaker, State
from marram.schema.app import Objective
from marram.schema.load import Load
from marram.schema.result import Place

EDGE = Way(Place.EDGE, "edge", accuracy=0.8)
CLOUD = Way(Place.CLOUD, "cloud", 10_000, accuracy=0.9)


def known(*, edge_s: float = 0.15, rate_bit_s: float = 8e6, rtt_s: float = 0.03, **options: object) -> LatencyPolicy:
    """At 10 s everything is well known: the cloud takes `rtt_s` + the transfer + 20 ms."""
    policy = LatencyPolicy(**options)  # type: ignore[arg-type]
    for n in range(30):
        policy.learn(EdgeOutcome(n / 3, "edge", edge_s))
        size = (200, 6000, 10_000)[n % 3]
        policy.learn(CloudSent(n / 3, n, "cloud", size))
        policy.learn(CloudOutcome(n / 3 + rtt_s + size * 8 / rate_bit_s + 0.02, n, True, 0.0, 0.02))
    return policy


def parts(each: Considered) -> float:
    return each.wait_s + each.front_s + each.transfer_s + each.rtt_s + each.queue_s + each.service_s


def live(now_s: float, deadline_s: float | None = 0.25, **fields: object) -> Ask:
    return Ask(now_s, (EDGE, CLOUD), deadline_s=deadline_s, every_s=0.2, may_drop=True, **fields)  # type: ignore[arg-type]


# ---------------------------------------------------------------- predicting


def test_every_way_is_told_with_parts_that_add_up_and_a_range() -> None:
    policy = known()
    policy.learn(EdgeOutcome(9.9, "front", 0.04))
    split = Way(Place.SPLIT, "back", 3000, front="front", codec="cut:embedding")
    policy.learn(CloudSent(9.95, 99, "cloud", 50_000))
    decision = policy.decide(Ask(10.0, (EDGE, CLOUD, split), edge_waiting=1, deadline_s=0.3))
    assert [each.way for each in decision.considered] == [EDGE, CLOUD, split]
    for each in decision.considered:
        assert each.total_s == pytest.approx(parts(each))
        assert each.low_s < each.total_s < each.high_s
        assert each.on_time is not None and 0 <= each.on_time <= 1
    assert decision.considered[2].front_s == pytest.approx(0.04)
    assert decision.predicted_s == min(each.total_s for each in decision.considered)


def test_a_split_wins_where_its_small_message_and_short_front_do() -> None:
    policy = known(edge_s=0.3, rate_bit_s=4e5)
    policy.learn(EdgeOutcome(9.9, "front", 0.05))
    split = Way(Place.SPLIT, "back", 1000, front="front")
    decision = policy.decide(Ask(10.0, (EDGE, CLOUD, split)))
    assert decision.place is Place.SPLIT
    assert decision.timeout_s is not None


def test_an_overdue_head_of_line_is_waited_for_longer_the_longer_it_is_overdue() -> None:
    policy = known()
    policy.learn(CloudSent(10.0, 99, "cloud", 10_000))
    waits = []
    for late_s in (0.0, 0.1, 0.2, 0.4):
        (cloud,) = (c for c in policy.decide(Ask(10.0 + late_s, (EDGE, CLOUD))).considered if c.way is CLOUD)
        waits.append(cloud.wait_s + cloud.transfer_s)
    assert waits[1] > waits[0] + 0.01
    assert waits[1:] == sorted(waits[1:])
    # A later message was answered: the link is not what it waits for.
    policy.learn(CloudSent(10.41, 100, None, 200))
    policy.learn(CloudOutcome(10.45, 100, True))
    (cloud,) = (c for c in policy.decide(Ask(10.45, (EDGE, CLOUD))).considered if c.way is CLOUD)
    assert cloud.wait_s == 0


@given(st.floats(0, 0.3), st.floats(1e-6, 0.5), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_expected_loss_is_that_of_the_quantiles(
    fixed_s: float, vary_s: float, spread: float, late_s: float
) -> None:
    normal = NormalDist()
    delays = [fixed_s + vary_s * math.exp(spread * normal.inv_cdf((i + 0.5) / 2000)) for i in range(2000)]
    losses = [delay if delay <= late_s else 2 * late_s for delay in delays]
    assert expected_loss(fixed_s, vary_s, spread, late_s, 2 * late_s) == pytest.approx(
        sum(losses) / len(losses), rel=0.01, abs=2e-3 * late_s
    )
    chance = sum(delay <= late_s for delay in delays) / len(delays)
    assert on_time(fixed_s, vary_s, spread, late_s) == pytest.approx(chance, abs=2e-3)


@pytest.mark.parametrize("z", [-2.0, -0.3, 0.0, 1.1, 3.7, 5.9])
def test_what_is_known_of_a_normal_variable_beyond_a_point(z: float) -> None:
    normal = NormalDist()
    survival = 0.5 * math.erfc(z / math.sqrt(2))
    mean, median = beyond(z)
    assert mean == pytest.approx(normal.pdf(z) / survival, rel=0.01)
    assert 0.5 * math.erfc(median / math.sqrt(2)) == pytest.approx(survival / 2, rel=0.02)


# ---------------------------------------------------------------- dropping


def test_an_old_frame_that_would_be_late_behind_others_is_dropped_and_a_new_one_served() -> None:
    policy = known(rate_bit_s=1e6)
    policy.learn(CloudSent(10.0, 99, "cloud", 10_000))
    policy.learn(CloudSent(10.0, 100, "cloud", 10_000))
    old = policy.decide(live(10.02, deadline_s=0.05, edge_waiting=2))
    assert old.place is Place.DROP and old.way is None
    assert old.considered
    new = policy.decide(live(10.02, deadline_s=0.5, edge_waiting=2))
    assert new.place is not Place.DROP


def test_what_may_not_be_dropped_never_is_and_what_only_the_edge_could_answer_late_is_answered() -> None:
    policy = known(rate_bit_s=1e6)
    file = Ask(10.02, (EDGE, CLOUD), edge_waiting=5, deadline_s=0.01)
    assert policy.decide(file).place is not Place.DROP
    # Nothing is in its way, so a newer frame would be no sooner: a late answer is better than none.
    alone = Ask(10.02, (EDGE,), deadline_s=0.05, every_s=0.2, may_drop=True)
    assert policy.decide(alone).place is Place.EDGE


# ---------------------------------------------------------------- the cloud goes


def test_after_a_blackhole_one_request_at_a_time_tries_the_model_again() -> None:
    breaker = Breaker()
    breaker.fail(10.0)
    assert breaker.state(10.1) is State.OPEN and not breaker.allows(10.1)
    assert breaker.state(10.3) is State.HALF_OPEN and breaker.allows(10.3)
    breaker.sent(10.3, 1.0)
    assert not breaker.allows(10.5)
    assert breaker.allows(11.4), "a trial that is never reported on does not block for ever"
    breaker.fail(11.4)
    assert breaker.state(11.4 + 0.4) is State.OPEN, "longer each time"
    breaker.succeed()
    assert breaker.state(11.9) is State.CLOSED


def test_a_link_that_swallows_everything_costs_no_frame_its_answer() -> None:
    policy, now_s = known(), 10.0
    places = []
    for n in range(100, 160):
        size = policy.probe_due(now_s)
        if size is not None:
            policy.learn(CloudSent(now_s, -n, None, size))
        decision = policy.decide(Ask(now_s, (EDGE, CLOUD), deadline_s=0.4))
        places.append(decision.place)
        if decision.place is Place.CLOUD:
            policy.learn(CloudSent(now_s, n, "cloud", 10_000))
            policy.learn(CloudOutcome(now_s + (decision.timeout_s or 0), n, False, timed_out=True))
        now_s += 0.5
    assert places[0] is Place.CLOUD
    assert Place.CLOUD not in places[4:]
    assert not policy.link().up
    policy.learn(CloudSent(now_s, 1, None, 200))
    policy.learn(CloudOutcome(now_s + 0.03, 1, True))
    assert policy.link().up


def test_where_the_edge_cannot_be_on_time_an_unknown_cloud_is_tried() -> None:
    policy = LatencyPolicy()
    policy.learn(EdgeOutcome(0.0, "edge", 0.3))
    assert policy.decide(live(0.1)).place is Place.CLOUD
    assert policy.decide(live(0.1, deadline_s=1.0)).place is Place.EDGE


def test_a_refusal_for_the_queue_is_no_outage() -> None:
    policy = known()
    policy.learn(CloudSent(10.0, 99, "cloud", 10_000))
    policy.learn(CloudOutcome(10.05, 99, False, queue_s=0.4, busy=True))
    assert policy.link().up
    decision = policy.decide(Ask(10.06, (EDGE, CLOUD)))
    assert decision.place is Place.EDGE
    assert policy.decide(Ask(20.0, (EDGE, CLOUD))).place is Place.CLOUD


# ---------------------------------------------------------------- hedges, objectives, budgets


@given(st.floats(0, 0.5), st.lists(st.booleans(), max_size=400))
@settings(max_examples=50, deadline=None)
def test_hedges_stay_within_their_share(share: float, wanted: Sequence[bool]) -> None:
    budget, started = HedgeBudget(share), 0
    for want in wanted:
        budget.asked()
        if want and budget.left:
            budget.hedged()
            started += 1
    assert started <= share * len(wanted) + 2


def test_a_hedge_is_started_only_where_it_would_be_on_time() -> None:
    policy = known()
    assert policy.decide(live(10.0, deadline_s=0.25)).hedge_s is not None
    assert policy.decide(live(10.0, deadline_s=0.15)).hedge_s is None
    assert policy.decide(live(10.0, deadline_s=0.25, edge_waiting=3)).hedge_s is None
    assert policy.decide(live(10.0, deadline_s=None)).hedge_s is None


@pytest.mark.parametrize(
    ("objective", "deadline_s", "place"),
    [
        ("surest", None, Place.CLOUD),
        ("surest", 0.25, Place.CLOUD),
        ("surest", 0.04, Place.CLOUD),  # neither is on time: the soonest
        ("cheapest", None, Place.EDGE),
        ("cheapest", 0.25, Place.EDGE),
        ("cheapest", 0.15, Place.CLOUD),  # the edge makes it every other time, which is no more than chance
        ("edge", 0.05, Place.EDGE),
        ("cloud", None, Place.CLOUD),
    ],
)
def test_objectives_count_on_what_is_mostly_on_time(objective: Objective, deadline_s: float, place: Place) -> None:
    decision = known().decide(Ask(10.0, (EDGE, CLOUD), deadline_s=deadline_s, objective=objective))
    assert decision.place is place


def test_the_cheapest_goes_by_money_then_energy() -> None:
    policy = known()
    hungry = Ask(10.0, (EDGE, CLOUD), objective="cheapest", costs=Costs(edge_w=10.0, send_w=1.0))
    assert policy.decide(hungry).place is Place.CLOUD
    paid = Ask(10.0, (EDGE, CLOUD), objective="cheapest", costs=Costs(10.0, 1.0, cloud_money=0.001))
    assert policy.decide(paid).place is Place.EDGE


@pytest.mark.parametrize(
    ("budget", "costs", "spent_at", "objective"),
    [
        # All at the edge would draw 10 W x 50 ms x 10/s = 5 W; all in the cloud would cost 0.01 a second.
        (Budget(watts=2.0), Costs(edge_w=10.0), Place.EDGE, "soonest"),
        (Budget(money_s=0.004), Costs(cloud_money=0.001), Place.CLOUD, "soonest"),
        # Who would always be the surest, or the cheapest, keeps to the budget as well.
        (Budget(money_s=0.004), Costs(cloud_money=0.001), Place.CLOUD, "surest"),
        (Budget(watts=2.0), Costs(edge_w=10.0, cloud_money=0.001), Place.EDGE, "cheapest"),
    ],
)
def test_prices_hold_a_budget_within_a_tenth(
    budget: Budget, costs: Costs, spent_at: Place, objective: Objective
) -> None:
    edge_s, rtt_s = (0.05, 0.09) if spent_at is Place.EDGE else (0.12, 0.03)
    policy, spent, counted_from_s = known(edge_s=edge_s, rtt_s=rtt_s, budget=budget), 0.0, 40.0
    for n in range(3000):
        now_s = 11 + n / 10
        decision = policy.decide(Ask(now_s, (EDGE, CLOUD), objective=objective, costs=costs))
        if objective != "soonest":  # it says what it kept to
            assert ("within the budget" in decision.reason) == (decision.place is not spent_at)
        if decision.place is Place.EDGE:
            policy.learn(EdgeOutcome(now_s + edge_s, "edge", edge_s))
            amount = costs.edge_w * edge_s
        else:
            policy.learn(CloudSent(now_s, 1000 + n, "cloud", 10_000))
            policy.learn(CloudOutcome(now_s + rtt_s + 0.01 + 0.02, 1000 + n, True, 0.0, 0.02))
            amount = costs.cloud_money
        if now_s >= counted_from_s:
            spent += amount
    allowed = (budget.watts or budget.money_s or 0.0) * (311 - counted_from_s)
    assert 0.9 * allowed <= spent <= 1.1 * allowed


# ---------------------------------------------------------------- replicas, clocks


def test_a_slow_replica_is_known_by_name_and_left_for_the_fast_one() -> None:
    policy, asked = LatencyPolicy(), []
    policy.learn(EdgeOutcome(0.0, "edge", 2.0))
    for n in range(200):
        now_s = n / 5
        decision = policy.decide(Ask(now_s, (EDGE, CLOUD)))
        replica = decision.replica or ("slow", "fast")[n % 2]
        policy.learn(CloudSent(now_s, n, "cloud", 10_000, decision.replica))
        service_s = 0.3 if replica == "slow" else 0.02
        loads = tuple(Load(name, "cloud", 0, 0.0, 0.0) for name in ("slow", "fast"))
        told = CloudOutcome(now_s + 0.03 + service_s, n, True, 0.0, service_s, replica=replica, waiting=0, loads=loads)
        policy.learn(told)
        asked.append(replica)
        if n > 50:
            (cloud,) = (c for c in decision.considered if c.way is CLOUD)
            assert cloud.replica is not None
    assert asked[50:].count("slow") < 15


def test_where_its_replicas_are_full_the_cloud_is_no_choice() -> None:
    policy = known()
    for n in range(100, 200):
        policy.learn(CloudSent(10.0, n, "cloud", 100))
    decision = policy.decide(Ask(10.0, (EDGE, CLOUD)))
    assert decision.place is Place.EDGE
    assert next(c for c in decision.considered if c.way is CLOUD).excluded


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_lying_clock_stalls_nothing(told: list[float]) -> None:
    """Whatever the clock said in between, five seconds later it decides and probes as before."""
    policy = known()
    for now_s in told:
        decision: Decision = policy.decide(Ask(now_s, (EDGE, CLOUD)))
        assert decision.place in (Place.EDGE, Place.CLOUD)
        policy.probe_due(now_s)
    now_s = 20.0
    for n in range(2000, 2040):
        now_s += 0.25
        size = policy.probe_due(now_s)
        if size is not None:
            policy.learn(CloudSent(now_s, n, None, size))
            policy.learn(CloudOutcome(now_s + 0.03, n, True))
    assert policy.link().up
    assert policy.decide(Ask(now_s, (EDGE, CLOUD))).place is Place.CLOUD
