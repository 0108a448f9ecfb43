"""The cloud's figures for Prometheus, gathered from the state when asked: nothing is counted or kept here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from marram.cloud.api.contract import State
from marram.schema.device import Device, DeviceState
from marram.schema.figures import figure

# A device's stats key -> metric name, unit factor, help. Counters end in _total by Prometheus' rule.
_GAUGES: dict[str, tuple[str, float, str]] = {
    "fps": ("marram_app_frames_per_second", 1.0, "Frames answered a second, last 10 s."),
    "p50_ms": ("marram_app_latency_p50_seconds", 1e-3, "Median delay from capture to result."),
    "p95_ms": ("marram_app_latency_p95_seconds", 1e-3, "95th percentile of the delay from capture to result."),
    "link_rate_bit_s": ("marram_app_link_rate_bits_per_second", 1.0, "The link upwards, as placement sees it."),
    "link_rtt_ms": ("marram_app_link_rtt_seconds", 1e-3, "The link's round trip, as placement sees it."),
}
_COUNTERS: dict[str, tuple[str, str]] = {
    "frames": ("marram_app_frames", "Frames answered since the worker started."),
    "edge": ("marram_app_edge_frames", "Frames placed at the edge."),
    "cloud": ("marram_app_cloud_frames", "Frames placed in the cloud."),
    "dropped": ("marram_app_dropped_frames", "Frames placement dropped."),
    "skipped": ("marram_app_skipped_frames", "Live frames replaced by a newer one before they were taken."),
    "errors": ("marram_app_errors", "Inputs and steps that failed."),
    "timeouts": ("marram_app_cloud_timeouts", "Inferences the cloud did not answer in time."),
}


class _Fleet(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        devices = self._state.devices()
        totals = self._state.totals()
        yield from _devices(devices)
        yield from _apps(devices)
        stored = CounterMetricFamily("marram_events_stored", "Events stored.", labels=["kind"])
        for kind, number in sorted(totals.by_kind.items()):
            stored.add_metric([kind], number)
        yield stored
        yield CounterMetricFamily(
            "marram_events_redelivered", "Events recognised as stored already.", value=totals.duplicates_seen
        )
        health = GaugeMetricFamily("marram_check", "1 where a part of the cloud works.", labels=["check"])
        for check in self._state.checks():
            health.add_metric([check.name], float(check.ok))
        yield health


def _devices(devices: list[Device]) -> Iterator[Metric]:
    states = GaugeMetricFamily("marram_devices", "Devices by state.", labels=["state"])
    for state in DeviceState:
        states.add_metric([state.value], sum(d.state is state for d in devices))
    yield states
    outbox = GaugeMetricFamily("marram_outbox_events", "Events waiting on a device.", labels=["device"])
    size = GaugeMetricFamily("marram_outbox_bytes", "Bytes waiting on a device.", labels=["device"])
    seen = GaugeMetricFamily("marram_device_seen_timestamp_seconds", "When the cloud last heard it.", labels=["device"])
    for device in devices:
        if device.reported:
            outbox.add_metric([device.id], device.reported.outbox_depth)
            size.add_metric([device.id], device.reported.outbox_bytes)
        if device.seen_s is not None:
            seen.add_metric([device.id], device.seen_s)
    yield from (outbox, size, seen)


def _apps(devices: list[Device]) -> Iterator[Metric]:
    apps = [(d.id, a) for d in devices if d.reported for a in d.reported.apps]
    for key, (name, factor, text) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=["device", "app"])
        for device, app in apps:
            if (value := figure(app.stats.get(key))) is not None:
                gauge.add_metric([device, app.name], value * factor)
        yield gauge
    for key, (name, text) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["device", "app"])
        for device, app in apps:
            if (value := figure(app.stats.get(key))) is not None:
                counter.add_metric([device, app.name], value)
        yield counter


def exposition(state: State) -> tuple[bytes, str]:
    """The text and its media type. Raises what the state raises (a database that is away)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fleet(state))
    return generate_latest(registry), CONTENT_TYPE_LATEST
