"""How far apart a live source's frames come: steady, skipped, held back, in bursts, across a source that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.conftest import picture
from tests.pipeline.scripted import Chooser, LiveSource, Scripted, silent

from marram.pipeline import plugins
from marram.pipeline.contract import Frame
from marram.pipeline.rhythm import Rhythm
from marram.runtime.bundle import Bundle
from marram.schema.result import Place

EVERY_S = 0.04


def test_nothing_is_known_of_a_few_frames() -> None:
    rhythm = Rhythm()
    for number in range(8):
        rhythm.came(number * EVERY_S, number, 0, 0)
        assert rhythm.every_s is None
    rhythm.came(8 * EVERY_S, 8, 0, 0)
    assert rhythm.every_s == pytest.approx(EVERY_S)


@given(st.lists(st.integers(0, 9), min_size=12, max_size=200), st.floats(1e-3, 10.0))
def test_what_was_skipped_came_too(skips: list[int], every_s: float) -> None:
    """Whatever a slow step takes of a camera's pictures, it hears how often those come."""
    rhythm, came, skipped = Rhythm(), 0, 0
    for index, skip in enumerate(skips):
        rhythm.came(came * every_s, index, skipped, 0)
        came, skipped = came + 1 + skip, skipped + skip
    assert rhythm.every_s == pytest.approx(every_s)


@pytest.mark.parametrize("skip", [0, 4])
def test_what_was_held_back_before_the_step_did_not_come_to_it(skip: int) -> None:
    """One frame in ten passes the filter; of those that are skipped one in ten would have."""
    rhythm = Rhythm()
    for number in range(400):
        if number % 10 == 0:
            rhythm.came(number * (1 + skip) * EVERY_S, number, number * skip, 0)
    assert rhythm.every_s == pytest.approx(10 * EVERY_S)


def test_several_frames_of_one_are_several() -> None:
    rhythm = Rhythm()
    for number in range(200):
        rhythm.came(number // 2 * EVERY_S, number // 2, 0, 0)
    assert rhythm.every_s == pytest.approx(EVERY_S / 2, rel=0.02)


def test_a_burst_is_not_taken_for_the_rate() -> None:
    """Twenty sensors of one site speak at the same moment, every two seconds: ten a second."""
    rhythm, seen = Rhythm(), []
    for number in range(600):
        rhythm.came(number // 20 * 2.0 + number % 20 * 1e-4, number, 0, 0)
        seen.append(rhythm.every_s)
    assert all(0.05 < every_s < 0.2 for every_s in seen[100:] if every_s is not None) and None not in seen[100:]


def test_jitter_averages_out_and_another_rate_is_followed() -> None:
    rhythm, random_, now_s = Rhythm(), random.Random(3), 0.0
    for number in range(900):
        now_s += (EVERY_S if number < 500 else 3 * EVERY_S) * random_.uniform(0.3, 1.7)
        rhythm.came(now_s, number, 0, 0)
        if number == 499:
            assert rhythm.every_s == pytest.approx(EVERY_S, rel=0.2)
    assert rhythm.every_s == pytest.approx(3 * EVERY_S, rel=0.2)


def test_while_the_source_fails_nothing_is_learnt() -> None:
    rhythm, now_s = Rhythm(), 0.0
    for number in range(100):
        now_s += 60.0 if number == 50 else EVERY_S  # unplugged for a minute
        rhythm.came(now_s, number, 0, int(number >= 50))
    assert rhythm.every_s == pytest.approx(EVERY_S)


# ---------------------------------------------------------------- in a pipeline


@pytest.fixture
def asks(build: Any, colours: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[float | None]]:
    """What the policy heard with each of 30 frames of a camera that gives three for each one that is taken."""

    def frames() -> Iterator[Frame]:
        for number in range(30):
            monkeypatch.setattr(LiveSource, "skipped", 2 * number)
            yield Frame(number, 0.0, 100.0 + number * EVERY_S, image=picture("red"))

    def go(source: str) -> list[float | None]:
        monkeypatch.setattr(LiveSource, "skipped", 0)
        monkeypatch.setattr(plugins, "open_source", lambda spec, base: LiveSource(frames))
        policy = Chooser([Place.EDGE])
        pipeline, _ = build(
            f"source: {source}\nraw: allowed\nsteps: [{{classify: MODEL, cloud: big}}]\n",
            remote=Scripted(silent), cloud_cards={"big": Bundle.open(colours).card}, policy=policy,
        )  # fmt: skip
        pipeline.run()
        return [ask.every_s for ask in policy.asks]

    return go


def test_the_policy_hears_when_a_cameras_next_frame_comes(asks: Callable[[str], list[float | None]]) -> None:
    heard = asks("{camera: 0}")
    assert heard[0] is None and heard[-1] == pytest.approx(EVERY_S / 3)
    # What the app says is so.
    assert set(asks("{camera: 0, every: 200 ms}")) == {0.2}
