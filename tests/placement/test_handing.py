"""When a replica hands a request on, and to whom."""

from __future__ import annotations

import math

import pytest

from marram.placement.handing import BURST, GONE_S, HEARD_RATE, RATE, Handing, Pace
from marram.schema.load import Load


def load(name: str, waiting: int, service_s: float = 0.02, queue_s: float | None = None) -> Load:
    return Load(name, "m@1", waiting, waiting * service_s if queue_s is None else queue_s, service_s)


def told(*loads: Load, at_s: float = 0.0) -> Handing:
    handing = Handing()
    for each in loads:
        handing.heard(at_s, each)
    return handing


def test_alone_it_answers_everything_itself() -> None:
    assert Handing().to(0, load("me", 100)) is None


def test_to_the_one_that_is_soonest_and_only_where_that_gains() -> None:
    handing = told(load("idle", 0), load("busy", 5), load("slow", 0, 0.5))
    assert handing.to(0, load("me", 4)) == "idle"
    assert told(load("idle", 0)).to(0, load("me", 0)) is None
    assert told(load("as busy", 3)).to(0, load("me", 3)) is None


def test_a_slow_one_hands_on_though_nobody_waits_there() -> None:
    assert told(load("fast", 1)).to(0, load("me", 0, 0.3)) == "fast"


def test_what_was_given_since_the_news_is_counted() -> None:
    handing = told(load("a", 0), load("b", 1))
    assert [handing.to(0, load("me", 3)) for _ in range(6)] == ["a", "a", "b", "a", "b", None]
    handing.heard(0.1, load("a", 0))
    assert handing.to(0.1, load("me", 3)) == "a"


def test_not_to_one_that_served_nothing_yet_nor_to_one_long_silent_nor_to_one_that_was_missed() -> None:
    assert told(load("new", 0, 0.0)).to(0, load("me", 9)) is None
    assert told(load("gone", 0)).to(GONE_S + 0.1, load("me", 9)) is None
    handing = told(load("a", 0))
    handing.missed("a")
    assert handing.to(0, load("me", 9)) is None and len(handing) == 0


def test_one_that_served_nothing_yet_takes_itself_for_as_fast_as_the_others() -> None:
    assert told(load("a", 0)).to(0, load("me", 3, 0.0)) == "a"
    assert told(load("a", 0)).to(0, load("me", 0, 0.0)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e9])
def test_what_cannot_be_true_is_not_heard(value: float) -> None:
    assert told(load("odd", 0, value)).known(0) == [] and told(load("odd", 0, queue_s=value)).known(0) == []
    assert told(load("odd", -1)).known(0) == [] and told(load("x" * 65, 0)).known(0) == []


def test_what_is_known_has_its_age_the_least_loaded_first() -> None:
    handing = told(load("b", 4), load("a", 1))
    assert [(each.replica, each.age_s) for each in handing.known(0.5)] == [("a", 0.5), ("b", 0.5)]


def test_a_load_is_told_at_once_after_quiet_and_so_often_in_the_long_run() -> None:
    for others, rate in ((1, RATE), (100, HEARD_RATE / 100)):
        pace, now_s, said = Pace(), 0.0, 0
        while now_s < 20:
            pause_s = pace.pause_s(now_s, others)
            if pause_s > 0:
                assert said >= BURST
                now_s += pause_s + 1e-6
                continue
            pace.said()
            said += 1
        assert said == pytest.approx(20 * rate + BURST, rel=0.05)
