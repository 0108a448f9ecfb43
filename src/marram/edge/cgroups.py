"""A control group (cgroup v2) for each app, where systemd has delegated the agent's own (`Delegate=yes`).

The kernel then keeps an app within its memory and its number of tasks, shares the processor out between apps, and ends
all of an app at once, whatever it has started. Where nothing is delegated there is none of this, and the watchdog and
the process's own limits are what there is. See Linux, Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_WANTED = ("memory", "pids", "cpu")
MOST_TASKS = 512
# Of the processor, when there is too little: the agent's share against an app's (100 each is even).
_AGENT_WEIGHT, _APP_WEIGHT = 300, 100
# The kernel acts above the limit, so that the watchdog, which says more, comes first where memory grows slowly.
_ABOVE, _ABOVE_BYTES = 1.1, 16_000_000


class Groups:
    """The agent's own group, divided. Made by `open`."""

    def __init__(self, base: Path, controllers: Sequence[str]) -> None:
        self._base, self.controllers = base, tuple(controllers)

    @classmethod
    def open(cls, root: Path = ROOT, own: str | None = None) -> Groups | None:
        """Take over the group that this process is in; None where it is not ours alone to divide.

        `own`: its path below `root`, where `/proc/self/cgroup` is not to be asked.
        """
        base = root / (own if own is not None else _own()).lstrip("/")
        try:
            there = (base / "cgroup.controllers").read_text().split()
            controllers = [name for name in _WANTED if name in there]
            alone = (base / "cgroup.procs").read_text().split() == [str(os.getpid())]
            if base == root or not controllers or not alone or not os.access(base / "cgroup.subtree_control", os.W_OK):
                return None
            # A group that has groups with limits may have no process of its own.
            (base / "agent").mkdir(exist_ok=True)
            (base / "agent" / "cgroup.procs").write_text(str(os.getpid()))
            (base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        except OSError:
            with contextlib.suppress(OSError):
                (base / "cgroup.procs").write_text(str(os.getpid()))
            return None
        _set(base / "agent", "cpu.weight", _AGENT_WEIGHT)
        return cls(base, controllers)

    @property
    def words(self) -> str:
        """What they keep, for people."""
        return f"cgroup: {', '.join(self.controllers)}"

    def place(self, app: str, version: int) -> Path:
        """Where the group of one version of an app is, once it is made."""
        return self._base / f"app-{app}-{version}"


def make(group: Path, memory_bytes: int | None) -> bool:
    """Make the group, or set its limits anew; whether it is there."""
    try:
        group.mkdir(exist_ok=True)
    except OSError:
        return False
    limit = "max" if memory_bytes is None else int(_ABOVE * memory_bytes) + _ABOVE_BYTES
    _set(group, "memory.max", limit)
    _set(group, "memory.swap.max", "max" if memory_bytes is None else 0)
    _set(group, "memory.oom.group", 1)
    _set(group, "pids.max", MOST_TASKS)
    _set(group, "cpu.weight", _APP_WEIGHT)
    return True


def used_bytes(group: Path) -> int | None:
    """The memory that the group uses and could not give back at once; None where that cannot be told."""
    try:
        current = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        idle = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        return max(0, current - idle)
    except (OSError, ValueError):
        return None


def out_of_memory(group: Path) -> bool:
    """Whether the kernel ended something in the group because it had used its memory up."""
    try:
        events = (group / "memory.events").read_text().splitlines()
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in events)
    except OSError:
        return False


def end(group: Path) -> None:
    """Kill what is left in the group and take it away; one that is still in use is left."""
    with contextlib.suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    with contextlib.suppress(OSError):
        group.rmdir()


def _own() -> str:
    """The path of this process's group in the one hierarchy of version 2; "" where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _set(group: Path, name: str, value: object) -> None:
    # A controller that is not delegated has no such file.
    with contextlib.suppress(OSError):
        if (group / name).exists():
            (group / name).write_text(str(value))
