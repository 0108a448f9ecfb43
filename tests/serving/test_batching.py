"""Who runs together: on a virtual clock, for every queue there may be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from marram.serving.batching import Speed, Waiting, choose, queue_s


def speed(a: float = 0.004, b: float = 0.006, most: int = 8) -> Speed:
    """An engine that takes a·n + b."""
    known = Speed(most)
    for _ in range(30):
        for count in (1, 2, 4, 8):
            if count <= most:
                known.ran(count, a * count + b)
    return known


def test_what_a_batch_costs_is_learnt_through_noise_and_follows_a_change() -> None:
    noise = random.Random(3)
    known = Speed(8)
    for _ in range(400):
        count = noise.choice((1, 2, 4, 8))
        known.ran(count, (0.004 * count + 0.006) * noise.uniform(0.85, 1.15))
    for count in (1, 8):
        assert known.run_s(count) == pytest.approx(0.004 * count + 0.006, rel=0.15)
    known.ran(4, 2.0)  # once not scheduled for two seconds
    assert known.run_s(4) < 2 * (0.004 * 4 + 0.006)
    for _ in range(100):
        known.ran(1, 0.05)
    assert known.run_s(1) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("a", "b", "best"), [(0.010, 0.0, 1), (0.010, 0.0003, 1), (0.004, 0.006, 8), (0.0041, 0.0005, 4)]
)
def test_nothing_is_batched_that_gains_nothing(a: float, b: float, best: int) -> None:
    assert speed(a, b).best() == best
    assert speed(a, b, most=1).best() == 1


def test_a_lone_one_starts_at_once_and_those_who_wait_run_together() -> None:
    known = speed()
    one = [Waiting(0.0, float("inf"))]
    assert choose(one, known, 0.0, 1).batch == tuple(one)
    many = [Waiting(n / 1000, float("inf")) for n in range(6)]
    assert choose(many, known, 1.0, 1).batch == tuple(many)
    assert len(choose(many, known, 1.0, 2).batch) == 3  # the other lane is free, too
    assert len(choose(many[:4], known, 1.0, 2, running=4).batch) == 4  # both have as many then
    assert len(choose(many[:4], known, 1.0, 2, running=1).batch) == 3  # the other lane is free sooner


def test_shapes_that_do_not_fit_together_do_not_run_together() -> None:
    mixed = [Waiting(n / 1000, float("inf"), kind=n % 2) for n in range(6)]
    assert {each.kind for each in choose(mixed, speed(), 1.0, 1).batch} == {0}


def test_the_hurried_run_with_as_few_as_they_can_bear() -> None:
    known = speed()  # one takes 10 ms, two 14, four 22
    hurried = Waiting(0.5, 1.016, ready=True)
    patient = [Waiting(n / 100, float("inf"), ready=True) for n in range(7)]
    chosen = choose([*patient, hurried], known, 1.0, 1)
    assert hurried in chosen.batch and len(chosen.batch) == 2 and not chosen.late
    hopeless = Waiting(0.5, 1.005, ready=True)
    assert choose([*patient, hopeless], known, 1.0, 1).late == (hopeless,)
    assert choose([hopeless], known, 1.0, 1).batch == (hopeless,)  # alone, it is tried


waiting = some.builds(
    Waiting,
    some.floats(0, 1),
    some.one_of(some.just(float("inf")), some.integers(995, 1080).map(lambda ms: ms / 1000)),
    some.integers(1, 3),
    some.sampled_from(["a", "b"]),
    some.booleans(),
)


@given(
    some.lists(waiting, max_size=12),
    some.sampled_from([(0.004, 0.006), (0.05, 0.0), (0.002, 0.05)]),
    some.integers(1, 3),
)
def test_no_batch_makes_anybody_late_and_nobody_is_lost(
    queue: list[Waiting], costs: tuple[float, float], lanes: int
) -> None:
    known, now_s = speed(*costs), 1.0
    known.prepared(0.001)
    chosen = choose(queue, known, now_s, lanes)
    assert len({*chosen.batch, *chosen.late}) == len(chosen.batch) + len(chosen.late)
    assert {*chosen.batch, *chosen.late} <= set(queue)
    assert bool(queue) == bool(chosen.batch or chosen.late)
    ends_s = now_s + known.run_s(sum(each.count for each in chosen.batch))
    ends_s += 0.001 * sum(each.count for each in chosen.batch if not each.ready)
    if len(chosen.batch) > 1:
        assert all(ends_s <= each.due_s + 1e-9 for each in chosen.batch)
        assert len({each.kind for each in chosen.batch}) == 1
        assert sum(each.count for each in chosen.batch) <= max(known.best(), chosen.batch[0].count)
    for each in chosen.late:  # it would be late even alone
        assert now_s + known.run_s(each.count) + (0 if each.ready else 0.001 * each.count) > each.due_s


def test_all_who_come_are_answered_in_time_or_told_before_and_nobody_starves() -> None:
    """A stream on a virtual clock, at nine tenths of what batches can do: hurried ones in time, patient ones too."""
    draw, known, now_s, queue = random.Random(5), speed(), 0.0, list[Waiting]()
    arrivals = [n * 0.0055 for n in range(2000)]
    finished: list[tuple[Waiting, float]] = []
    late = 0
    while arrivals or queue:
        while arrivals and arrivals[0] <= now_s:
            at = arrivals.pop(0)
            queue.append(Waiting(at, at + 0.3 if draw.random() < 0.5 else float("inf"), ready=True))
        if not queue:
            now_s = arrivals[0]
            continue
        chosen = choose(queue, known, now_s, 1)
        queue = [each for each in queue if each not in (*chosen.batch, *chosen.late)]
        late += len(chosen.late)
        now_s += known.run_s(len(chosen.batch)) if chosen.batch else 0.0
        finished += [(each, now_s) for each in chosen.batch]
    assert late == 0
    assert all(end_s <= each.due_s for each, end_s in finished)
    assert max(end_s - each.arrived_s for each, end_s in finished) < 2.5


def test_what_is_told_of_the_queue_is_what_it_takes() -> None:
    known = speed()
    assert queue_s([], known, 1, 0.0) == 0.0
    assert queue_s([Waiting(0, float("inf"))] * 16, known, 1, 0.02) == pytest.approx(
        0.02 + known.run_s(8) * 2, rel=0.01
    )
