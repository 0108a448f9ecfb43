"""filter, alert and keep: what a condition sets off."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from marram.pipeline.contract import Frame, Step
from marram.pipeline.steps.keep import TokenBucket, encode_jpeg
from marram.schema.errors import Invalid, Permanent
from marram.schema.event import EventKind
from marram.schema.model import Task
from marram.schema.result import Result

Make = Callable[[str], Step]
CAMERA = "source: {camera: 0}\n"
SERIES = "source: {series: a.csv}\n"


def frame(confidence: float | None, *, time_s: float = 0.0, image: Any = None, **fields: Any) -> Frame:
    result = None
    if confidence is not None:
        result = Result(task=Task.CLASSIFICATION, model="m", label="cat", confidence=confidence)
    return Frame(3, time_s, 0.0, image=image, name="x", result=result, **fields)


def photo(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_filter_lets_pass_what_holds(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "steps: [{filter: result.confidence > 0.5}]")
    sure = frame(0.9)
    assert list(step(sure)) == [sure]
    assert list(step(frame(0.2))) == []
    assert list(step(frame(None))) == []
    assert len(heard.errors) == 1
    assert "has no confidence here" in heard.errors[0]


def test_alert_tells_edges_only(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "steps: [{alert: result.confidence > 0.5}]")
    for at, confidence in enumerate([0.1, 0.9, 0.8, 0.9, 0.2, 0.1, 0.7]):
        assert len(list(step(frame(confidence, time_s=100.0 + at)))) == 1
    told = [(e.kind, e.data["state"], e.time_s) for e in heard.events]
    assert told == [
        (EventKind.ALERT, "raised", 101.0),
        (EventKind.ALERT, "recovered", 104.0),
        (EventKind.ALERT, "raised", 106.0),
    ]
    assert heard.events[0].data["condition"] == "result.confidence > 0.5"
    assert heard.events[0].data["result"]["confidence"] == 0.9
    assert heard.events[1].data["lasted_s"] == 3.0


def test_alert_waits_for_how_long_it_must_hold(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "steps: [{alert: result.confidence > 0.5 for 3 s}]")
    for at in range(8):
        list(step(frame(0.9 if at != 2 else 0.1, time_s=float(at))))
    assert [(e.data["state"], e.time_s) for e in heard.events] == [("raised", 6.0)]


def test_a_clock_set_back_gives_no_negative_duration(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "steps: [{alert: result.confidence > 0.5}]")
    list(step(frame(0.9, time_s=5000.0)))
    list(step(frame(0.1, time_s=10.0)))
    assert heard.events[1].data["lasted_s"] == 0.0


@pytest.mark.parametrize("verb", ["filter", "alert", "keep"])
def test_a_bad_condition_names_its_field(last_step: Make, verb: str) -> None:
    text = CAMERA + f"raw: allowed\nsteps: [{{filter: 'true'}}, {{{verb}: result.confidence <}}]"
    with pytest.raises(Invalid, match=rf"^steps\[1\]\.{verb}: "):
        last_step(text)


def test_keep_gives_the_picture_and_why(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "raw: allowed\nsteps: [{keep: result.confidence < 0.4}]")
    unsure, sure = frame(0.2, image=photo()), frame(0.9, image=photo())
    assert list(step(unsure)) == [unsure]
    assert list(step(sure)) == [sure]
    (sample,) = heard.events
    assert (sample.kind, sample.media) == (EventKind.SAMPLE, "image/jpeg")
    assert sample.data["reason"] == "result.confidence < 0.4"
    assert (sample.data["width"], sample.data["height"], sample.data["redacted"]) == (80, 60, False)
    assert sample.data["result"]["label"] == "cat"
    assert Pillow.open(BytesIO(sample.body)).size == (80, 60)


def test_keep_gives_a_reading_as_json(last_step: Make, heard: Any) -> None:
    step = last_step(SERIES + "raw: allowed\nsteps: [{keep: 'reading.t[0] > 1.0'}]")
    list(step(frame(None, reading={"t": [1.5, np.float32(2.5), float("nan")]})))
    assert json.loads(heard.events[0].body) == {"t": [1.5, 2.5, None]}
    assert heard.events[0].media == "application/json"


def test_a_reading_that_does_not_fit_is_counted_not_sent(last_step: Make, heard: Any) -> None:
    step = last_step(SERIES + "raw: allowed\nsteps: [{keep: 'true'}]")
    list(step(frame(None, reading={"t": [0.123456789] * 400_000})))
    assert heard.events == []
    assert "more than a sample's 3 MB" in heard.errors[0]


def test_keep_stays_within_its_budget(last_step: Make, heard: Any) -> None:
    shots = [np.full((60, 80, 3), 40 * number, np.uint8) for number in range(5)]
    sizes = [len(encode_jpeg(shot)) for shot in shots]
    step = last_step(CAMERA + f"raw: allowed\nsteps: [{{keep: 'true', budget: {sum(sizes[:3])} B/day}}]")
    for shot in shots:
        assert len(list(step(frame(0.9, image=shot)))) == 1
    assert len(heard.events) == 3
    assert heard.counts == {"over_budget": 2}


def test_keep_takes_the_very_same_picture_once(last_step: Make, heard: Any) -> None:
    """A folder that is repeated, or what stands still before a camera, fills neither budget nor training."""
    first, second = (np.full((60, 80, 3), shade, np.uint8) for shade in (40, 80))
    step = last_step(CAMERA + "raw: allowed\nsteps: [{keep: 'true', budget: 1 MB/day}]")
    for shot in (first, second, first, first, second):
        assert len(list(step(frame(0.9, image=shot)))) == 1
    assert [event.body for event in heard.events] == [encode_jpeg(first), encode_jpeg(second)]
    assert heard.counts == {"repeated": 3}


def test_a_picture_that_could_not_be_recorded_is_kept_when_it_comes_again(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "raw: allowed\nsteps: [{keep: 'true'}]")
    heard.full = True
    with pytest.raises(Permanent):
        list(step(frame(0.9, image=photo())))
    heard.full = False
    list(step(frame(0.9, image=photo())))
    assert len(heard.events) == 1


def test_equal_readings_are_each_a_case_of_its_own(last_step: Make, heard: Any) -> None:
    step = last_step(SERIES + "raw: allowed\nsteps: [{keep: 'true'}]")
    for _ in range(3):
        list(step(frame(None, reading={"t": [1.5]})))
    assert len(heard.events) == 3


def test_a_budget_fills_again_to_a_day_and_no_more() -> None:
    now = [0.0]
    bucket = TokenBucket(2.0, clock=lambda: now[0])  # 172,800 bytes a day
    assert bucket.take(172_800)
    assert not bucket.take(1)
    now[0] = 50.0
    assert bucket.take(100)
    assert not bucket.take(1)
    now[0] = 7 * 86_400.0
    assert bucket.take(172_800)
    assert not bucket.take(1)


@pytest.mark.parametrize(
    ("app", "says"),
    [
        (CAMERA + "raw: never\n", "nothing of the input leave"),
        (SERIES + "raw: redacted\n", "readings cannot be redacted"),
    ],
)
def test_keeping_what_may_not_leave_is_refused_at_the_start(last_step: Make, app: str, says: str) -> None:
    with pytest.raises(Invalid, match=says) as refused:
        last_step(app + "steps: [{keep: 'true'}]")
    assert "raw: allowed" in str(refused.value)


def test_keeping_needs_no_written_redact_step_where_raw_says_it(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "raw: redacted\nsteps: [{keep: 'true'}]")
    list(step(frame(0.9, image=photo(), redacted=False)))
    assert heard.events == []
    list(step(frame(0.9, image=photo(), redacted=True)))
    assert len(heard.events) == 1


def test_only_redacted_pictures_leave(last_step: Make, heard: Any) -> None:
    step = last_step(CAMERA + "raw: redacted\nsteps: [{redact: faces}, {keep: 'true'}]")
    list(step(frame(0.9, image=photo(), redacted=False)))
    assert heard.events == []
    assert "frame 3 is not redacted" in heard.errors[0]
    list(step(frame(0.9, image=photo(), redacted=True)))
    assert heard.events[0].data["redacted"] is True


def test_a_large_picture_is_made_to_fit() -> None:
    noise = photo(900, 1200)
    body = encode_jpeg(noise, limit_bytes=100_000)
    assert len(body) <= 100_000
    small = Pillow.open(BytesIO(body))
    assert small.width / small.height == pytest.approx(4 / 3, rel=0.01)
    assert len(encode_jpeg(noise)) > 100_000


def test_a_picture_read_backwards_keeps_its_colours() -> None:
    bgr = np.zeros((40, 40, 3), np.uint8)
    bgr[:, :, 0] = 250  # blue, as a camera gives it
    kept = np.asarray(Pillow.open(BytesIO(encode_jpeg(bgr[:, :, ::-1]))))
    assert kept[20, 20, 2] > 200
    assert kept[20, 20, 0] < 50
