"""What placement is told of the edge's times, and what is told of an answer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.conftest import Build

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


def test_an_answer_is_there_before_it_leaves_in_order(build: Build, photos: Path) -> None:
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    placed = [frame.placed for frame in seen.frames]
    assert len(placed) == 9
    assert all(each is not None and 0 < each.answered_s <= each.latency_s for each in placed)
