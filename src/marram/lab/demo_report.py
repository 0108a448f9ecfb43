"""The demo's figures, from what was stored and what the devices said: nothing here is assumed or rounded into shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from marram.lab.demo_device import Reading
from marram.lab.ledger import Ledger
from marram.schema.api import EventView
from marram.schema.event import EventKind


class Spans(Protocol):
    """The times it needs; see `demo.Times`."""

    setup_s: float
    outage_s: float
    drain_s: float
    cut_unix_s: float
    heal_unix_s: float
    waiting_at_heal: int


def account(ledger: Ledger, readings: Sequence[Reading], times: Spans) -> dict[str, Any]:
    """What `--json` writes. Delays come from every stored result, not from a sample of them."""
    return {
        "devices": [_device(reading, ledger.events[reading.name], times) for reading in readings],
        "events_recorded": ledger.recorded,
        "events_stored": ledger.stored,
        "events_lost": ledger.lost,
        "events_duplicated": ledger.duplicated,
        "events_given_up": ledger.given_up,
        "outage_s": round(times.outage_s, 2),
        "waiting_at_heal": times.waiting_at_heal,
        "drain_s": round(times.drain_s, 2),
        "setup_s": round(times.setup_s, 2),
    }


def _device(reading: Reading, events: Sequence[EventView], times: Spans) -> dict[str, Any]:
    results = [event for event in events if event.kind is EventKind.RESULT]
    placed = [e.data for e in results if not e.data.get("audit")]
    audited = [e.data for e in results if e.data.get("audit")]
    # A frame of a cloud block that fell back to the edge still shows what always-cloud would have cost.
    all_edge = [d for d in audited if d.get("place") == "edge" and not d.get("fallback")]
    all_cloud = [d for d in audited if d.get("place") == "cloud" or d.get("fallback")]
    p50, edge_p50, cloud_p50 = _quantile(placed, 0.5), _quantile(all_edge, 0.5), _quantile(all_cloud, 0.5)
    better = min((p for p in (edge_p50, cloud_p50) if p is not None), default=None)
    return {
        "name": reading.name,
        "frames": len(results),
        "edge": sum(d.get("place") == "edge" for d in placed),
        "cloud": sum(d.get("place") == "cloud" for d in placed),
        "dropped": int(reading.stats.get("dropped", 0)),
        "fallbacks": sum(bool(d.get("fallback")) for d in placed),
        "p50_ms": p50,
        "p95_ms": _quantile(placed, 0.95),
        "always_edge_p50_ms": edge_p50,
        "always_cloud_p50_ms": cloud_p50,
        "p50_ratio": round(p50 / better, 3) if p50 is not None and better else None,
        "audit_edge_frames": len(all_edge),
        "audit_cloud_frames": len(all_cloud),
        # Captured and answered while the links were cut: `time_s` is when the device took the frame.
        "results_during_outage": sum(times.cut_unix_s <= e.time_s < times.heal_unix_s for e in results),
        "errors": int(reading.stats.get("errors", 0)),
    }


def _quantile(results: Sequence[dict[str, Any]], share: float) -> float | None:
    delays = sorted(float(d["latency_ms"]) for d in results if "latency_ms" in d)
    return delays[min(len(delays) - 1, int(share * len(delays)))] if delays else None


def nothing_lost(figures: dict[str, Any]) -> bool:
    """Whether each event recorded is stored, once."""
    return bool(figures["events_lost"] == 0 and figures["events_duplicated"] == 0)


def silent(figures: dict[str, Any]) -> list[str]:
    """The devices that answered nothing while the links were cut."""
    return [device["name"] for device in figures["devices"] if not device["results_during_outage"]]


def verdict(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The last lines, each with its style."""
    away = sum(device["results_during_outage"] for device in figures["devices"])
    outage = f"{figures['outage_s']:.0f} s without links: {away:,} answers all the same"
    without = silent(figures)
    if without:
        outage += f", but none of {', '.join(without)}"
    count = (
        f"recorded {figures['events_recorded']:,} · stored {figures['events_stored']:,} · "
        f"lost {figures['events_lost']:,} · twice {figures['events_duplicated']:,}"
    )
    return [(outage, "red" if without else "green"), (count, "green" if nothing_lost(figures) else "red")]
