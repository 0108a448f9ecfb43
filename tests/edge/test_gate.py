from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.edge.gate import Figures, Gate, Verdict
from marram.schema.health import Health


def health(**fields: str) -> Health:
    """As an app file has it."""
    return Health.model_validate(fields)


def judged(health: Health, *looks: tuple[float, dict[str, Any]], ended: bool = False, busy_s: float = 0) -> Any:
    """The verdict, and when it came."""
    gate = Gate(health, 0.0)
    for at_s, stats in looks:
        last = ended and at_s == looks[-1][0]
        verdict = gate.look(Figures(stats, busy_s, 0, ended=last), at_s)
        if verdict is not None:
            return at_s, verdict
    return None, Verdict(False)


GOOD = {"frames": 100, "delays": 100, "errors": 0, "p95_ms": 40.0}


def test_the_trial_counts_from_the_first_result() -> None:
    looks = [(0.0, {}), (5.0, {"frames": 1}), (5.9, GOOD), (6.0, GOOD)]
    at_s, verdict = judged(Health(), *looks)
    assert at_s == 6.0 and verdict.passed and verdict.reason == ""
    assert verdict.evidence["trial_s"] == 1.0 and verdict.evidence["frames"] == 100 and verdict.evidence["passed"]


def test_a_source_that_says_nothing_is_taken_after_a_while() -> None:
    at_s, verdict = judged(health(quiet="20 s"), (0.0, {}), (19.9, {}), (20.0, {}))
    assert at_s == 20.0 and verdict.passed and "said nothing for 20 s" in verdict.reason


def test_one_bad_frame_among_few_decides_nothing_yet() -> None:
    bad = {"frames": 0, "errors": 1, "last_error": "no"}
    assert judged(Health(), (0.0, bad), (2.0, bad), (59.0, bad))[0] is None
    at_s, verdict = judged(Health(), (0.0, bad), (2.0, bad), (60.0, bad))
    assert at_s == 60.0 and verdict.reason == "every frame failed: no"
    assert judged(Health(), (0.0, bad), (2.0, GOOD | {"errors": 1}))[1].passed


@pytest.mark.parametrize(("errors", "passed"), [("10 %", False), ("15 %", True), ("20 %", True)])
def test_the_share_of_failed_frames(errors: str, passed: bool) -> None:
    stats = {"frames": 85, "errors": 15, "last_error": "too dark"}
    _, verdict = judged(health(errors=errors), (0.0, stats), (1.0, stats))
    assert verdict.passed is passed
    assert passed or verdict.reason == "15% of its frames failed (at most 10%); last: too dark"


def test_the_delay() -> None:
    slow, few = GOOD | {"p95_ms": 212.4}, {"frames": 3, "delays": 3, "p95_ms": 400.0}
    _, verdict = judged(health(p95="150 ms"), (0.0, slow), (1.0, slow))
    assert verdict.reason == "p95 212 ms broke the gate (150 ms)" and verdict.evidence["p95_limit_ms"] == 150
    assert judged(health(p95="150 ms"), (0.0, GOOD | {"p95_ms": 150.0}), (1.0, GOOD | {"p95_ms": 150.0}))[1].passed
    # The first inferences warm up: a few delays alone condemn nobody.
    assert judged(health(p95="150 ms"), (0.0, few), (2.0, few), (3.0, GOOD))[1].passed
    # Who has no results has no delay.
    assert judged(health(p95="150 ms"), (0.0, {"frames": 9}), (1.0, {"frames": 9, "p95_ms": None}))[1].passed


def test_how_few_decide_nothing_yet() -> None:
    for enough, stats in (
        (False, {"frames": 1, "errors": 3}),
        (True, {"frames": 1, "errors": 4}),
        (False, {"frames": 19, "delays": 19, "p95_ms": 400.0}),
        (True, {"frames": 20, "delays": 20, "p95_ms": 400.0}),
    ):
        at_s, _ = judged(health(p95="150 ms"), (0.0, stats), (1.0, stats))
        assert (at_s is not None) is enough, stats


def test_a_negative_count_hides_no_failure() -> None:
    stats = {"frames": -5, "errors": 3, "last_error": "no"}
    _, verdict = judged(Health(), (0.0, stats), (60.0, stats))
    assert verdict.reason == "every frame failed: no"


def test_what_is_long_at_work_on_a_frame_is_not_judged() -> None:
    stats = {"frames": 1}
    assert judged(Health(), (0.0, stats), (100.0, stats), busy_s=30.0)[0] is None
    assert judged(Health(), (0.0, {}), (100.0, {}), busy_s=30.0)[0] is None


def test_figures_of_before_the_end_of_the_trial_do_not_decide() -> None:
    gate = Gate(Health(), 0.0)
    assert gate.look(Figures(GOOD), 0.0) is None
    assert gate.look(Figures(GOOD, fresh=False), 1.5) is None
    assert gate.look(Figures(GOOD), 1.6) is not None


@pytest.mark.parametrize(("stats", "passed"), [(GOOD, True), ({}, True), ({"errors": 3}, False)])
def test_a_source_that_ends_within_the_trial_is_judged_by_what_it_gave(stats: dict[str, Any], passed: bool) -> None:
    at_s, verdict = judged(health(trial="60 s"), (0.1, stats), ended=True)
    assert at_s == 0.1 and verdict.passed is passed and "said nothing" not in verdict.reason


FIGURE = st.one_of(st.none(), st.text(max_size=3), st.integers(-5, 1000), st.floats(allow_nan=True))


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["frames", "errors", "delays", "p95_ms", "last_error"]), FIGURE), max_size=9
    ),
    st.booleans(),
)
def test_whatever_a_worker_says_of_itself(said: list[dict[str, Any]], limited: bool) -> None:
    limits = health(errors="30 %", p95="100 ms") if limited else health(errors="30 %")
    gate = Gate(limits, 0.0)
    for at_s, stats in enumerate(said):
        verdict = gate.look(Figures(stats), float(at_s))
        if verdict is not None:
            frames, errors = (stats[n] if isinstance(stats.get(n), int) else 0 for n in ("frames", "errors"))
            if verdict.passed and errors > 0:
                assert errors / (errors + max(frames, 0)) <= limits.errors
