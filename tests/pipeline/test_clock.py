"""The device's clock is set back an hour with every look at it: delays, order, windows and budgets do not notice."""

from __future__ import annotations

import inspect
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from marram.pipeline.stats import Stats
from marram.pipeline.steps.keep import TokenBucket

STEPS = """
steps:
  - classify: MODEL
  - keep: result.label == "red"
    budget: 1 MB/day
  - alert: result.confidence > 0 for 1 h
raw: allowed
send: results
"""


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 3600 * next(looks))


@pytest.mark.usefixtures("backwards")
def test_a_clock_that_jumps_back_costs_no_frame_and_makes_no_delay(build: Any, photos: Path) -> None:
    pipeline, seen = build(f"source: {{images: {photos}}}\n{STEPS}")
    pipeline.run()
    assert seen.labels == ["red", "green", "blue"] * 3
    times = [frame.time_s for frame in seen.frames]
    assert times == sorted(times, reverse=True)  # it really jumped
    assert all(0 < frame.placed.latency_s < 300 for frame in seen.frames)
    stats = pipeline.stats()
    assert 0 < stats["p50_ms"] <= stats["p95_ms"] < 300_000
    assert stats["recent_p50_ms"] > 0 and stats["fps"] > 0
    assert (stats["frames"], stats["errors"], stats["alerts"]) == (9, 0, 0)
    assert (stats["samples"], stats["repeated"]) == (1, 2)  # the red ones are one picture
    results = [event for event in seen.events if event.kind.value == "result"]
    assert [event.data["frame"] for event in results] == list(range(9))
    assert all(event.data["latency_ms"] > 0 for event in results)


@pytest.mark.parametrize("kind", [Stats, TokenBucket])
def test_budgets_and_figures_go_by_a_clock_that_nobody_sets(kind: type) -> None:
    assert inspect.signature(kind).parameters["clock"].default is time.monotonic
