"""What waits is bounded wherever it waits: a model that hangs lets a file fill its window, never the memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marram.pipeline.build import Pipeline
from marram.runtime import image as pictures
from marram.runtime.model import Model


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_model_that_hangs_bounds_what_is_taken_of_a_file(
    build: Any,
    photos: Path,
    running: Callable[[Pipeline], threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
    parallel: int,
) -> None:
    gate, taken = threading.Event(), 0
    decode, predict = pictures.decode, Model.predict

    def counted(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        return decode(*given)

    def hung(model: Model, *given: Any) -> Any:
        gate.wait(60)
        return predict(model, *given)

    monkeypatch.setattr(pictures, "decode", counted)
    monkeypatch.setattr(Model, "predict", hung)
    pipeline, seen = build(
        f"source: {{images: {photos}, repeat: true}}\nsteps: [{{classify: MODEL, parallel: {parallel}}}]\n"
    )
    thread = running(pipeline)
    room = 2 * parallel + 1  # as many at work, as many waiting for them, and one in the source's hand
    until_s = time.monotonic() + 60
    while taken < room and time.monotonic() < until_s:
        time.sleep(0.001)
    gate.wait(0.1)  # room for what should not come
    assert taken == room
    gate.set()
    assert seen.arrived(20)  # and on it goes
    pipeline.stop()
    thread.join(60)
    assert [frame.index for frame in seen.frames] == list(range(len(seen.frames)))
