"""Figures from afar: what a device reports or sends in an event may be anything; only sane numbers are figures."""

from __future__ import annotations

from typing import Any


def figure(value: object) -> float | None:
    """`value` as a float; None where it is no number, not finite, or beyond 1e15."""
    sane = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return float(value) if sane else None  # type: ignore[arg-type]


def figure_of(stats: dict[str, Any], key: str) -> float | None:
    """The figure `key` of a report's stats or an event's data."""
    return figure(stats.get(key))
