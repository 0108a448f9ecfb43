"""Traces: exact integration, seeded and believable made ones, readers that refuse what is not a trace."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.lab.traces import Direction, bursty, constant, parse_trace, read_mahimahi, read_sabre, synthetic
from marram.schema.errors import Invalid, MarramError, Missing


def carried(way: Direction, until_s: float, step_s: float = 1e-4) -> float:
    return sum(way.at(i * step_s) * step_s for i in range(round(until_s / step_s)))


def test_finish_is_the_inverse_of_what_the_link_carried() -> None:
    way = Direction((0.0, 0.5, 0.7), (8000.0, 0.0, 16000.0), 1.0)  # 1000, 0, 2000 bytes/s
    assert way.finish(0.0, 250) == pytest.approx(0.25)
    assert way.finish(0.0, 500) == pytest.approx(0.5)
    assert way.finish(0.5, 0) == pytest.approx(0.5)
    assert way.finish(0.55, 100) == pytest.approx(0.75)
    assert way.finish(0.25, 1000) == pytest.approx(1.15)
    assert way.finish(7.25, 1000 + 5 * 1100) == pytest.approx(13.15)


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1e7)), min_size=1, max_size=8).filter(
        lambda s: any(r > 1 for _, r in s)
    ),
    st.floats(0, 100),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_finish_rises_with_time_and_size(steps: list[tuple[float, float]], t: float, small: float, more: float) -> None:
    starts, clock = [], 0.0
    for length, _ in steps:
        starts.append(clock)
        clock += length
    way = Direction(tuple(starts), tuple(rate for _, rate in steps), clock)
    first, second = way.finish(t, small), way.finish(t, small + more)
    assert t <= first <= second + 1e-6
    assert math.isfinite(second)
    assert way.finish(first, more) == pytest.approx(second, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("shape", ["wifi", "lte", "3g"])
def test_made_traces_are_seeded_and_look_like_their_kind(shape: str) -> None:
    trace, same, other = synthetic(shape, 3), synthetic(shape, 3), synthetic(shape, 4)
    assert trace == same
    assert trace.up.bit_s != other.up.bit_s
    rates = trace.up.bit_s
    mean = sum(rates) / len(rates)
    low, high = {"wifi": (20e6, 60e6), "lte": (3e6, 10e6), "3g": (0.2e6, 0.8e6)}[shape]
    assert low < mean < high
    # One step tells much of the next (autocorrelation), little of the one a minute on.
    near = sum((a - mean) * (b - mean) for a, b in pairwise(rates))
    own = sum((a - mean) ** 2 for a in rates)
    assert near / own > 0.6
    assert all(0 < rtt < 1 for rtt in trace.rtt_s)
    assert max(rates) > 1.2 * min(rates)


def test_a_bursty_link_carries_lumps_and_stops_for_a_while() -> None:
    trace = bursty(3)
    assert trace == parse_trace("bursty:3") and trace.up.bit_s != bursty(4).up.bit_s
    packet = 1500 * 8 / 0.02
    assert all(rate == pytest.approx(round(rate / packet) * packet) for rate in trace.up.bit_s)
    mean = sum(trace.up.bit_s) / len(trace.up.bit_s)
    assert max(trace.up.bit_s) > 2 * mean
    # Longer without a packet than chance would have it at its mean rate: (1 - e^-packets)^25 in half a second.
    assert any(not any(trace.up.bit_s[at : at + 25]) for at in range(len(trace.up.bit_s) - 25))


def test_kinds_are_ordered() -> None:
    wifi, lte, threeg = (synthetic(kind, 1) for kind in ("wifi", "lte", "3g"))
    assert wifi.up.total > lte.up.total > threeg.up.total
    assert max(wifi.rtt_s) < min(threeg.rtt_s)


def test_mahimahi_counts_packets(tmp_path: Path) -> None:
    file = tmp_path / "some.up"
    file.write_text("100\n100\n105\n150\n")
    trace = read_mahimahi(file, rtt_s=0.03, bin_s=0.01)
    assert trace.up.total == pytest.approx(4 * 1500 * 8)
    assert trace.up.at(0.0) == pytest.approx(3 * 12000 / 0.01)
    assert trace.up.at(0.02) == 0
    assert trace.rtt_at(1) == 0.03
    assert parse_trace(str(file)).down == parse_trace(str(file)).up


def test_sabre_steps(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    steps = [(500, 1000, 20), (1000, 0, 30)]
    file.write_text(json.dumps([{"duration_ms": d, "bandwidth_kbps": b, "latency_ms": t} for d, b, t in steps]))
    trace = read_sabre(file, up_share=0.5)
    assert trace.down.at(0.1) == 1e6
    assert trace.up.at(0.1) == 0.5e6
    assert trace.rtt_at(1.0) == pytest.approx(0.06)
    assert trace.length_s == pytest.approx(1.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1\n2\nx",
        "5\n3",
        "[]",
        '[{"duration_ms": "x"}]',
        "{}",
        "null",
        '[{"duration_ms":1,"bandwidth_kbps":NaN,"latency_ms":1}]',
        "\ufffd",
    ],
)
@pytest.mark.parametrize("suffix", [".up", ".json"])
def test_what_is_not_a_trace_is_refused(tmp_path: Path, text: str, suffix: str) -> None:
    file = tmp_path / f"bad{suffix}"
    file.write_text(text)
    with pytest.raises(Invalid):
        parse_trace(str(file))


@pytest.mark.parametrize("text", ["", "5g", "lte:x", "gone.up", "gone.json", "6 Mbit 48 ms", "6 Mbit/s 48"])
def test_an_unknown_name_says_what_there_is(text: str) -> None:
    with pytest.raises(MarramError):
        parse_trace(text)


def test_rates_as_people_write_them() -> None:
    trace = parse_trace("6 Mbit/s 48 ms")
    assert (trace.up.at(0), trace.rtt_at(0)) == (6e6, 0.048)
    with pytest.raises(Invalid, match="outage"):
        constant(0, 0.01)
    with pytest.raises(Missing):
        synthetic("5g")


def test_recorded_traces_are_read(shared_data: Path) -> None:
    links = shared_data / "links"
    lte = read_mahimahi(links / "mahimahi" / "ATT-LTE-driving.up")
    assert 0.5e6 < lte.up.total / lte.up.length_s < 20e6
    for file in sorted((links / "sabre" / "4Glogs").glob("*.json")):
        trace = read_sabre(file)
        assert trace.down.finish(0.0, 100_000) > 0
