"""All benchmarks, one after another, each in a process of its own, and a summary. `python -m bench`, or `make bench`.

The exit status is 0 where each of them ran to its end, whatever its figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

NAMES = (
    "pipeline",
    "footprint",
    "outbox",
    "placement",
    "oracle",
    "balance",
    "cascade",
    "deploy",
    "serving",
    "swap",
    "demo",
)


def run(name: str) -> dict[str, Any] | None:
    """Run one, its words shown as they come; what its last line says, None where it failed."""
    command = [sys.executable, "-m", f"bench.{name}"]
    line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode != 0:
        return None
    told: dict[str, Any] = json.loads(line)
    return told


def main() -> int:
    """Run those named on the command line, all by default."""
    told: dict[str, dict[str, Any] | None] = {}
    for name in sys.argv[1:] or NAMES:
        print(f"== {name}", flush=True)
        told[name] = run(name)
    print()
    for name, figures in told.items():
        print(summary(name, figures))
    return 1 if None in told.values() else 0


def summary(name: str, figures: dict[str, Any] | None) -> str:
    """`pipeline    1.83 (goal 1.6)   reached`."""
    if figures is None:
        return f"{name:<11} failed"
    if figures["ok"] is None and figures["ratio"] is None:
        return f"{name:<11} skipped: {figures['skipped']}"
    if figures["ok"] is None:
        return f"{name:<11} {figures['ratio']:g} (goal {figures['goal']:g})   reached, but {figures['skipped']}"
    ratio = "-" if figures["ratio"] is None else f"{figures['ratio']:g}"
    return f"{name:<11} {ratio} (goal {figures['goal']:g})   {'reached' if figures['ok'] else 'missed'}"


if __name__ == "__main__":
    sys.exit(main())
