"""The health gate: whether a version on trial has shown enough to be committed. Pure: figures in, a verdict out.

Crash, hang and memory end a worker and need no gate; this one judges what a running one shows of itself (the figures
of `pipeline/stats.py`). It never commits what fails more of its frames than its app file allows, however many results
there are between; a source that is only quiet is no fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from marram.schema.health import Health
from marram.schema.units import format_duration

# A share of failed frames says little of fewer frames than this, and a 95th percentile of fewer results than that:
# until `quiet` is over the trial goes on.
FEWEST_FRAMES = 5
FEWEST_DELAYS = 20
# What a frame may take, or the trial where that is longer, before we wait for its end.
BUSY_S = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`passed`, or why not; the figures and limits that decided, for the journal."""

    passed: bool
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a worker shows of itself. `fresh`: since the last look. `ended`: its source came to its end."""

    stats: dict[str, Any]
    busy_s: float = 0.0  # at work on its present frame
    memory_bytes: int = 0
    fresh: bool = True
    ended: bool = False


class Gate:
    """One trial, from the moment the app runs (`running_s`, seconds on the caller's clock)."""

    def __init__(self, health: Health, running_s: float) -> None:
        self._health = health
        self._running_s = running_s
        self._first_s: float | None = None

    def look(self, figures: Figures, now_s: float) -> Verdict | None:
        """The verdict at `now_s`; None while the trial goes on.

        A source that ended without a single frame passes: it may have been read before a restart.
        """
        stats, ended = figures.stats, figures.ended
        health = self._health
        frames, errors = _count(stats, "frames"), _count(stats, "errors")
        done = frames + errors
        if done and self._first_s is None:
            self._first_s = now_s
        waited = now_s - self._running_s >= health.quiet
        if not ended and not self._enough(figures, now_s, done, errors, waited=waited):
            return None
        evidence = self._evidence(stats, now_s, figures.memory_bytes)
        share = errors / done if done else 0.0
        if share > health.errors:
            last = str(stats.get("last_error", ""))
            if frames == 0:
                return Verdict(False, f"every frame failed: {last}", evidence)
            limit = f"{share:.0%} of its frames failed (at most {health.errors:.0%}); last: {last}"
            return Verdict(False, limit, evidence)
        if health.p95 is not None and _slow(stats, health.p95):
            words = f"p95 {stats['p95_ms']:.0f} ms broke the gate ({health.p95 * 1e3:g} ms)"
            return Verdict(False, words, evidence)
        quiet = "" if done or ended else f"it said nothing for {format_duration(health.quiet)}, and was taken as it is"
        return Verdict(True, quiet, evidence | {"passed": True})

    def _enough(self, figures: Figures, now_s: float, done: int, errors: int, *, waited: bool) -> bool:
        """Whether it is time to judge what still runs."""
        health, stats = self._health, figures.stats
        # Long at work on one frame: either it hangs, and the supervisor ends it, or there will be more to judge by.
        if figures.busy_s > max(health.trial, BUSY_S):
            return False
        if self._first_s is None:
            return waited
        # Figures of before the trial's end say nothing of its end.
        if now_s - self._first_s < health.trial or not figures.fresh:
            return False
        if waited:
            return True
        slow = health.p95 is not None and _slow(stats, health.p95)
        return not (errors and done < FEWEST_FRAMES) and not (slow and _count(stats, "delays") < FEWEST_DELAYS)

    def _evidence(self, stats: dict[str, Any], now_s: float, memory_bytes: int) -> dict[str, Any]:
        first_s = now_s if self._first_s is None else self._first_s
        found: dict[str, Any] = {
            "passed": False,
            "frames": _count(stats, "frames"),
            "errors": _count(stats, "errors"),
            "errors_limit": self._health.errors,
            "p95_ms": stats.get("p95_ms"),
            "trial_s": round(now_s - first_s, 3),
            "waited_s": round(now_s - self._running_s, 3),
        }
        if self._health.p95 is not None:
            found["p95_limit_ms"] = self._health.p95 * 1e3
        if memory_bytes:
            found["memory_bytes"] = memory_bytes
        return found


def _count(stats: dict[str, Any], *names: str) -> int:
    """The sum of these counters; a worker may say anything of itself."""
    values = (stats.get(name) for name in names)
    return sum(value for value in values if isinstance(value, int) and value > 0)


def _slow(stats: dict[str, Any], limit_s: float) -> bool:
    p95_ms = stats.get("p95_ms")
    return isinstance(p95_ms, (int, float)) and p95_ms > limit_s * 1e3
