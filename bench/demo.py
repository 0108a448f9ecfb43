"""The demo as a benchmark: nothing lost or doubled, answers through the outage, each device near its better place.

`python -m bench.demo`. `ratio` is the better of always-edge and always-cloud over the device's median delay (as audit
blocks measured both in the same run), of the worst device: placement is good from 1 ÷ 1.10 on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench._verdict import conclude
from marram.lab.demo import Demo, Options
from marram.lab.demo_report import nothing_lost, silent
from marram.lab.demo_view import View

GOAL_P50_RATIO = 1.10
GOAL = round(1 / GOAL_P50_RATIO, 3)


def main() -> None:
    """Run the demo, print its figures and whether the goals are reached."""
    with tempfile.TemporaryDirectory(prefix="marram-bench-") as folder:
        figures = Demo(Options(folder=Path(folder) / "demo"), View(no_color=True)).run()
    ratio, goal, told, kept = judged(figures)
    conclude("demo", ratio, goal, told, also=kept)


def judged(figures: dict[str, Any]) -> tuple[float | None, float, dict[str, Any], bool]:
    """Ratio, goal, figures and the other promises, from the demo's figures."""
    devices = figures["devices"]
    ratios = [device["p50_ratio"] for device in devices]
    worst = None if None in ratios else max(ratios)
    return (
        None if worst is None else 1 / worst,
        GOAL,
        {
            "p50_over_better": {device["name"]: device["p50_ratio"] for device in devices},
            "goal_p50_over_better": GOAL_P50_RATIO,
            "events_recorded": figures["events_recorded"],
            "events_lost": figures["events_lost"],
            "events_duplicated": figures["events_duplicated"],
            "results_during_outage": {device["name"]: device["results_during_outage"] for device in devices},
            "outage_s": figures["outage_s"],
            "setup_s": figures["setup_s"],
        },
        nothing_lost(figures) and not silent(figures),
    )


if __name__ == "__main__":
    main()
