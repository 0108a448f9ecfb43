"""`bench.oracle --live`: the shipped policy in real processes, beside itself in the simulation of that very run.

No benchmark itself; see `bench.oracle`, docs/benchmarks.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from bench._verdict import conclude, skip
from marram.lab.oracle.live import Asked, run
from marram.lab.oracle.play import play
from marram.lab.oracle.record import Offered, Record, in_order, latencies_s, streams_of
from marram.lab.oracle.schedule import best_loss_s
from marram.lab.oracle.stream import SETTINGS, Setting
from marram.lab.oracle.work import make_model, work_s
from marram.lab.traces import parse_trace
from marram.placement.policy import LatencyPolicy
from marram.runtime.bundle import Bundle
from marram.schema.result import Place

# The first of each kind by name, chosen before any was run.
TRACES = (
    "mahimahi/ATT-LTE-driving.up",
    "mahimahi/TMobile-UMTS-driving.up",
    "sabre/3Glogs/report.2010-09-13_1003CEST.json",
)
GOAL = 0.05
_FRAMES, _WARM = 250, 25
# The simulated policy's luck is evened out: it plays with the link so much later or earlier too, each time against the
# best of that. The first is the run itself.
_SHIFTS_S = (0.0, -0.02, -0.01, 0.01, 0.02)
# Beyond these the machine is what was measured, not the placement: the share of the time in which anything on it waited
# for a processor, how much later than asked a thread wakes (95th percentile), and the edge's 95th percentile over its
# median, where nothing but the machine varies; and how much longer the edge takes than when its model was timed.
_WAITED, _LATE_S, _UNEVEN, _SLOW = 0.25, 0.010, 1.35, 1.1


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Regrets as shares of the best loss; `busy`: why the machine was too busy for them to count."""

    trace: str
    best_ms: float
    released: float
    answered: float
    simulations: tuple[float, ...]
    simulated_in_order: float
    edge_ms: float
    cloud_ms: float
    missed: float
    simulated_missed: float
    busy: str

    @property
    def simulated(self) -> float:
        """The mean."""
        return mean(self.simulations)

    @property
    def gap(self) -> float:
        """What is held against the goal: what an app sees, against the simulation's."""
        return self.released - self.simulated


def judge(trace: Path, setting: Setting, record: Record, offered: Offered) -> Figures:
    """Regrets of what happened, and of the policy simulated under the same conditions."""
    up = parse_trace(str(trace)).up

    def regret(latencies: Sequence[float], best_s: float) -> float:
        return sum(map(setting.loss_s, latencies)) / best_s - 1

    plays = []
    for shift_s in _SHIFTS_S:
        shifted = replace(offered, link_began_s=offered.link_began_s + shift_s)
        lived, counted = streams_of(trace.stem, setting, up, record, shifted)
        plays.append((best_loss_s(counted), play(lived, LatencyPolicy()).latencies_s))
    simulated = [regret(late[offered.warm :], best_s) for best_s, late in plays]
    ordered = [regret(in_order(late, setting.fps)[offered.warm :], best_s) for best_s, late in plays]
    missed = [late_s > setting.deadline_s for _, late in plays for late_s in late[offered.warm :]]
    best_s = plays[0][0]
    released = latencies_s(record, offered, released=True)
    frames = len(released)
    return Figures(
        trace.name,
        1000 * best_s / frames,
        regret(released, best_s),
        regret(latencies_s(record, offered, released=False), best_s),
        tuple(simulated),
        mean(ordered),
        1000 * counted.setting.edge_s,
        1000 * counted.setting.cloud_s,
        sum(late > setting.deadline_s for late in released) / frames,
        sum(missed) / len(missed),
        too_busy(setting, record, offered),
    )


def too_busy(setting: Setting, record: Record, offered: Offered) -> str:
    """Why the machine was too busy for the figures to count; "" where it was not."""
    if offered.waited_share is not None and offered.waited_share > _WAITED:
        return f"somebody waited for a processor {offered.waited_share:.0%} of the time"
    first_s = offered.offered_s[0]
    late_s = _high(at_s - first_s - number / setting.fps for number, at_s in enumerate(offered.offered_s))
    if late_s > _LATE_S:
        return f"threads woke up {1000 * late_s:.0f} ms late"
    edge = sorted(took_s for _, took_s in record.edge) or [0.0]
    usual_s, high_s = edge[len(edge) // 2], _high(edge)
    if usual_s > _SLOW * setting.edge_s:
        return f"an inference at the edge took {1000 * usual_s:.0f} ms instead of {1000 * setting.edge_s:.0f}"
    if high_s > _UNEVEN * usual_s:
        return f"the same inference took {1000 * high_s:.0f} ms instead of {1000 * usual_s:.0f}"
    return ""


def _high(values: Iterable[float]) -> float:
    """The 95th percentile."""
    ordered = sorted(values)
    return ordered[int(0.95 * len(ordered))]


def live(links: Path, frames: int = _FRAMES) -> None:
    """The three traces one after another, and the verdict."""
    if not links.is_dir():
        skip("oracle-live", 1.0, f"no recordings under {links.name}")
        return
    setting = replace(SETTINGS[0], frames=frames)
    with tempfile.TemporaryDirectory(prefix="marram-oracle-") as made:
        folder = Path(made)
        bundle = make_model(folder / "model", setting.payload_bytes)
        results = [_one(folder / f"run{n}", links / name, setting, bundle) for n, name in enumerate(TRACES)]
    worst = max(each.gap for each in results)
    busy = [f"{each.trace}: {each.busy}" for each in results if each.busy]
    figures = {
        each.trace: {
            "live": round(each.released, 4),
            "live_answered": round(each.answered, 4),
            "simulated": round(each.simulated, 4),
            "simulated_spread": round(max(each.simulations) - min(each.simulations), 4),
            "simulated_in_order": round(each.simulated_in_order, 4),
            "difference": round(each.gap, 4),
        }
        for each in results
    }
    skipped = {"skipped": "the machine was too busy: " + "; ".join(busy)} if busy else {}
    ratio = min(GOAL / max(worst, 1e-9), 100.0)
    conclude("oracle-live", ratio, 1.0, {"traces": figures, "frames": frames} | skipped, also=None if busy else True)


def _one(folder: Path, trace: Path, setting: Setting, bundle: Bundle) -> Figures:
    slowdown = setting.edge_s / work_s(bundle)
    record, offered = run(folder, Asked(setting, trace, bundle, max(1.0, slowdown), _WARM))
    figures = judge(trace, setting, record, offered)
    places = {place: sum(answer.place == place for answer in record.answers) for place in Place}
    low, high = min(figures.simulations), max(figures.simulations)
    print(
        f"{figures.trace}: live regret {figures.released:.1%} (when answered {figures.answered:.1%}), simulated"
        f" {figures.simulated:.1%} ({low:.1%} to {high:.1%}; in order {figures.simulated_in_order:.1%}), difference"
        f" {figures.gap:+.1%}; best {figures.best_ms:.0f} ms a frame; late or lost {figures.missed:.1%}, simulated"
        f" {figures.simulated_missed:.1%}; edge {figures.edge_ms:.0f} ms, replica {figures.cloud_ms:.0f} ms;"
        f" {places[Place.EDGE]} at the edge, {places[Place.CLOUD]} in the cloud of {len(offered.offered_s)}"
        + (f" — too busy: {figures.busy}" if figures.busy else ""),
        flush=True,
    )
    return figures
