"""The figures: quantiles within half a percent, each frame counted where it belongs."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.pipeline.build import NoOutlet
from marram.pipeline.contract import Placed
from marram.pipeline.stats import CountingOutlet, Delays, Stats
from marram.schema.event import Event, EventKind
from marram.schema.result import Place

KEYS = {
    "frames", "fps", "edge", "cloud", "dropped", "skipped", "errors", "last_error", "p50_ms", "p95_ms", "recent_p50_ms",
    "always_edge_p50_ms", "always_cloud_p50_ms", "audit_edge_frames", "audit_cloud_frames", "timeouts",
    "answered_while_away", "delays", "samples", "alerts",
}  # fmt: skip


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_quantiles_are_within_a_percent(delays_s: list[float], share: float) -> None:
    delays = Delays()
    for delay_s in delays_s:
        delays.add(delay_s)
    exact_ms = sorted(delays_s)[math.floor(share * (len(delays_s) - 1))] * 1e3
    assert delays.quantile_ms(share) == pytest.approx(exact_ms, rel=0.011, abs=1e-3)


def test_no_delay_is_no_quantile_and_odd_ones_do_no_harm() -> None:
    delays = Delays()
    assert delays.quantile_ms(0.5) is None
    for odd in (-1.0, 0.0, 1e9):
        delays.add(odd)
    assert delays.count == 3


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_frames_per_second_are_those_of_the_last_ten() -> None:
    clock = Clock()
    stats = Stats(clock)
    assert stats.read()["fps"] == 0
    for _ in range(200):
        stats.frame()
        clock.now_s += 0.1
    assert stats.read()["fps"] == pytest.approx(10, rel=0.15)
    clock.now_s += 30
    assert stats.read()["fps"] == 0
    assert stats.read()["frames"] == 200


def test_recent_delays_are_forgotten_and_all_are_not() -> None:
    clock = Clock()
    stats = Stats(clock)
    stats.placed(Placed(Place.EDGE, 0.5), away=False)
    clock.now_s += 11
    stats.placed(Placed(Place.CLOUD, 0.1), away=True)
    figures = stats.read()
    assert figures["recent_p50_ms"] == 100
    assert figures["p95_ms"] == pytest.approx(100, rel=0.01)
    assert (figures["edge"], figures["cloud"], figures["answered_while_away"]) == (1, 1, 1)
    clock.now_s += 11
    assert stats.read()["recent_p50_ms"] is None


def test_frames_without_a_model_have_delays_and_no_place() -> None:
    clock = Clock()
    stats = Stats(clock)
    for _ in range(20):
        stats.frame(0.04)
    figures = stats.read()
    assert (figures["delays"], figures["edge"], figures["cloud"]) == (20, 0, 0)
    assert figures["p95_ms"] == pytest.approx(40, rel=0.01) and figures["recent_p50_ms"] == 40


def test_audits_count_apart_and_a_fallback_counts_for_the_cloud() -> None:
    stats = Stats()
    stats.placed(Placed(Place.EDGE, 0.2, audit=True), away=False)
    stats.placed(Placed(Place.CLOUD, 0.4, audit=True), away=False)
    stats.placed(Placed(Place.EDGE, 3.0, audit=True, fallback=True), away=False)
    figures = stats.read()
    assert (figures["audit_edge_frames"], figures["audit_cloud_frames"]) == (1, 2)
    assert (figures["edge"], figures["cloud"], figures["delays"], figures["p50_ms"]) == (0, 0, 0, None)
    assert figures["always_edge_p50_ms"] == pytest.approx(200, rel=0.01)


def test_every_key_is_there_and_plain_json() -> None:
    figures = Stats().read()
    assert figures.keys() >= KEYS
    assert json.loads(json.dumps(figures)) == figures


def test_a_counter_that_is_none_is_a_fault() -> None:
    with pytest.raises(KeyError):
        Stats().count("framse")


@pytest.mark.parametrize(("alerts", "passed"), [(True, 2), (False, 1)])
def test_alerts_and_samples_are_counted_on_their_way(alerts: bool, passed: int) -> None:
    class Outlet(NoOutlet):
        events: list[Event] = []

        def emit(self, event: Event) -> None:
            self.events.append(event)

    stats, outlet = Stats(), Outlet()
    outlet.events = []
    counting = CountingOutlet(outlet, stats, alerts=alerts)
    counting.emit(Event(EventKind.ALERT, "a", 0.0))
    counting.emit(Event(EventKind.SAMPLE, "a", 0.0))
    assert (stats.read()["alerts"], stats.read()["samples"], len(outlet.events)) == (1, 1, passed)


def test_words_are_asked_when_the_figures_are_read() -> None:
    stats, said = Stats(), ["learning"]
    assert "cascade" not in stats.read()
    stats.tell("cascade", lambda: said[0])
    stats.tell("cascade", lambda: "the second step's")
    said[0] = "accepts all"
    assert stats.read()["cascade"] == "accepts all; the second step's"
