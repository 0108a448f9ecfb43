"""Which replica is asked: properties whatever replicas say, and a crowd of devices on a virtual clock."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.lab.crowd import Crowd, World
from marram.lab.crowd_rules import Clairvoyant, Random
from marram.placement.balance import Balancer, Choice
from marram.placement.contract import CloudOutcome, CloudSent
from marram.schema.load import Load

KEY = "model@1"


class Rig:
    """A balancer and the requests it has under way, on a clock of its own."""

    def __init__(self, seed: int = 1) -> None:
        self.balancer = Balancer(random.Random(seed).random)
        self.now_s = 100.0
        self.number = 0

    def send(self, replica: str | None = None) -> int:
        self.number += 1
        self.balancer.sent(self.now_s, CloudSent(self.now_s, self.number, KEY, 1000, replica))
        return self.number

    def answer(self, number: int, replica: str, after_s: float = 0.03, **said: Any) -> None:
        self.now_s += after_s
        said = {"queue_s": 0.0, "service_s": 0.02, "waiting": 0} | said
        self.balancer.heard(self.now_s, CloudOutcome(self.now_s, number, True, replica=replica, **said))

    def fail(self, number: int, **how: Any) -> None:
        self.balancer.failed(self.now_s, CloudOutcome(self.now_s, number, False, **how))

    def know(self, *names: str, waiting: int = 0, service_s: float = 0.02) -> None:
        self.balancer.learn_probe(
            self.now_s, [Load(name, KEY, waiting, waiting * service_s, service_s) for name in names]
        )

    def choose(self) -> Choice | None:
        return self.balancer.choose(self.now_s)

    def chosen(self, times: int = 200) -> Counter[str | None]:
        """Whom so many requests go to, each answered before the next."""
        asked: Counter[str | None] = Counter()
        for _ in range(times):
            choice = self.choose()
            assert choice is not None
            asked[choice.replica] += 1
            number = self.send(choice.replica)
            self.answer(number, choice.replica or "?")
        return asked


# ---------------------------------------------------------------- whom


def test_while_nobody_is_known_by_name_whichever_takes_it_is_asked() -> None:
    rig = Rig()
    assert rig.choose() == Choice(None)
    rig.answer(rig.send(), "a")
    choice = rig.choose()
    assert choice is not None and choice.replica == "a" and choice.service_s == pytest.approx(0.02)


def test_asking_again_changes_nothing_until_something_is_sent() -> None:
    rig = Rig()
    rig.know(*"abcdef")
    assert len({rig.choose() for _ in range(50)}) == 1
    names = set()
    for _ in range(50):
        rig.answer(rig.send("a"), "a")
        choice = rig.choose()
        assert choice is not None
        names.add(choice.replica)
    assert len(names) > 3


def test_alike_replicas_share_the_work() -> None:
    rig = Rig()
    rig.know(*"abcd")
    asked = rig.chosen(400)
    assert set(asked) == set("abcd") and min(asked.values()) > 50


@pytest.mark.parametrize("count", [3, 8, 20])
def test_a_slow_replica_is_hardly_asked(count: int) -> None:
    rig = Rig()
    names = [f"r{n}" for n in range(count)]
    for _ in range(300):
        rig.know(*names[1:])
        rig.balancer.learn_probe(rig.now_s, [Load("r0", KEY, 0, 0.0, 0.2)])
        choice = rig.choose()
        assert choice is not None and choice.replica != "r0"
        rig.answer(rig.send(choice.replica), choice.replica or "")


def test_where_fewer_wait_is_asked_and_old_news_fade() -> None:
    rig = Rig()
    rig.know("a", waiting=20)
    rig.know("b")
    choice = rig.choose()
    assert choice is not None and choice.replica == "b"
    busy = Rig()
    busy.know("a", waiting=20)
    soon = busy.choose()
    busy.now_s += 5
    later = busy.choose()
    assert soon and later and soon.queue_s > 0.3 > later.queue_s


def test_what_a_replica_says_of_itself_does_not_make_it_faster_than_it_is() -> None:
    """One that claims to take no time at all is measured all the same: the rest of the delay is its way."""
    rig = Rig()
    for _ in range(20):
        rig.answer(rig.send("honest"), "honest", 0.03)
        rig.answer(rig.send("liar"), "liar", 0.5, service_s=0.0)
    rig.know("honest")
    rig.balancer.learn_probe(rig.now_s, [Load("liar", KEY, 0, 0.0, 0.0)])
    assert set(rig.chosen(100)) == {"honest"}


def test_a_farther_one_is_told_apart_from_a_slower_one() -> None:
    rig = Rig()
    for _ in range(20):
        rig.answer(rig.send("near"), "near", 0.03)
        rig.answer(rig.send("far"), "far", 0.13)
    rig.fail(rig.send("near"))
    choice = rig.choose()
    assert choice is not None and choice.replica == "far"
    assert choice.path_s == pytest.approx(0.1, abs=0.01) and choice.slowdown == pytest.approx(1.0)


def test_many_replicas_prequals_rule_hot_ones_only_where_all_are() -> None:
    rig = Rig()
    cold, hot = [f"c{n}" for n in range(6)], [f"h{n}" for n in range(6)]
    for _ in range(4):
        rig.know(*cold, waiting=1, service_s=0.05)
        # Few of them wait long; they would be the faster ones.
        rig.know(*hot, waiting=9, service_s=0.001)
    choice = rig.choose()
    assert choice is not None
    assert choice.replica in hot, "half of all are as busy: that is not many, as things are"
    quiet = Rig()
    for _ in range(4):
        quiet.know(*[f"c{n}" for n in range(10)], waiting=1, service_s=0.05)
    quiet.know("h", waiting=9, service_s=0.001)
    for _ in range(8):
        chosen = quiet.choose()
        assert chosen is not None and chosen.replica != "h"
        quiet.send(chosen.replica)


# ---------------------------------------------------------------- failing, going, coming


def test_one_that_fails_is_left_alone_longer_each_time_and_tried_with_one_request() -> None:
    rig = Rig()
    rig.know("a")
    pauses = []
    for _ in range(9):
        rig.fail(rig.send("a"), timed_out=True)
        begin_s = rig.now_s
        while rig.choose() is None:
            rig.now_s += 0.05
        pauses.append(rig.now_s - begin_s)
        trial = rig.send("a")
        assert rig.choose() is None, "one request, and no second before its answer"
        rig.balancer.failed(rig.now_s, CloudOutcome(rig.now_s, trial, False))
        rig.now_s += 0.0
    assert pauses[1] > 1.5 * pauses[0] and max(pauses) <= 16.1
    while rig.choose() is None:
        rig.now_s += 0.5
    rig.answer(rig.send("a"), "a")
    rig.send("a")
    assert rig.choose() is not None


def test_one_failure_leaves_the_others_asked() -> None:
    rig = Rig()
    rig.know("a", "b")
    rig.fail(rig.send("a"), timed_out=True)
    assert rig.balancer.others(rig.now_s, "a") and not rig.balancer.others(rig.now_s, "b")
    choice = rig.choose()
    assert choice is not None and choice.replica == "b"


def test_one_that_was_gone_is_asked_again_once_it_speaks() -> None:
    rig = Rig()
    rig.know("goes", "stays")
    for _ in range(5):  # it would be left alone for 4 s
        rig.answer(rig.send("goes"), "stays", gone=True)
    old = Load("goes", KEY, 0, 0.0, 0.02, age_s=2.0)
    rig.balancer.learn_probe(rig.now_s, [old])  # others remember it: that is no sign of life
    assert set(rig.chosen(3)) == {"stays"}
    rig.know("goes")
    assert set(rig.chosen(100)) == {"goes", "stays"}


def test_an_answer_by_another_is_no_sign_that_the_first_is_gone() -> None:
    """It may have handed the request on."""
    rig = Rig()
    rig.know("a", "b")
    rig.answer(rig.send("a"), "b")
    assert rig.balancer.others(rig.now_s, "b")


def test_a_refusal_for_the_queue_sends_the_next_elsewhere() -> None:
    rig = Rig()
    rig.know("a", "b")
    rig.fail(rig.send("a"), busy=True, queue_s=2.0, waiting=32)
    rig.now_s += 0.1
    choice = rig.choose()
    assert choice is not None and choice.replica == "b"


def test_what_is_not_heard_of_any_more_is_forgotten() -> None:
    rig = Rig()
    rig.know("old")
    rig.now_s += 50
    rig.know("new")
    rig.now_s += 50
    rig.send()
    assert rig.balancer.replicas == ("new",)
    rig.know(*[f"made-up-{n}" for n in range(1000)])
    assert len(rig.balancer.replicas) <= 128


# ---------------------------------------------------------------- how many at once


def test_the_limit_grows_while_it_is_used_and_shrinks_at_each_time_out() -> None:
    rig = Rig()
    rig.know("a")
    first = rig.balancer.room
    for _ in range(10):  # one after another: the limit is not what holds it back
        rig.answer(rig.send("a"), "a")
    assert rig.balancer.room == first
    for _ in range(30):
        numbers = [rig.send("a") for _ in range(rig.balancer.room)]
        assert rig.choose() is None, "no room"
        for number in numbers:
            rig.answer(number, "a", 0.001)
    grown = rig.balancer.room
    assert grown == 64
    for _ in range(60):
        rig.fail(rig.send("a"), timed_out=True)
    assert rig.balancer.room == 1, "one at least, or it could never find out"


def test_a_request_whose_end_is_never_told_is_not_counted_for_ever() -> None:
    rig = Rig()
    room = rig.balancer.room
    for _ in range(room):
        rig.send("a")
    assert rig.choose() is None
    rig.now_s += 61
    rig.answer(rig.send("a"), "a")
    assert rig.balancer.room >= room


# ---------------------------------------------------------------- whatever they say

ODD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([math.nan, -1.0, 1e300, -math.inf]),
)
COUNT = st.one_of(st.none(), st.integers(-(2**70), 2**70))
NAME = st.sampled_from(["a", "b", "c", "", "x" * 65, "d"])


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["heard", "failed", "probe", "wait"]), NAME, ODD, ODD, COUNT, st.booleans()),
        max_size=40,
    )
)
def test_nothing_that_is_said_makes_it_raise_or_expect_nonsense(
    steps: list[tuple[str, str, float, float, int | None, bool]],
) -> None:
    rig = Rig()
    for what, name, queue_s, service_s, waiting, flag in steps:
        number = rig.send(name if flag else None)
        outcome = CloudOutcome(
            rig.now_s, number, what == "heard", queue_s, service_s, busy=flag, replica=name, waiting=waiting, gone=flag
        )
        load = Load(name, KEY, waiting, queue_s, service_s, abs(queue_s))  # type: ignore[arg-type]
        if what == "heard":
            rig.balancer.heard(rig.now_s, outcome, service_s)
        elif what == "failed":
            rig.balancer.failed(rig.now_s, outcome)
        elif what == "probe":
            rig.balancer.learn_probe(rig.now_s, [load])
        else:
            rig.now_s += 1.0
        choice = rig.choose()
        if choice is not None:
            assert all(0 <= value < 1e6 for value in (choice.queue_s, choice.service_s, choice.path_s, choice.slowdown))


# ---------------------------------------------------------------- a crowd


def shipped(crowd: Crowd, device: int) -> Balancer:
    return Balancer(random.Random(f"{crowd.world.seed}/{device}").random)


def test_a_crowd_comes_near_to_who_sees_everything() -> None:
    world = World(load=0.6, length_s=8.0, seed=11)
    ours, best = (
        Crowd(world).run(shipped),
        Crowd(World(load=0.6, length_s=8.0, seed=11, hands_on=False)).run(Clairvoyant),
    )
    assert len(ours.delays_s) == len(best.delays_s)
    assert ours.quantile_s(0.99) <= 1.6 * best.quantile_s(0.99)
    assert ours.served["r0"] < 0.02 * len(ours.delays_s), "the slow one"


def test_alone_too_it_is_far_better_than_chance() -> None:
    world = World(load=0.6, length_s=8.0, seed=12, hands_on=False)
    assert Crowd(world).run(shipped).quantile_s(0.99) < 0.4 * Crowd(world).run(Random).quantile_s(0.99)


def test_of_many_replicas_too() -> None:
    world = World(load=0.6, length_s=5.0, seed=13, replicas=24, slow=3, flapping=3, hands_on=False)
    assert Crowd(world).run(shipped).quantile_s(0.99) < 0.4 * Crowd(world).run(Random).quantile_s(0.99)
