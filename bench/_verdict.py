"""How every benchmark ends, so that `make bench` can read them alike; see docs/benchmarks.md. No benchmark itself.

The last line is JSON with `bench`, `ratio`, `goal`, `ok` and the figures. A ratio of `goal` or more is good, whatever
is measured. The exit status says that it ran, not how it went: a slow machine is no fault of the code.
"""

from __future__ import annotations

import json
import os
from typing import Any

# Beyond so many runnable tasks a core, a figure says more about the machine's other work than about ours.
BUSY_TASKS_A_CORE = 2.0


def conclude(
    bench: str, ratio: float | None, goal: float, figures: dict[str, Any], *, also: bool | None = True
) -> None:
    """Print the last line. `also`: whether the goals beside the ratio (named in `figures`) are reached.

    `ratio` None: nothing was to be compared, which is no success. `also` None: the ratio is not all that counts, and of
    the rest something could not be measured here (`figures["skipped"]`): `ok` is null where the ratio is reached.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > BUSY_TASKS_A_CORE:
        print(f"other programs keep this machine busy ({load:.1f} tasks a core): these figures are theirs too")
    head = {
        "bench": bench,
        "ratio": None if ratio is None else round(ratio, 3),
        "goal": goal,
        "ok": also if ratio is not None and ratio >= goal else False,
    }
    print(json.dumps(head | figures | {"tasks_a_core": round(load, 1)}), flush=True)


def skip(bench: str, goal: float, why: str) -> None:
    """Print the last line of a benchmark that lacks what it measures with: `ok` is null."""
    print(f"{bench} is skipped: {why}")
    print(json.dumps({"bench": bench, "ratio": None, "goal": goal, "ok": None, "skipped": why}), flush=True)


def at_least(**measured: tuple[float, float]) -> float:
    """`name=(measured, goal)`, each at most its goal: the worst of goal ÷ measured, 1 or more where all are reached."""
    return min(goal / max(value, 1e-12) for value, goal in measured.values())
