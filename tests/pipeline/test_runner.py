"""The runner alone: order, bounds, stopping, and what one failure may cost."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from marram.pipeline.contract import Frame
from marram.pipeline.runner import Passing, Runner, Slot, Stage
from marram.pipeline.stats import Stats
from marram.schema.errors import Missing


class Numbers:
    """A source of `count` frames (None: endless) that counts how many were taken."""

    def __init__(self, count: int | None = None, *, live: bool = False, fail_at: int | None = None) -> None:
        self.live, self.skipped, self.errors, self.last_error = live, 0, 0, ""
        self.taken = 0
        self.closed = threading.Event()
        self._count, self._fail_at = count, fail_at

    def frames(self) -> Iterator[Frame]:
        for number in itertools.count():
            if number == self._fail_at:
                raise Missing("the cable is out")
            if number == self._count or self.closed.is_set():
                return
            self.taken += 1
            yield Frame(number, 0.0, time.monotonic())

    def close(self) -> None:
        self.closed.set()


class Quiet(Numbers):
    """A live source that gives nothing until it is closed."""

    def frames(self) -> Iterator[Frame]:
        self.closed.wait()
        yield from ()


class Shuffling:
    """Finishes frames from several threads, in whatever order."""

    window = 8

    def __init__(self, *, keep: Callable[[Frame], bool] = lambda frame: True) -> None:
        self._keep = keep
        self.inside, self.most, self.released_order = 0, 0, []
        self._lock = threading.Lock()
        self.abandoned = self.closed = False

    def start(self, slot: Slot) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        threading.Timer(random.random() * 0.01, self._finish, (slot,)).start()

    def _finish(self, slot: Slot) -> None:
        with self._lock:
            self.inside -= 1
        assert slot.frame is not None
        slot.finish(slot.frame if self._keep(slot.frame) else None)

    def wait_ready(self, timeout_s: float) -> bool:
        return True

    def released(self, frame: Frame) -> None:
        self.released_order.append(frame.index)

    def abandon(self) -> None:
        self.abandoned = True

    def close(self) -> None:
        self.closed = True


class Sink:
    def __init__(self, act: Callable[[Frame], None] = lambda frame: None) -> None:
        self.indices: list[int] = []
        self.closed = 0
        self._act = act

    def write(self, frame: Frame) -> None:
        self._act(frame)
        self.indices.append(frame.index)

    def close(self) -> None:
        self.closed += 1


def runner(source: Any, stages: list[Stage], sink: Sink, stats: Stats | None = None, head: list[Any] = []) -> Runner:  # noqa: B006
    return Runner(source, head, stages, [sink], lambda frame: None, stats or Stats())


def in_thread(run: Runner) -> threading.Thread:
    thread = threading.Thread(target=run.run)
    thread.start()
    return thread


def test_order_is_kept_whatever_finishes_first() -> None:
    asker, sink = Shuffling(), Sink()
    runner(Numbers(200), [Stage(asker, [])], sink).run()
    assert sink.indices == list(range(200))
    assert asker.released_order == list(range(200))
    assert 1 < asker.most <= asker.window
    assert asker.closed and sink.closed == 1


def test_frames_that_end_inside_leave_no_gap() -> None:
    sink = Sink()
    runner(Numbers(60), [Stage(Shuffling(keep=lambda frame: frame.index % 3 == 0), [])], sink).run()
    assert sink.indices == list(range(0, 60, 3))


def test_two_stages_keep_order_with_steps_between() -> None:
    sink = Sink()
    double = Stage(Shuffling(), [lambda frame: (frame, frame)])
    odd = Stage(Shuffling(), [lambda frame: (frame,) if frame.index % 2 else ()])
    runner(Numbers(40), [double, odd], sink, head=[lambda frame: () if frame.index < 4 else (frame,)]).run()
    assert sink.indices == [n for n in range(4, 40) if n % 2 for _ in range(2)]


def test_a_slow_sink_bounds_what_is_taken() -> None:
    gate, blocked = threading.Event(), threading.Event()

    def block(frame: Frame) -> None:
        blocked.set()
        gate.wait(30)

    source, sink = Numbers(500), Sink(block)
    asker = Shuffling()
    thread = in_thread(runner(source, [Stage(asker, [])], sink))
    assert blocked.wait(30)
    # All that can be taken is taken once the source waits for room: the window, and one in its hand.
    deadline_s = time.monotonic() + 30
    while source.taken < asker.window + 1 and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert source.taken == asker.window + 1
    gate.set()
    thread.join(30)
    assert sink.indices == list(range(500))


def test_a_live_frame_is_taken_only_when_it_can_start() -> None:
    class Busy(Shuffling):
        ready = threading.Event()
        asked = threading.Event()

        def wait_ready(self, timeout_s: float) -> bool:
            self.asked.set()
            return self.ready.wait(min(timeout_s, 0.01))

    source, asker, sink = Numbers(5, live=True), Busy(), Sink()
    thread = in_thread(runner(source, [Stage(asker, [])], sink))
    assert asker.asked.wait(30)
    assert source.taken == 0
    asker.ready.set()
    thread.join(30)
    assert sink.indices == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("source", [Numbers(), Numbers(live=True), Quiet(live=True)])
def test_stop_ends_it(source: Numbers) -> None:
    asker, sink = Shuffling(), Sink()
    run = runner(source, [Stage(asker, [])], sink)
    thread = in_thread(run)
    run.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert source.closed.is_set() and asker.abandoned and asker.closed and sink.closed == 1


def test_stop_before_run_runs_nothing() -> None:
    sink = Sink()
    run = runner(Numbers(), [Stage(Passing(), [])], sink)
    run.stop()
    run.run()
    assert sink.indices == []


def test_a_step_that_fails_costs_its_frame_only() -> None:
    def step(frame: Frame) -> tuple[Frame]:
        if frame.index == 3:
            raise ZeroDivisionError("a bug in a user's step")
        return (frame,)

    stats, sink = Stats(), Sink()
    runner(Numbers(6), [Stage(Passing(), [step])], sink, stats).run()
    assert sink.indices == [0, 1, 2, 4, 5]
    figures = stats.read()
    assert (figures["frames"], figures["errors"]) == (5, 1)
    assert figures["last_error"] == "ZeroDivisionError: a bug in a user's step"


def test_an_asker_that_fails_to_start_costs_its_frame_only() -> None:
    class Choking(Shuffling):
        def start(self, slot: Slot) -> None:
            if slot.sequence in (2, 5):
                raise RuntimeError("cannot begin")
            super().start(slot)

    stats, sink = Stats(), Sink()
    runner(Numbers(8), [Stage(Choking(), [])], sink, stats).run()
    assert sink.indices == [0, 1, 3, 4, 6, 7]
    assert stats.read()["errors"] == 2


def test_a_sink_that_fails_costs_nothing_else() -> None:
    def full(frame: Frame) -> None:
        raise OSError("no space left on device")

    stats, bad, good = Stats(), Sink(full), Sink()
    delivered: list[int] = []
    run = Runner(
        Numbers(4), [], [Stage(Passing(), [])], [bad, good], lambda frame: delivered.append(frame.index), stats
    )
    run.run()
    assert good.indices == delivered == [0, 1, 2, 3]
    assert stats.read()["errors"] == 4


def test_an_error_before_the_first_frame_is_raised() -> None:
    sink = Sink()
    with pytest.raises(Missing, match="the cable is out"):
        runner(Numbers(fail_at=0), [Stage(Passing(), [])], sink).run()
    assert sink.closed == 1


def test_an_error_after_the_first_frame_is_counted() -> None:
    stats, sink = Stats(), Sink()
    runner(Numbers(fail_at=3), [Stage(Passing(), [])], sink, stats).run()
    assert sink.indices == [0, 1, 2]
    assert stats.read()["last_error"] == "the cable is out"


# ---------------------------------------------------------------- nothing unaccounted for


def test_what_fails_is_in_the_log_once_and_with_its_traceback_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    def step(frame: Frame) -> tuple[Frame]:
        raise (ZeroDivisionError("a bug") if frame.index % 2 else Missing("no such shelf"))

    caplog.set_level("DEBUG", "marram.pipeline")
    runner(Numbers(6), [Stage(Passing(), [step])], Sink()).run()
    told = [(r.levelname, r.getMessage(), bool(r.exc_info)) for r in caplog.records]
    warnings = [message for level, message, _ in told if level == "WARNING"]
    assert warnings[0] == "a step: no such shelf"
    assert warnings[1].startswith("a step: ZeroDivisionError: a bug (test_runner.py:")
    assert len(warnings) == 2
    assert not any(traced for level, _, traced in told if level == "WARNING")
    assert [traced for level, _, traced in told if level == "DEBUG"] == [True] * 6


def test_what_a_filter_holds_back_is_counted_wherever_it_stands() -> None:
    def odd(frame: Frame) -> tuple[Frame, ...]:
        return (frame,) if frame.index % 2 else ()

    for head, first, last in (([odd], [], []), ([], [odd], []), ([], [], [odd])):
        stats, sink = Stats(), Sink()
        runner(Numbers(10), [Stage(Passing(), first), Stage(Shuffling(), last)], sink, stats, head).run()
        assert sink.indices == [1, 3, 5, 7, 9]
        assert stats.read()["frames"] == 10


@pytest.mark.parametrize("last", ["marram-stage-0", "marram-stage-1", "marram-source"])
def test_ctrl_c_while_it_starts_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == last:
            raise KeyboardInterrupt

    source, stats, sink = Numbers(), Stats(), Sink()
    run = runner(source, [Stage(Passing(), []), Stage(Passing(), [])], sink, stats)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert sink.closed and source.closed.is_set()
    assert stats.read()["frames"] + stats.read()["dropped"] == source.taken


def test_ctrl_c_leaves_a_step_that_hangs_behind_and_counts_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.pipeline.runner.STOP_GRACE_S", 0.1)
    gate = threading.Event()
    source, stats, sink = Numbers(), Stats(), Sink()

    def step(frame: Frame) -> tuple[Frame]:
        if frame.index == 3:
            while source.taken < 8:  # then the window is full, and one frame is in the source thread's hand
                time.sleep(0.001)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            gate.wait(30)
        return (frame,)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner(source, [Stage(Passing(), [step])], sink, stats).run()
    finally:
        signal.signal(signal.SIGINT, usual)
    figures = stats.read()
    assert (figures["frames"], figures["dropped"], source.taken) == (3, 5, 8)
    gate.set()
    for left in [t for t in threading.enumerate() if t.name.startswith("marram-")]:
        left.join(30)
    # It came back after the end: its sink is closed, and each frame is counted once.
    figures = stats.read()
    assert (figures["frames"], figures["dropped"], sink.indices) == (3, 5, [0, 1, 2])
