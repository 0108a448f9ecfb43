"""What a live run is held against is that very run: the link where it was, frames counted once, times as measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from bench._oracle_live import judge, too_busy

from marram.lab.oracle.play import play
from marram.lab.oracle.record import Answer, Offered, Record, in_order, latencies_s, overhead_bytes, streams_of
from marram.lab.oracle.stream import SETTINGS, Setting
from marram.lab.traces import Direction, read_mahimahi
from marram.placement.policy import LatencyPolicy

SETTING = Setting("A", 1000, 0.1, 5.0, frames=2)
OFFERED = Offered((105.0, 105.2, 105.4), 1, link_began_s=100.0, link_seen_s=104.0, up_bytes=5300)
# Frame 1 was captured late, waited for the one before it; frame 2 was never answered.
RECORD = Record(
    [Answer(0, 105.0, "edge", 0.1, 0.1), Answer(1, 105.21, "cloud", 0.1, 0.15)],
    edge=[(105.1, 0.1), (105.55, 0.12)],
    cloud=[(105.3, 0.004)],
    sent=[(103.0, 9999), (105.0, 2000), (105.2, 3000)],
    payload_bytes=3000,
    rtt_s=0.042,
)


def test_frames_count_from_when_they_were_offered_and_those_without_an_answer_count() -> None:
    assert latencies_s(RECORD, OFFERED, released=False) == [pytest.approx(0.11), math.inf]
    assert latencies_s(RECORD, OFFERED, released=True) == [pytest.approx(0.16), math.inf]


def test_in_order_each_waits_for_those_before_it_and_nobody_for_what_never_comes() -> None:
    ordered = in_order([0.5, 0.1, math.inf, 0.1], 5.0)
    assert ordered == [0.5, pytest.approx(0.3), math.inf, pytest.approx(0.1)]


def test_the_stream_is_the_run() -> None:
    up = Direction((0.0, 5.1, 5.3), (8e4, 16e4, 32e4), 60.0)
    assert overhead_bytes(RECORD, OFFERED) == 150
    lived, counted = streams_of("x", SETTING, up, RECORD, OFFERED)
    assert (lived.setting.frames, counted.setting.frames) == (3, 2)
    assert lived.setting.payload_bytes == 3150 and lived.setting.rtt_s == 0.042
    # Where the link was: 5 s into its trace at the first frame, 5.2 s at the first that counts.
    assert [lived.up.at(t) for t in (0.05, 0.15, 0.35)] == [8e4, 16e4, 32e4]
    assert [counted.up.at(t) for t in (0.05, 0.15)] == [16e4, 32e4]
    # What inferences took that began nearest to each frame.
    assert lived.edge_s == (0.1, 0.1, 0.12) and counted.edge_s == (0.1, 0.12)
    assert set(lived.cloud_s) == {0.004}


def test_where_nothing_was_answered_the_setting_says_what_it_would_have_taken() -> None:
    lived, _ = streams_of("x", SETTING, Direction((0.0,), (1e5,), 1.0), Record(payload_bytes=10), OFFERED)
    assert set(lived.edge_s) == {SETTING.edge_s} and set(lived.cloud_s) == {SETTING.cloud_s}


def test_a_run_that_went_as_simulated_is_judged_so(tmp_path: Path) -> None:
    trace = tmp_path / "link.up"
    # 12 kbyte/s for two seconds, four times that for two.
    milliseconds = [m for m in range(4000) if m % 125 == 0 or (m >= 2000 and m % 31 == 0)]
    trace.write_text("".join(f"{m}\n" for m in milliseconds))
    setting = replace(SETTINGS[0], payload_bytes=3000, frames=40)
    offered = Offered(tuple(50 + k / setting.fps for k in range(45)), 5, 47.0, 49.0, up_bytes=0)
    record = Record(edge=[(51.0, 0.15)], cloud=[(52.0, 0.02)], payload_bytes=3000, rtt_s=0.04)
    lived, _ = streams_of(trace.stem, setting, read_mahimahi(trace).up, record, offered)
    for number, late_s in enumerate(play(lived, LatencyPolicy()).latencies_s):
        if late_s < math.inf:
            record.answers.append(Answer(number, offered.offered_s[number], "edge", late_s, late_s + 0.005))
    figures = judge(trace, setting, record, offered)
    assert figures.answered == pytest.approx(figures.simulations[0])
    # 5 ms more for each frame, of what the best takes.
    answered = round(40 * (1 - figures.missed))
    more = answered * 0.005 / (40 * figures.best_ms / 1000)
    assert figures.released - figures.answered == pytest.approx(more, rel=0.02)
    assert figures.gap == pytest.approx(figures.released - sum(figures.simulations) / 5)


def test_a_busy_machine_is_said_to_be() -> None:
    even = Record(edge=[(0.0, 0.1)] * 50)
    assert too_busy(SETTING, even, OFFERED) == ""
    assert "60% of the time" in too_busy(SETTING, even, replace(OFFERED, waited_share=0.6))
    late = replace(OFFERED, offered_s=(105.0, 105.25, 105.45))
    assert "50 ms late" in too_busy(SETTING, even, late)
    assert "130 ms instead of 100" in too_busy(SETTING, Record(edge=[(0.0, 0.13)] * 50), OFFERED)
    uneven = Record(edge=[(0.0, 0.1)] * 40 + [(0.0, 0.2)] * 10)
    assert "200 ms instead of 100" in too_busy(SETTING, uneven, OFFERED)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == RECORD
