"""What one prediction is made of: who waits before us at the edge, on the link and at the replica; and odd samples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.placement.contract import Ask, CloudOutcome, CloudSent, Considered, Decision, EdgeOutcome, Way
from marram.placement.link import Flight, Link
from marram.placement.policy import LatencyPolicy
from marram.placement.services import ServiceTime
from marram.schema.result import Place


def measured(*, service_s: float, rate_bit_s: float = 1e6, rtt_s: float = 0.02) -> LatencyPolicy:
    """An edge of 100 ms; a cloud of `service_s` behind a link of `rate_bit_s`, both well known at 20 s."""
    policy = LatencyPolicy()
    policy.learn(EdgeOutcome(0.0, "edge", 0.1))
    for number in range(60):
        size, now_s = (200, 10_000, 40_000)[number % 3], number / 3
        policy.learn(CloudSent(now_s, number, "cloud", size))
        policy.learn(CloudOutcome(now_s + rtt_s + size * 8 / rate_bit_s + service_s, number, True, 0.0, service_s))
    return policy


def cloud_of(decision: Decision) -> Considered:
    return next(each for each in decision.considered if each.way.place is Place.CLOUD)


@pytest.mark.parametrize(
    ("waiting", "parallel", "expected_s"),
    # Whoever runs now is half done: one ahead of a single instance costs half a turn, four cost three and a half.
    [(0, 1, 0.1), (1, 1, 0.15), (4, 1, 0.45), (1, 2, 0.1), (2, 2, 0.125), (6, 2, 0.325)],
)
def test_at_the_edge_those_ahead_are_waited_for(waiting: int, parallel: int, expected_s: float) -> None:
    ask = Ask(21.0, (Way(Place.EDGE, "edge"),), edge_waiting=waiting, edge_parallel=parallel)
    assert measured(service_s=0.01).decide(ask).predicted_s == pytest.approx(expected_s)


def test_what_is_still_leaving_is_waited_for() -> None:
    policy = measured(service_s=0.01)
    ask = Ask(21.0, (Way(Place.EDGE, "edge"), Way(Place.CLOUD, "cloud", 10_000)))
    alone = policy.decide(ask)
    policy.learn(CloudSent(21.0, 100, "cloud", 25_000))  # 200 ms of the link
    behind = policy.decide(ask)
    assert cloud_of(alone).rtt_s + cloud_of(alone).transfer_s == pytest.approx(0.1, rel=0.1)
    assert cloud_of(alone).wait_s == 0
    assert cloud_of(behind).wait_s == pytest.approx(0.2, rel=0.15)
    assert behind.idle_s == pytest.approx(alone.idle_s)  # what it would take alone is unchanged by it


def test_at_the_replica_our_own_last_request_is_waited_for() -> None:
    policy = measured(service_s=0.5, rate_bit_s=1e8)
    ask = Ask(21.0, (Way(Place.EDGE, "edge"), Way(Place.CLOUD, "cloud", 200)))
    alone = policy.decide(ask)
    policy.learn(CloudSent(21.0, 100, "cloud", 200))
    behind = policy.decide(ask)
    assert cloud_of(alone).total_s == pytest.approx(0.52, rel=0.1)
    assert cloud_of(behind).total_s == pytest.approx(
        cloud_of(alone).total_s + 0.5, rel=0.1
    )  # one replica answers one after another
    assert cloud_of(behind).queue_s == pytest.approx(0.5, rel=0.1)


@given(stall_s=st.floats(1.0, 3600.0))
def test_one_stall_is_noise_and_a_second_one_is_news(stall_s: float) -> None:
    service = ServiceTime()
    for n in range(20):
        service.add(float(n), 0.1)
    service.add(20.0, stall_s)
    assert service.typical_s is not None and service.typical_s < 0.15
    for n in range(21, 61):
        service.add(float(n), stall_s)
    assert service.typical_s > 0.5 * stall_s


def told(link: Link, at_s: float, delay_s: float, size: int) -> None:
    """A message of `size` bytes left at `at_s` and was answered after `delay_s`."""
    flight = Flight(at_s, "cloud", size)
    link.sent(1, flight)
    link.ended(1)
    link.measure(at_s + delay_s, flight, 0.0)


@given(stall_s=st.floats(2.0, 60.0))
def test_one_retransmission_does_not_make_a_slow_link(stall_s: float) -> None:
    link = Link()

    def expected_s(now_s: float) -> float:
        delay = link.delay(now_s, 6000, 0.0)
        return delay.rtt_s + delay.transfer_s

    for n in range(40):
        told(link, 100.0 * n, 0.05, 6000)
    told(link, 4000.0, stall_s, 6000)
    assert expected_s(4000.0 + stall_s) < 0.6
    for n in range(41, 80):
        told(link, 100.0 * n, stall_s, 6000)
    assert expected_s(8000.0) > 0.5 * stall_s


def test_a_link_that_is_fast_again_is_believed_at_once() -> None:
    link = Link()

    for n in range(40):
        told(link, 3.0 * n, 2.5, 40_000)
    told(link, 120.0, 0.05, 40_000)
    delay = link.delay(120.1, 40_000, 0.0)
    assert delay.rtt_s + delay.transfer_s < 0.25
