"""Who has all cores to himself is answered by all of them; who has not is answered beside the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.runtime.session import CheckedSession
from marram.serving import warmup
from marram.serving.batching import Speed
from marram.serving.contract import Answer, Question
from marram.serving.lanes import Job, Lanes
from marram.serving.warmup import warm

from .conftest import MakeModel

Ask = Callable[..., Question]


def test_a_question_alone_is_answered_by_all_cores_those_at_once_by_a_lane_each(
    make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(make_model())
    lane, alone = Model.load(bundle, threads=1, free=True), Model.load(bundle, threads=2, free=True)
    ran: list[CheckedSession] = []
    gate, run = threading.Event(), CheckedSession.run

    def held(session: CheckedSession, tensors: list[Any]) -> list[Any]:
        ran.append(session)
        gate.wait(60)
        return run(session, tensors)

    monkeypatch.setattr(CheckedSession, "run", held)
    done: list[Job] = []
    answered = threading.Semaphore(0)

    def deliver(jobs: Sequence[Job]) -> None:
        for job in jobs:
            done.append(job)
            answered.release()

    speed = Speed()
    lanes = Lanes((lane, lane), speed, 2, deliver, alone)
    try:
        gate.set()
        for _ in range(3):
            lanes.submit(ask_of(), 8)
            assert answered.acquire(timeout=60)
            while lanes.waiting:
                pass
        assert ran == [alone.session] * 3
        assert not speed.item_s() > speed.prepare_s  # it tells of lanes, which have a thread each
        ran.clear()
        gate.clear()
        for _ in range(3):
            lanes.submit(ask_of("blue"), 8)
        while len(ran) < 2:  # two at once
            pass
        gate.set()
        for _ in range(3):
            assert answered.acquire(timeout=60)
        assert ran.count(alone.session) <= 1 and ran[1] is lane.session and speed.item_s() > speed.prepare_s
        assert [answer.result.label for answer in map(_answer, done[3:]) if answer.result] == ["blue"] * 3
        ran.clear()
        for _ in range(2):  # where there were several there may be several again; then there are not
            while lanes.waiting:
                pass
            lanes.submit(ask_of(), 8)
            assert answered.acquire(timeout=60)
        assert ran == [lane.session, alone.session]
    finally:
        gate.set()
        lanes.close()
    with pytest.raises(Exception, match="closed"):
        alone.session.run([])


def _answer(job: Job) -> Answer:
    assert isinstance(job.outcome, Answer), job.outcome
    return job.outcome


def test_a_large_file_is_in_memory_once(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(make_model())
    monkeypatch.setattr(warmup, "_LANES_WORTH", 0.0)  # tiny as it is, beside others it would gain nothing
    small = warm(bundle, "", 2)
    assert small.answerers[0] is small.answerers[1] and small.alone not in (None, *small.answerers)
    monkeypatch.setattr(warmup, "_COPIED_BYTES", _size(bundle) - 1)
    large = warm(bundle, "", 2)
    assert large.answerers[0] is large.answerers[1] and large.alone is None
    for each in {*small.answerers, *large.answerers, *filter(None, [small.alone])}:
        each.close()


def _size(bundle: Bundle) -> int:
    file: Path = bundle.folder / bundle.card.variants[0].file
    return file.stat().st_size
