"""What each gate says of which figures: limits, too few frames, like compared with like, words with units."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from marram.rollout.gates import FEW_DELAYS, FEW_FRAMES, Sides, judge, overheated, wilson_low
from marram.rollout.observation import Observation
from marram.schema.rollout import DeviceOutcome, Gates, GateVerdict, RolloutDevice

NONE = Gates(failures=None, silent=None, errors=None, p95_ratio=None, confidence_shift=None, throttling=False)


def seen(name: str = "pi", hardware: str = "fast", **stats: Any) -> Observation:
    return Observation(name, hardware=hardware, stats=stats)


def says(canaries: list[Observation], rest: list[Observation], **limits: Any) -> GateVerdict | None:
    said = judge(NONE.model_copy(update=limits), Sides([], canaries, rest))
    assert len(said) <= 1
    return said[0] if said else None


def of(outcomes: list[str], **limits: Any) -> GateVerdict:
    reached = [RolloutDevice(device=f"pi-{n}", stage=1, outcome=DeviceOutcome(o)) for n, o in enumerate(outcomes)]
    (said,) = judge(NONE.model_copy(update=limits), Sides(reached, [], []))
    return said


def test_shares_of_devices() -> None:
    assert of(["failed"] + ["committed"] * 9, failures=0.0).passed is False
    assert of(["failed"] + ["committed"] * 9, failures=0.1).passed is True
    assert of(["silent", "committed"], silent=0.4).passed is False
    assert of(["silent", "committed"], silent=0.5).words == "silent 1 of 2 (at most 50 %): pi-0"
    assert of([], failures=0.0).passed is True


@pytest.mark.parametrize(
    ("frames", "errors", "passed"),
    [
        (0, 0, None),
        (FEW_FRAMES - 2, 1, None),
        (29, 1, True),  # one in thirty is above 2 %, and may be chance
        (20, 10, False),
        (10_000, 230, True),  # 2.2 %, within three standard errors of the limit
        (10_000, 400, False),
        (0, 50, False),
    ],
)
def test_errors_need_frames_and_more_than_chance(frames: int, errors: int, passed: bool | None) -> None:
    said = says([seen(frames=frames, errors=errors)], [seen(frames=1000, errors=0)], errors=0.02)
    assert said is not None and said.passed is passed


def test_errors_that_the_rest_have_too_are_not_the_versions() -> None:
    canary = [seen(frames=900, errors=100)]
    assert says(canary, [seen(frames=900, errors=100)], errors=0.02).passed is True  # type: ignore[union-attr]
    said = says(canary, [seen(frames=1000, errors=0)], errors=0.02)
    assert said is not None and said.words == "errors 10 % > 2 % (0 % on the rest)"
    few = says(canary, [seen(frames=FEW_FRAMES - 2, errors=1)] * 1, errors=0.08)
    assert few is not None and few.figures["rest"] == 0.0


def test_a_p95_is_that_of_the_worst_class_and_a_ratio_of_the_same_class() -> None:
    canaries = [seen(delays=200, p95_ms=100.0), seen(hardware="slow", delays=200, p95_ms=400.0)]
    said = says(canaries, [], p95_ms=150.0)
    assert said is not None and (said.passed, said.words) == (False, "p95 400 ms > 150 ms on slow")
    rest = [seen(delays=5000, p95_ms=90.0), seen(hardware="slow", delays=5000, p95_ms=390.0)]
    assert says(canaries, rest, p95_ratio=1.5).passed is True  # type: ignore[union-attr]
    faster = [seen(delays=5000, p95_ms=90.0), seen(hardware="slow", delays=5000, p95_ms=90.0)]
    said = says(canaries, faster, p95_ratio=1.5)
    assert said is not None and (said.passed, said.words) == (False, "p95 4.4 × that of the rest > 1.5 on slow")
    # One hiccup among many of a class is not the class.
    many = [seen(delays=200, p95_ms=100.0)] * 4 + [seen(delays=200, p95_ms=5000.0)]
    assert says(many, [], p95_ms=150.0).passed is True  # type: ignore[union-attr]


def test_delays_that_lie_a_few_milliseconds_apart_are_alike_whatever_their_ratio() -> None:
    said = says([seen(delays=200, p95_ms=3.6)], [seen(delays=5000, p95_ms=2.0)], p95_ratio=1.5)
    assert said is not None and (said.passed, said.words) == (True, "p95 3.6 ms, the rest 2 ms: less than 10 ms apart")
    # Ten are a difference, and a slower class does not hide behind one whose ratio is greater and means nothing.
    assert says([seen(delays=200, p95_ms=12.0)], [seen(delays=5000, p95_ms=2.0)], p95_ratio=1.5).passed is False  # type: ignore[union-attr]
    canaries = [seen(delays=200, p95_ms=9.0), seen(hardware="slow", delays=200, p95_ms=400.0)]
    rest = [seen(delays=5000, p95_ms=1.0), seen(hardware="slow", delays=5000, p95_ms=200.0)]
    said = says(canaries, rest, p95_ratio=1.5)
    assert said is not None and (said.passed, said.words) == (False, "p95 2 × that of the rest > 1.5 on slow")


def test_a_p95_of_few_is_not_judged_and_of_no_inference_not_waited_for() -> None:
    said = says([seen(delays=FEW_DELAYS - 1, p95_ms=9000.0)], [], p95_ms=150.0)
    assert said is not None and (said.passed, said.words) == (None, "p95 not judged: 99 frames of the 100 it takes")
    assert says([seen(frames=500)], [seen(frames=500)], p95_ratio=1.5) is None
    assert says([seen(frames=500)], [], p95_ms=150.0).passed is True  # type: ignore[union-attr]
    # A version that stopped asking its model is not the same as an app that never did.
    silent = says([seen(frames=500)], [seen(delays=500, p95_ms=10.0)], p95_ratio=1.5)
    assert silent is not None and silent.passed is None
    nobody = says([seen(delays=500, p95_ms=10.0)], [], p95_ratio=1.5)
    assert nobody is not None and nobody.passed is True and "to compare with" in nobody.words


def test_confidence_may_differ_as_devices_differ() -> None:
    canary = [seen(confidence_mean=0.6, confidence_frames=100)]
    alike = [seen(confidence_mean=0.8, confidence_frames=100)] * 5
    said = says(canary, alike, confidence_shift=0.1)
    assert said is not None and (said.passed, said.words) == (False, "confidence shift 0.20 > 0.10")
    apart = [seen(confidence_mean=value, confidence_frames=100) for value in (0.5, 0.9, 0.6, 1.0, 0.8)]
    assert says(canary, apart, confidence_shift=0.1).passed is True  # type: ignore[union-attr]
    few = says([seen(confidence_mean=0.1, confidence_frames=3)], alike, confidence_shift=0.1)
    assert few is not None and few.passed is None
    assert says([seen(frames=500)], alike, confidence_shift=0.1) is None  # it has no such thing


def test_disagreement_on_the_same_inputs() -> None:
    said = says([seen(shadow_frames=200, shadow_disagreements=40)], [], disagreement=0.05)
    assert said is not None and (said.passed, said.words) == (False, "disagreement 20 % > 5 %")
    assert says([seen(shadow_frames=200, shadow_disagreements=10)], [], disagreement=0.05).passed is True  # type: ignore[union-attr]
    assert says([seen(shadow_frames=31, shadow_disagreements=2)], [], disagreement=0.05).passed is True  # type: ignore[union-attr]  # 6 %, and may be chance
    assert says([seen()], [], disagreement=0.05).passed is None  # type: ignore[union-attr]


def test_one_device_that_lies_decides_for_nobody_else() -> None:
    honest = [seen(f"pi-{n}", frames=500, errors=0, confidence_mean=0.8, confidence_frames=500) for n in range(20)]
    broken = [seen(f"new-{n}", frames=350, errors=150, confidence_mean=0.3, confidence_frames=500) for n in range(5)]
    for lie in ({"frames": 1e14}, {"frames": 0, "errors": 1e14}, {"frames": 1e14, "errors": 1e14}):
        liar = seen("liar", **lie)
        for canaries, rest in (([*broken, liar], honest), (broken, [*honest, liar])):
            verdict = says(canaries, rest, errors=0.02)
            assert verdict is not None and verdict.passed is False, verdict
    shadowed = [seen(f"new-{n}", shadow_frames=500, shadow_disagreements=200) for n in range(5)]
    verdict = says([*shadowed, seen("liar", shadow_frames=1e14)], honest, disagreement=0.05)
    assert verdict is not None and verdict.passed is False
    liar = seen("liar", confidence_mean=1e14, confidence_frames=500)
    verdict = says(broken, [*honest, liar], confidence_shift=0.1)
    assert verdict is not None and verdict.passed is False, "not by making all look different from each other"


def test_heat() -> None:
    gates = Gates(temperature_c=80.0)
    assert overheated(gates, Observation("pi", temperature_c=85.0), None) == "85 °C, above 80 °C"
    assert overheated(gates, Observation("pi", temperature_c=80.0), None) == ""
    assert "throttled" in overheated(gates, Observation("pi", throttled=True), False)
    assert overheated(gates, Observation("pi", throttled=True), True) == ""  # it was before
    assert overheated(gates, Observation("pi", throttled=True), None) == ""  # nobody knows
    assert overheated(NONE, Observation("pi", throttled=True), False) == ""


WILD = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3), st.lists(st.integers()))
KEYS = ["frames", "errors", "delays", "p95_ms", "confidence_mean", "confidence_frames", "shadow_frames"]
STATS = st.dictionaries(st.sampled_from([*KEYS, "shadow_disagreements"]), WILD)


@given(st.lists(STATS, max_size=4), st.lists(STATS, max_size=4))
def test_whatever_devices_report_nothing_breaks(canaries: list[dict[str, Any]], rest: list[dict[str, Any]]) -> None:
    sides = Sides([], [seen(**stats) for stats in canaries], [seen(**stats) for stats in rest])
    for said in judge(Gates(p95_ms=1.0, disagreement=0.1), sides):
        assert said.words and said.model_dump_json()


@given(st.integers(0, 1000), st.integers(1, 1000))
@example(0, 31)  # 2e-17 before it was bounded
def test_the_lower_end_of_a_share_is_below_it(hits: int, of_: int) -> None:
    low = wilson_low(hits, of_)
    assert 0.0 <= low <= min(1.0, hits / of_)
