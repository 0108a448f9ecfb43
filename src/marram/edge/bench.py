"""`python -m marram.edge.bench PARENT`: times variants of one model as a worker would run them, and says what it found.

It reads one JSON object from stdin (folder, variants, memory limit, seconds) and writes JSON lines to stdout: one when
it is ready, one for each variant as soon as it is measured, so that what is known stays known where a later one takes
this process down. It is bound as a worker is, and lives no longer than the agent that asked.

Each variant is measured in a process of its own, forked from this one before any engine is loaded: what it takes in
memory is what a worker with that variant alone would, whatever was measured before it, and starting up costs once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from marram.edge import _small as _small

# isort: split
from marram.edge.process import be_second, die_with, ended, give_back_memory, resident_bytes
from marram.runtime.bundle import Bundle
from marram.runtime.example import example
from marram.runtime.model import Model
from marram.schema.errors import MarramError

# A median of fewer is none; more make it no better.
LEAST_RUNS, MOST_RUNS = 5, 200


def main(arguments: list[str]) -> int:
    """The exit status."""
    die_with(int(arguments[0]))
    asked = json.loads(sys.stdin.buffer.read())
    words = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print what they like to stdout

    def say(document: dict[str, Any]) -> None:
        words.write(json.dumps(document) + "\n")
        words.flush()

    be_second(asked["memory_bytes"])
    bundle = Bundle.open(Path(asked["folder"]), partial=True)
    ends_s = time.monotonic() + float(asked["seconds"])
    say({"ready": True})

    def tell(name: str, share_s: float) -> None:
        say(measure(bundle, name, share_s, float(asked["enough_s"])))

    names = list(asked["variants"])
    give_back_memory()
    for number, name in enumerate(names):
        share_s = max(0.0, ends_s - time.monotonic()) / (len(names) - number)
        try:
            status = _apart(partial(tell, name, share_s))
        except OSError:  # no process to be had now: those left are not measured, and none of them is at fault
            break
        if status:
            say(_fault(bundle, name, f"the process that measured it ended: {ended(status)}"))
    return 0


def _apart(work: Callable[[], None]) -> int:
    """Do `work` in a fork of this process. Its exit status, negative for the signal that killed it."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_with(parent)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fault(bundle: Bundle, name: str, fault: str) -> dict[str, Any]:
    return {"variant": name, "accuracy": bundle.variant(name).accuracy, "fault": fault}


def measure(bundle: Bundle, name: str, share_s: float, enough_s: float) -> dict[str, Any]:
    """One variant as a `schema.device.Measured` document.

    Its runs are timed for `enough_s`, and for as many as a median takes; all of it ends after about `share_s` (with one
    run at least, however long that is).
    """
    _forget_peak()
    begun_s = time.monotonic()
    try:
        model = Model.load(bundle, variant=name)
        loaded_s = time.monotonic()
        try:
            data = example(bundle.card)
            model.predict(data)  # the first run lays out memory, and is none to count
            times: list[float] = []
            while len(times) < MOST_RUNS:
                start_s = time.perf_counter()
                model.predict(data)
                times.append(time.perf_counter() - start_s)
                if time.monotonic() - begun_s > share_s or (len(times) >= LEAST_RUNS and sum(times) > enough_s):
                    break
            memory = _peak_bytes()
        finally:
            model.close()
    except (MarramError, MemoryError) as error:
        return _fault(bundle, name, str(error)[:500] or "it takes more memory than it may")
    times.sort()
    return {
        "variant": name,
        "accuracy": bundle.variant(name).accuracy,
        "p50_ms": round(times[len(times) // 2] * 1e3, 3),
        "p95_ms": round(times[min(len(times) - 1, int(0.95 * len(times)))] * 1e3, 3),
        "load_ms": round((loaded_s - begun_s) * 1e3, 1),
        "memory_bytes": memory,
    }


def _forget_peak() -> None:
    """Have the kernel count the peak of resident memory from here on (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(os.getpid(), children=False)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
