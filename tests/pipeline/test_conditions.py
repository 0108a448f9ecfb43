"""Conditions: what they answer, what they refuse when an app starts, what they do when they cannot answer."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from marram.pipeline.conditions import Condition
from marram.pipeline.contract import Frame, Placed
from marram.schema.errors import Invalid
from marram.schema.model import Task
from marram.schema.result import Detection, Place, Result

BEAGLE = Result(
    task=Task.CLASSIFICATION, model="m", label="beagle", confidence=0.3, top=(("beagle", 0.3), ("cat", 0.2))
)


def frame(result: Result | None = BEAGLE, *, time_s: float = 0.0, reading: object = None) -> Frame:
    placed = Placed(Place.CLOUD, latency_s=0.05)
    return Frame(7, time_s, 0.0, reading=reading, name="a.jpg", result=result, placed=placed)


def condition(text: str) -> Condition:
    return Condition(text, where="steps[1].keep", device="gate-1")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("result.confidence < 0.4", True),
        ('result.label == "beagle" && result.confidence > 0.6', False),
        ('result.label.startsWith("bea")', True),
        ("result.top.exists(t, t[0] == 'cat' && t[1] > 0.1)", True),
        ("size(result.top) == 2", True),
        ("has(result.people) && result.people > 2", False),
        ("!has(result.people)", True),
        ('frame.place == "cloud" && frame.latency_ms > 49 && frame.latency_ms < 51', True),
        ('frame.index == 7 && frame.name == "a.jpg"', True),
        ('device == "gate-1"', True),
        ('result["label"] == "beagle"', True),
        ("true", True),
        ('"for 10 s" == result.label', False),
    ],
)
def test_answers(text: str, holds: bool) -> None:
    asked = condition(text)
    assert asked(frame()) is holds
    assert asked.errors == 0


def test_hour_is_the_devices_local_time() -> None:
    at = time.mktime((2026, 7, 14, 22, 41, 3, 0, 0, -1))
    assert condition("frame.hour == 22 && frame.minute == 41 && frame.weekday == 2")(frame(time_s=at))


def test_sees_readings_and_what_functions_added() -> None:
    assert condition("reading.temperature > 80.0")(frame(None, reading={"temperature": 81.5}))
    assert condition("reading > 80.0")(frame(None, reading=81.5))
    assert condition("result.people >= 3")(frame(BEAGLE.with_(people=3)))


def test_anomaly_is_a_field() -> None:
    odd = Result(task=Task.ANOMALY, model="m", score=2.0, threshold=1.0)
    assert condition("result.anomaly")(frame(odd))
    assert condition("result.score > result.threshold")(frame(odd))


def test_a_detector_that_found_nothing_is_an_answer_not_a_fault() -> None:
    nothing = Result(task=Task.DETECTION, model="m")
    for text, holds in (('result.label == "person"', False), ('result.label != "person"', True)):
        asked = condition(text)
        assert asked(frame(nothing)) is holds
        assert asked.errors == 0
    assert condition("result.confidence < 0.4")(frame(nothing))
    person = Result(task=Task.DETECTION, model="m", detections=(Detection("person", 0.9, (0, 0, 1, 1)),))
    assert condition("result.detections.exists(d, d.label == 'person')")(frame(person))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("result.score > 1.0", "has no score here"),
        ("result.label > 3", "different types"),
        ("result.label", "gives 'beagle', not true or false"),
        ("result.confidence > 0.1 && result.index / 0 > 1", "has no index"),
        ("frame.index / (frame.index - 7) > 1", "division by zero"),
        ("result.label.matches('(')", "not a valid regex"),
    ],
)
def test_what_cannot_be_answered_is_false_and_counted(text: str, says: str) -> None:
    heard: list[str] = []
    asked = Condition(text, where="steps[1].keep", on_error=heard.append)
    assert asked(frame()) is False
    assert asked(frame()) is False
    assert asked.errors == 2
    assert says in asked.last_error
    assert "steps[1].keep" in asked.last_error
    assert heard == [asked.last_error] * 2


def test_a_frame_without_a_result_is_false_and_counted() -> None:
    asked = condition("result.confidence < 0.4")
    assert asked(frame(None)) is False
    assert asked.errors == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("result.confidence <", "column 20"),
        ("result.label = 'x'", "a single = where == belongs"),
        ("result.x or true", "&&, ||, !"),
        ("person", 'no variable "person"'),
        ("rezult.confidence > 1", 'did you mean "result"?'),
        ("frame.hou > 2", "did you mean frame.hour?"),
        ("frame.brightness > 3", "it has index"),
        ("lower(result.label) == 'x'", 'no function "lower"'),
        ("math.abs(result.score) > 1", 'no variable "math"'),
        ("1", "always 1"),
        ("'yes'", "always 'yes'"),
        ("1 / 0 > 2", "division by zero"),
        ("", "not a condition"),
        ("(" * 3000, "not a condition"),
        ("result.confidence > \x00", "not a condition"),
        ("result.label == ”x”", "not a condition"),
        ("true for 10", "10 s or 10 ms"),
        ("true for 10 parsecs", "parsecs"),
    ],
)
def test_a_bad_one_is_refused_at_the_start(text: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        condition(text)
    assert "steps[1].keep" in str(refused.value)
    assert says in str(refused.value)


def held(asked: Condition, times: list[float], holds: list[bool] | None = None) -> list[bool]:
    flags = holds or [True] * len(times)
    return [asked(frame(BEAGLE if flag else None, time_s=at)) for at, flag in zip(times, flags, strict=True)]


def test_for_waits_until_it_has_held_that_long() -> None:
    asked = condition("has(result.label) for 10 s")
    assert asked.held_s == 10
    assert held(asked, [0, 5, 9.9, 10, 11]) == [False, False, False, True, True]


def test_for_starts_again_after_a_break() -> None:
    asked = condition("has(result.label) for 10 s")
    assert held(asked, [0, 9, 10, 11, 20, 21], [True, True, False, True, True, True])[-2:] == [False, True]


def test_a_clock_set_back_neither_raises_an_alert_nor_forgets() -> None:
    asked = condition("has(result.label) for 10 s")
    # 8 s have passed when the clock is set back an hour; 2 s later the 10 s are full.
    assert held(asked, [3600, 3608, 8, 9, 10, 11]) == [False, False, False, False, True, True]


def test_only_the_engine_is_loaded_and_only_when_asked() -> None:
    """The package would bring its command line along: 20 MB on a device that never shows it."""
    code = (
        "import sys; import marram.pipeline.conditions as c; before = set(sys.modules); c.Condition('true', where='x');"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} & {'cel', 'prompt_toolkit', 'pygments'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
