"""Who takes a process down: put aside after two faults, for longer each time; who merely was there is not."""

from __future__ import annotations

import signal

from marram.serving.suspects import Suspects

FAULT = -signal.SIGSEGV


def test_the_second_fault_puts_a_model_aside_for_longer_each_time() -> None:
    suspects: Suspects[str] = Suspects()
    assert suspects.ended(0.0, FAULT, ["bad"]) is None
    pauses = []
    for number in range(9):
        aside = suspects.ended(10.0 + number, FAULT, ["bad"])
        assert aside is not None and aside.key == "bad" and "SIGSEGV" in aside.reason
        pauses.append(aside.pause_s)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_who_was_there_each_time_is_suspected_and_not_who_was_there_once() -> None:
    suspects: Suspects[str] = Suspects()
    assert suspects.ended(0.0, FAULT, ["bad", "good"]) is None
    assert suspects.ended(1.0, FAULT, []) is None
    aside = suspects.ended(2.0, FAULT, ["other", "bad"])
    assert aside is not None and aside.key == "bad"


def test_one_wrongly_put_aside_costs_one_more_fault_and_not_more() -> None:
    suspects: Suspects[str] = Suspects()
    suspects.ended(0.0, FAULT, ["a", "bad"])
    aside = suspects.ended(1.0, FAULT, ["a", "bad"])
    assert aside is not None and aside.key == "a"  # both were there each time
    for now_s, asked in ((2.0, ["bad"]), (200.0, ["a", "bad"]), (900.0, ["a", "bad"])):
        aside = suspects.ended(now_s, FAULT, asked)
        assert aside is not None and aside.key == "bad"


def test_a_kill_from_outside_counts_half_and_what_is_long_ago_nothing() -> None:
    suspects: Suspects[str] = Suspects()
    kills = [suspects.ended(float(number), -signal.SIGKILL, ["m"]) for number in range(4)]
    assert kills[:3] == [None] * 3 and kills[3] is not None
    assert suspects.ended(1e6, FAULT, ["m"]) is None
