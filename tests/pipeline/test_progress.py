"""What each frame of a finite source led to is recorded together, in the source's order, and never half."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from tests.pipeline.test_runner import Numbers, Shuffling, Sink, in_thread

from marram.pipeline.contract import Frame, Position
from marram.pipeline.progress import Progress
from marram.pipeline.runner import Runner, Stage
from marram.pipeline.stats import Stats
from marram.schema.event import Event, EventKind


class Ledger:
    """Keeps what is recorded; `reached` as an earlier run would have left it."""

    reached: Position | None = None

    def __init__(self) -> None:
        self.recorded: list[tuple[int, list[int]]] = []
        self.loose: list[int] = []

    def emit(self, event: Event) -> None:
        self.loose.append(event.data["n"])

    def record(self, events: Sequence[Event], position: Position) -> None:
        self.recorded.append((position.frame, [event.data["n"] for event in events]))


def running(source: Any, head: list[Any], stages: list[Stage], progress: Progress, sink: Sink | None = None) -> Runner:
    run = Runner(source, head, stages, [sink or Sink()], lambda frame: tell(progress, frame.index), Stats())
    run.progress = progress
    return run


def tell(progress: Progress, number: int) -> None:
    progress.emit(Event(EventKind.RESULT, "app", 0.0, {"n": number}))


def test_events_of_all_steps_come_with_their_frame_and_no_frame_is_missing() -> None:
    ledger = Ledger()
    progress = Progress(ledger)

    def telling(frame: Frame) -> list[Frame]:
        tell(progress, frame.index)
        return [frame]

    def awkward(frame: Frame) -> list[Frame]:
        """Ends some frames, fails on some, doubles some, replaces some, and hands some on once more later."""
        tell(progress, frame.index)
        if frame.index % 7 == 1:
            raise ValueError("choked")
        if frame.index % 7 == 2:
            return []
        if frame.index % 7 == 3:
            return [frame, Frame(frame.index, 0.0, 0.0)]
        if frame.index % 7 == 4:
            seen.append(Frame(frame.index, 0.0, 0.0))
            return seen[-1:]
        return [frame, *seen[-1:]]

    seen: list[Frame] = []
    stages = [
        Stage(Shuffling(keep=lambda frame: frame.index % 11 != 5), [awkward]),
        Stage(Shuffling(), [telling]),
    ]
    running(Numbers(150), [telling], stages, progress).run()
    assert [frame for frame, _ in ledger.recorded] == list(range(150))
    events = dict(ledger.recorded)
    for frame in range(150):
        # Told by the first step; by the second where the inference kept it; then each frame it became, twice.
        if frame % 11 == 5:
            assert events[frame] == [frame]
        elif frame % 7 in (1, 2):
            assert events[frame] == [frame, frame]
        elif frame % 7 == 4:
            assert events[frame] == [frame] * 4
        elif frame % 7 == 3:
            assert events[frame] == [frame] * 6
        else:
            assert events[frame].count(frame) == 4 and len(events[frame]) in (4, 6)
    assert ledger.loose == []


def test_what_a_stop_gives_up_is_not_through_nor_anything_after_it() -> None:
    ledger, entered, gate = Ledger(), threading.Event(), threading.Event()
    progress = Progress(ledger)

    class Giving(Shuffling):
        """Holds frame 20 until the stop, which gives it up; those behind it are answered."""

        def start(self, slot: Any) -> None:
            if slot.frame.index == 20:
                self.held = slot
                entered.set()
            else:
                super().start(slot)

        def abandon(self) -> None:
            super().abandon()
            if not gate.is_set():
                gate.set()
                self.held.finish(None)

    run = running(Numbers(1000), [], [Stage(Giving(), [])], progress)
    thread = in_thread(run)
    assert entered.wait(10)
    run.stop()
    thread.join(10)
    assert ledger.recorded == [(frame, [frame]) for frame in range(20)]


def test_what_comes_from_no_frame_is_recorded_at_once() -> None:
    ledger = Ledger()
    progress = Progress(ledger)

    def starting(frame: Frame) -> list[Frame]:
        thread = threading.Thread(target=tell, args=(progress, 100 + frame.index))
        thread.start()
        thread.join()
        assert ledger.loose[-1] == 100 + frame.index
        return [frame]

    running(Numbers(3), [starting], [Stage(Shuffling(), [])], progress).run()
    assert ledger.recorded == [(0, [0]), (1, [1]), (2, [2])]


@pytest.mark.parametrize("where", ["sink", "step"])
def test_a_frame_that_fails_is_through(where: str) -> None:
    def fail(frame: Frame) -> list[Frame]:
        if frame.index == 1:
            raise OSError("no")
        return [frame]

    ledger = Ledger()
    sink = Sink(fail) if where == "sink" else Sink()  # type: ignore[arg-type]  # what it returns is not looked at
    steps = [fail] if where == "step" else []
    running(Numbers(3), [], [Stage(Shuffling(), steps)], Progress(ledger), sink).run()
    assert [frame for frame, _ in ledger.recorded] == [0, 1, 2]
