"""The edge's queue: what was cancelled or could not be on time does not run; the rest runs in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.pipeline.clock import SteadyClock
from marram.pipeline.edge_pool import EdgePool, Job, Ran, Seat
from marram.runtime.model import Model


class Idle:
    """Stands where a model does; work here needs none."""

    def close(self) -> None:
        pass


class Bench:
    """A pool of one thread that is held until `go`; what ended, and how."""

    def __init__(self, seats: int = 1) -> None:
        self.pool = EdgePool([Seat(cast(Model, Idle())) for _ in range(seats)])
        self._gate = threading.Event()
        self._begun = threading.Event()
        self.ran: list[Any] = []
        self.late: list[Any] = []
        self.abandoned: list[Any] = []
        self.jobs: dict[Any, Job] = {}
        self._lock = threading.Lock()

    def hold(self) -> None:
        def work(seat: Seat) -> str:
            self._begun.set()
            self._gate.wait(30)
            return "held"

        self.pool.put(Job(work, lambda ran: None, "held"))
        assert self._begun.wait(30)

    def put(self, name: Any, until_s: float | None = None, work: Callable[[], Any] = lambda: 1) -> Job:
        def ended(ran: Ran) -> None:
            with self._lock:
                (self.ran if ran.value else self.late if ran.late else self.abandoned).append(name)

        job = self.jobs[name] = Job(lambda seat: work(), ended, "work", until_s)
        self.pool.put(job)
        return job

    def go(self) -> None:
        self._gate.set()
        self.pool.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.go()


def teach(bench: Bench, usual_s: float) -> None:
    """What a job of this bench usually takes."""
    bench.pool._usual_s["work"] = usual_s


def test_what_is_cancelled_before_it_began_never_runs(bench: Bench) -> None:
    bench.hold()
    first, second = bench.put("first"), bench.put("second")
    assert first.cancel() and not first.cancel()
    bench.go()
    assert bench.ran == ["second"] and not second.cancel()


def test_what_is_past_its_time_is_given_up_and_says_so(bench: Bench) -> None:
    bench.hold()
    now_s = time.monotonic()
    bench.put("past", now_s - 1)
    bench.put("in time", now_s + 600)
    bench.put("whenever")
    bench.go()
    assert (bench.late, bench.ran) == (["past"], ["in time", "whenever"])


def test_under_overload_the_oldest_go_and_the_newest_are_answered(bench: Bench) -> None:
    bench.hold()
    teach(bench, 100.0)
    now_s = time.monotonic()
    # Three of these eight fit before the last one's end, at 100 s each.
    for number in range(8):
        bench.put(number, now_s + 350)
    bench.go()
    assert bench.late == [0, 1, 2, 3, 4] and bench.ran == [5, 6, 7]


def test_what_has_no_limit_is_never_given_up(bench: Bench) -> None:
    bench.hold()
    teach(bench, 100.0)
    bench.put("file 1")
    bench.put("live", time.monotonic() + 150)
    bench.put("file 2")
    bench.go()
    assert bench.ran == ["file 1", "file 2"] and bench.late == ["live"]


def test_a_limit_that_nothing_can_meet_does_not_end_all_answers(bench: Bench) -> None:
    bench.hold()
    teach(bench, 100.0)
    bench.put("alone", time.monotonic() + 50)
    bench.go()
    assert bench.ran == ["alone"]


def test_abandoned_is_neither_late_nor_run(bench: Bench) -> None:
    bench.hold()
    bench.put("a", time.monotonic() - 1)
    bench.put("b")
    bench.pool.abandon()
    bench.go()
    assert bench.abandoned == ["a", "b"] and not bench.ran and not bench.late


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.none() | st.integers(-5, 5)), max_size=12))
def test_every_job_ends_once_however_it_ends(jobs: list[tuple[bool, int | None]]) -> None:
    bench = Bench(2)
    bench.hold()
    teach(bench, 1.0)
    now_s = time.monotonic()
    cancelled = set()
    for number, (cancel, left_s) in enumerate(jobs):
        bench.put(number, None if left_s is None else now_s + left_s)
        if cancel and bench.jobs[number].cancel():
            cancelled.add(number)
    bench.go()
    ended = [*bench.ran, *bench.late, *bench.abandoned, *cancelled]
    assert sorted(ended) == list(range(len(jobs)))
    assert not any(jobs[number][1] is None for number in bench.late)


def test_time_never_runs_backwards() -> None:
    shown = [100.0]
    clock = SteadyClock(lambda: shown[0])
    seen = []
    for now_s in (100.0, 101.0, 41.0, 41.5, 3600.0, 0.0, 1.0):
        shown[0] = now_s
        seen.append(clock())
    assert seen == [100.0, 101.0, 101.0, 101.5, 3660.0, 3660.0, 3661.0]
