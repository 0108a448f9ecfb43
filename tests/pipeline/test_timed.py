"""What placement is told of the edge's times, and what is told of an answer's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.pipeline.conftest import Build

from marram.pipeline import pace
from marram.pipeline.pace import following
from marram.runtime.model import Model


def test_a_model_has_run_before_the_first_frame_is_timed(
    build: Build, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ran = Model.run, []

    def run(model: Model, prepared: Any) -> Any:
        ran.append(model)
        return real(model, prepared)

    monkeypatch.setattr(Model, "run", run)
    pipeline, _ = build(f"source: {{images: {photos}}}\nsteps: [{{classify: MODEL, parallel: 2}}]\n")
    assert len(ran) == len({id(model) for model in ran}) == 2
    pipeline.close()


def test_a_live_frame_taken_late_makes_no_later_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: 10.15))
    assert following(10.0, 0.2, 10.001) == 10.2  # taken a little late: the schedule stands
    assert following(9.9, 0.2, 10.1) == pytest.approx(10.3)  # much too late: the next comes so long after this one
    assert following(0.0, 0.2, 10.14) == pytest.approx(10.34)
    assert following(9.9, 0.2) == pytest.approx(10.35)  # of a file, no burst follows


def test_an_answer_is_there_before_it_leaves_in_order(build: Build, photos: Path) -> None:
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    placed = [frame.placed for frame in seen.frames]
    assert len(placed) == 9
    assert all(each is not None and 0 < each.answered_s <= each.latency_s for each in placed)
