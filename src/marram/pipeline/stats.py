"""What a pipeline counts and times of itself: the figures that the console, `marram top` and the demo show.

Constant in memory for weeks of frames (log-spaced buckets, not lists), microseconds a frame, safe from any thread.

| key | meaning |
|---|---|
| `frames` | frames that went through every step (a `filter` that held one back included) |
| `fps` | the same, per second, over the last 10 s |
| `edge`, `cloud` | inferences answered there by the policy's choice (audit blocks not counted) |
| `dropped` | frames the policy gave up, and those in work when the app was stopped |
| `skipped` | live frames replaced by a newer one before they were taken |
| `errors`, `last_error` | inputs or frames stepped over because something failed, and the last such message |
| `p50_ms`, `p95_ms` | delay from capture to result (policy's choices) since the start; without models: of all frames |
| `delays` | how many delays those are quantiles of |
| `recent_p50_ms` | the same over the last 10 s |
| `always_edge_p50_ms`, `always_cloud_p50_ms` | delay in audit blocks, None where there were none |
| `audit_edge_frames`, `audit_cloud_frames` | frames in those blocks |
| `split` | of `cloud`, those whose front ran here |
| `peers` | of `cloud`, those that another device answered (`peers: yes`) |
| `guests` | inferences answered here for other devices; none of the figures above counts them |
| `late` | of `dropped`, those that could not have been on time at the edge any more |
| `hedged` | requests for which the edge started too, because the reply threatened to be late |
| `unusable` | replies that are no answer (numbers that are none, another task), so the edge answered |
| `timeouts` | cloud answers that did not come in time, so the edge answered |
| `link_rate_bit_s`, `link_rtt_ms`, `link_up` | the link as the policy sees it, None without a cloud |
| `answered_while_away` | frames answered while the link or the cloud was away |
| `confidence_mean`, `confidence_frames` | how sure the device's own model is, see `Stats.sure`; over how many answers |
| `shadow_frames` | inputs on which the version before was asked too (`pipeline/shadow.py`) |
| `shadow_disagreements` | those of them on which it answers another thing |
| `shadow_skipped` | why it is not asked, "" where it is |
| `escalated` | edge answers that were not sure enough, so the cloud was asked (`cascade:`) |
| `checked` | accepted edge answers that the cloud was asked about in the background, and answered |
| `disagreed` | escalated and checked answers for which the cloud had another |
| `cuts` | whether the cloud's model is parted here, or why not: words; absent where it has no cuts |
| `unverified` | edge answers that stood although unsure, or of unknown worth: the cloud did not answer, or is away |
| `cascade` | what the cascade accepts now, and why; absent where there is none |
| `samples`, `alerts` | samples kept, alerts raised (not their end) |
| `over_budget` | samples not kept because the budget of their `keep` step was spent |
| `repeated` | pictures not kept because the very same one was kept before |
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from marram.pipeline.contract import Outlet, Placed, Source
from marram.schema.event import Event, EventKind
from marram.schema.model import Task
from marram.schema.result import Place, Result

RECENT_S = 10
COUNTED = (
    "frames", "edge", "cloud", "dropped", "skipped", "errors", "audit_edge_frames", "audit_cloud_frames", "timeouts",
    "answered_while_away", "samples", "alerts", "over_budget", "confidence_frames", "shadow_frames",
    "shadow_disagreements", "delays", "repeated", "escalated", "checked", "disagreed", "unverified",
    "split", "peers", "guests", "late", "hedged", "unusable",
)  # fmt: skip


class Delays:
    """Quantiles of delays in constant memory: buckets 1 % apart from 10 µs to 1000 s, so a quantile is within 0.5 %."""

    _LOWEST_S = 1e-5
    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self.count = 0
        self._buckets: dict[int, int] = {}

    def add(self, delay_s: float) -> None:
        bucket = int(math.log(min(max(delay_s, self._LOWEST_S), 1e3) / self._LOWEST_S) / self._STEP)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def quantile_ms(self, share: float) -> float | None:
        """The delay that `share` (0–1) of all stay within; None before the first."""
        rank, seen = share * (self.count - 1), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > rank:
                return round(self._LOWEST_S * math.exp((bucket + 0.5) * self._STEP) * 1e3, 3)
        return None


class Stats:
    """One pipeline's counters and delays; implements `contract.Counters`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTED, 0)
        self._last_error = ""
        self._confidence, self._shadow_skipped = 0.0, ""
        self._chosen, self._edge_block, self._cloud_block = Delays(), Delays(), Delays()
        self._recent: deque[tuple[float, float]] = deque(maxlen=1024)
        # Frames in each of the last seconds: [second, count], oldest first.
        self._seconds: deque[list[int]] = deque(maxlen=RECENT_S + 1)
        self._started_s: float | None = None
        self._told: list[tuple[str, Callable[[], str]]] = []

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter of the table above. Raises KeyError where there is no such counter."""
        with self._lock:
            self._counts[name] += by

    def error(self, message: str) -> None:
        """Count something that failed and was stepped over."""
        with self._lock:
            self._counts["errors"] += 1
            self._last_error = message

    def sure(self, result: Result) -> None:
        """This device's own model answered; how sure it is counts, where its task has such a thing.

        Of a classification the first label's confidence, of a detection the mean over its boxes (a picture without any
        says nothing); values and scores have none. The cloud's answers are another model's, and are left out.
        """
        found = [each.confidence for each in result.detections] if result.task is Task.DETECTION else []
        if not found and result.task is Task.CLASSIFICATION and result.confidence is not None:
            found = [result.confidence]
        if found:
            with self._lock:
                self._counts["confidence_frames"] += 1
                self._confidence += sum(found) / len(found)

    def skip_shadow(self, reason: str) -> None:
        """The version before is not asked, and why."""
        with self._lock:
            self._shadow_skipped = reason[:300]

    def tell(self, name: str, words: Callable[[], str]) -> None:
        """Have `words` asked each time the figures are read; where it is told twice (two steps), both are there."""
        with self._lock:
            self._told.append((name, words))

    def frame(self, delay_s: float | None = None) -> None:
        """One frame went through every step; `delay_s` after its capture, where no model's answer is what is timed."""
        now_s = self._clock()
        with self._lock:
            self._counts["frames"] += 1
            if self._started_s is None:
                self._started_s = now_s
            second = int(now_s)
            if self._seconds and self._seconds[-1][0] == second:
                self._seconds[-1][1] += 1
            else:
                self._seconds.append([second, 1])
            if delay_s is not None:
                self._delay(delay_s)

    def placed(self, placed: Placed, *, away: bool) -> None:
        """One inference was answered; `away`: while the link or the cloud was away."""
        at_edge = placed.place is Place.EDGE
        with self._lock:
            if away:
                self._counts["answered_while_away"] += 1
            if placed.audit:
                # A cloud block's frame that fell back to the edge still shows what always-cloud would have cost.
                in_edge_block = at_edge and not placed.fallback
                self._counts["audit_edge_frames" if in_edge_block else "audit_cloud_frames"] += 1
                (self._edge_block if in_edge_block else self._cloud_block).add(placed.latency_s)
                return
            self._counts["edge" if at_edge else "cloud"] += 1
            self._counts["split"] += placed.place is Place.SPLIT
            self._counts["peers"] += placed.place is Place.PEER
            self._delay(placed.latency_s)

    def read(self, source: Source | None = None) -> dict[str, Any]:
        """The table but for the link, plain JSON types; `source` adds what it skipped and stepped over."""
        now_s = self._clock()
        with self._lock:
            recent = sorted(delay for at, delay in self._recent if now_s - at <= RECENT_S)
            figures: dict[str, Any] = dict(self._counts)
            figures |= {
                "fps": self._fps(now_s),
                "last_error": self._last_error,
                "confidence_mean": self._mean_confidence(),
                "shadow_skipped": self._shadow_skipped,
                "p50_ms": self._chosen.quantile_ms(0.50),
                "p95_ms": self._chosen.quantile_ms(0.95),
                "recent_p50_ms": round(recent[len(recent) // 2] * 1e3, 3) if recent else None,
                "always_edge_p50_ms": self._edge_block.quantile_ms(0.50),
                "always_cloud_p50_ms": self._cloud_block.quantile_ms(0.50),
            }
            told = list(self._told)
        for name, words in told:
            figures[name] = "; ".join(filter(None, (figures.get(name), words())))
        if source is not None:
            figures["skipped"] += source.skipped
            figures["errors"] += source.errors
            figures["last_error"] = figures["last_error"] or source.last_error
        return figures

    def _delay(self, delay_s: float) -> None:
        self._counts["delays"] += 1
        self._chosen.add(delay_s)
        self._recent.append((self._clock(), delay_s))

    def _mean_confidence(self) -> float | None:
        frames = self._counts["confidence_frames"]
        return round(self._confidence / frames, 5) if frames else None

    def _fps(self, now_s: float) -> float:
        """Frames per second over the last 10 s, or since the first frame where that is less ago."""
        if self._started_s is None:
            return 0.0
        span_s = min(RECENT_S, max(now_s - self._started_s, 0.1))
        return round(sum(n for second, n in self._seconds if now_s - second <= RECENT_S) / span_s, 2)


class CountingOutlet:
    """Passes events on and counts alerts and samples; holds alerts back where the app sends nothing."""

    def __init__(self, outlet: Outlet, stats: Stats, *, alerts: bool) -> None:
        self._outlet, self._stats, self._alerts = outlet, stats, alerts

    def emit(self, event: Event) -> None:
        """Record one event; see `contract.Outlet`."""
        if event.kind is EventKind.ALERT:
            if event.data.get("state") != "recovered":
                self._stats.count("alerts")
            if not self._alerts:
                return
        elif event.kind is EventKind.SAMPLE:
            self._stats.count("samples")
        self._outlet.emit(event)
