"""What every policy keeps to, whatever it is told: allowed places only, finite figures, no exception, and recovery."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.lab.oracle.baselines import BASELINES, Profile
from marram.lab.simulate import World, simulate
from marram.lab.traces import constant, synthetic
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Costs, Decision, EdgeOutcome, Policy, Way
from marram.placement.policy import LatencyPolicy
from marram.placement.reference import GreedyPolicy
from marram.schema.result import Place

POLICIES: list[Callable[[], Policy]] = [LatencyPolicy, GreedyPolicy]
PROFILE = Profile(0.15, 0.025, 0.03)
BASELINE_POLICIES: list[Callable[[], Policy]] = [partial(make, PROFILE) for make in BASELINES.values()]
every_policy = pytest.mark.parametrize("make", POLICIES + BASELINE_POLICIES)
every_own = pytest.mark.parametrize("make", POLICIES)  # baselines promise neither probes nor time limits

anything = st.floats(allow_nan=True, allow_infinity=True)
keys = st.sampled_from(["a", "b"])
ways = st.lists(
    st.builds(
        Way,
        place=st.sampled_from([Place.EDGE, Place.CLOUD, Place.SPLIT]),
        key=keys,
        payload_bytes=st.integers(-1, 10**8),
    ),
    max_size=4,
).map(tuple)
asks = st.builds(
    Ask,
    now_s=anything,
    ways=ways,
    edge_waiting=st.integers(0, 50),
    edge_parallel=st.integers(0, 16),
    deadline_s=st.none() | anything,
    objective=st.sampled_from(["soonest", "surest", "cheapest", "edge", "cloud"]),
    every_s=st.none() | anything,
    may_drop=st.booleans(),
    costs=st.builds(Costs, st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)),
)
outcomes = st.one_of(
    st.builds(EdgeOutcome, now_s=st.floats(0, 1e6), key=keys, service_s=anything),
    st.builds(
        CloudSent, now_s=st.floats(0, 1e6), id=st.integers(0, 9), key=st.none() | keys, bytes=st.integers(0, 10**7)
    ),
    st.builds(
        CloudOutcome,
        now_s=st.floats(0, 1e6),
        id=st.integers(0, 9),
        ok=st.booleans(),
        queue_s=anything,
        service_s=anything,
        timed_out=st.booleans(),
    ),
)


def check(ask: Ask, decision: Decision) -> None:
    allowed = {way.place for way in ask.ways} | {Place.DROP}
    assert decision.place in allowed
    assert (decision.way is None) == (decision.place is Place.DROP)
    assert decision.way is None or decision.way in ask.ways
    if Place.EDGE in allowed and not ask.may_drop:
        assert decision.place is not Place.DROP, "a frame the edge may answer is never given up"
    assert math.isfinite(decision.predicted_s)
    assert decision.predicted_s >= 0
    if decision.place in (Place.CLOUD, Place.SPLIT):
        assert decision.timeout_s is not None
        assert 0 < decision.timeout_s < math.inf
    else:
        assert decision.timeout_s is None
    for each in decision.considered:
        assert math.isfinite(each.total_s) and each.total_s >= 0, each
    assert decision.idle_s is None or (math.isfinite(decision.idle_s) and decision.idle_s >= 0)
    assert decision.reason


@every_policy
@given(st.lists(outcomes | asks | st.floats(0, 1e6), max_size=60))
@settings(max_examples=100, deadline=None)
def test_nothing_it_is_told_makes_it_raise_or_choose_wrongly(
    make: Callable[[], Policy], told: list[EdgeOutcome | CloudSent | CloudOutcome | Ask | float]
) -> None:
    policy = make()
    for each in told:
        if isinstance(each, Ask):
            check(each, policy.decide(each))
        elif isinstance(each, float):
            size = policy.probe_due(each)
            assert size is None or 0 < size < 100_000
        else:
            policy.learn(each)
        link = policy.link()
        assert link.rate_bit_s is None or link.rate_bit_s >= 0
        assert link.rtt_s is None or 0 <= link.rtt_s < math.inf


@every_policy
@given(st.lists(st.tuples(asks, st.floats(0, 2), st.booleans()), max_size=80))
@settings(max_examples=40, deadline=None)
def test_in_true_order_as_well(make: Callable[[], Policy], steps: list[tuple[Ask, float, bool]]) -> None:
    """The same with a clock that only rises and every request ended, so that the deeper states are reached."""
    policy, now_s = make(), 0.0
    for number, (ask, step_s, ok) in enumerate(steps):
        now_s += step_s
        size = policy.probe_due(now_s)
        if size is not None:
            policy.learn(CloudSent(now_s, -1 - number, None, size))
            policy.learn(CloudOutcome(now_s + 0.01, -1 - number, ok, timed_out=not ok))
        ask = dataclasses.replace(ask, now_s=now_s)
        decision = policy.decide(ask)
        check(ask, decision)
        if decision.place in (Place.CLOUD, Place.SPLIT):
            policy.learn(CloudSent(now_s, number, decision.way.key, decision.way.payload_bytes))
            now_s += decision.timeout_s or 0
            policy.learn(CloudOutcome(now_s, number, ok, 0.0, 0.01, timed_out=not ok))
        elif decision.place is Place.EDGE:
            policy.learn(EdgeOutcome(now_s, decision.way.key, step_s))


@every_own
def test_before_anything_is_known_the_edge_answers_and_a_probe_goes_out(make: Callable[[], Policy]) -> None:
    policy = make()
    assert policy.decide(Ask(0.0, (Way(Place.EDGE, "edge"), Way(Place.CLOUD, "cloud", 10_000)))).place is Place.EDGE
    assert policy.probe_due(0.0)
    assert not policy.link().up


@every_own
@pytest.mark.parametrize(("rate", "rtt_s", "better"), [(20e6, 0.01, Place.CLOUD), (0.2e6, 0.3, Place.EDGE)])
def test_it_finds_the_place_that_is_plainly_sooner(
    make: Callable[[], Policy], rate: float, rtt_s: float, better: Place
) -> None:
    outcome = simulate(World(constant(rate, rtt_s), edge_s=0.15, length_s=20), make())
    assert outcome.share(better, after_s=2.0) > 0.95


@every_own
def test_a_blackout_costs_each_frame_in_flight_one_timeout_and_nobody_else_anything(make: Callable[[], Policy]) -> None:
    world = World(synthetic("wifi", 1), edge_s=0.15, length_s=40, outages=((15.0, 25.0),))
    outcome = simulate(world, make())
    away = [a for a in outcome.answers if 15.0 <= a.captured_s < 25.0]
    assert len(away) > 40, "results keep coming"
    assert all(a.place is Place.EDGE for a in away)
    stalled = [a for a in outcome.answers if a.fallback]
    # Those under way when it went, those placed before the first of them timed out, and nobody later.
    assert len(stalled) <= 4
    assert all(a.captured_s < 15.5 for a in stalled if a.captured_s > 14)


@every_own
def test_it_goes_back_to_the_cloud_soon_after_the_link_heals(make: Callable[[], Policy]) -> None:
    world = World(synthetic("wifi", 1), edge_s=0.15, length_s=40, outages=((15.0, 25.0),))
    outcome = simulate(world, make())
    assert outcome.share(Place.CLOUD, after_s=28.0) > 0.95
    assert min(a.captured_s for a in outcome.answers if a.captured_s > 25 and a.place is Place.CLOUD) < 27


@every_own
def test_objectives(make: Callable[[], Policy]) -> None:
    world = World(constant(20e6, 0.01), edge_s=0.15, length_s=10)
    for objective, place in (
        ("edge", Place.EDGE),
        ("cloud", Place.CLOUD),
        ("surest", Place.CLOUD),
        ("cheapest", Place.EDGE),
    ):
        outcome = simulate(dataclasses.replace(world, objective=objective), make())
        assert outcome.share(place, after_s=2.0) > 0.95, objective
    # A deadline that the edge cannot keep moves the cheapest into the cloud; one that the cloud cannot, the surest out.
    tight = dataclasses.replace(world, objective="cheapest", deadline_s=0.1)
    assert simulate(tight, make()).share(Place.CLOUD, after_s=2.0) > 0.95
    slow = World(constant(0.3e6, 0.2), edge_s=0.1, length_s=10, objective="surest", deadline_s=0.2)
    assert simulate(slow, make()).share(Place.EDGE, after_s=2.0) > 0.95
