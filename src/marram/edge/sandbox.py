"""`python -m marram.edge.sandbox PLAN MODULE ARGUMENT…`: give up what a worker does not need, then become that module.

A worker runs other people's code under the agent's own user. Before any of it is loaded (an engine's threads included:
only the thread that gives something up, and what it starts, are bound by it) the process gives up the device's folder
but for its own parts, the agent itself (its memory, its descriptors, signals to it), new privileges, and more processes
and open files than an app has use for. Cameras, accelerators, the network and the rest of the file system stay as they
are. Where the kernel has Landlock and refuses, the worker does not start.

It must import nothing heavy: what it costs, each start of a worker costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import runpy
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marram.edge.cgroups import MOST_TASKS, Groups
from marram.schema import paths
from marram.system import landlock

# More than any app has use for.
MOST_FILES = 4096
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 4, 24
# What a worker of root keeps of root's powers: files of others, low ports, priorities. Not among them: raw devices,
# modules, mounts, other users, signals, other processes' memory.
_KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 10, 14, 15, 23})  # CHOWN DAC_OVERRIDE FOWNER FSETID NET_BIND IPC_* SYS_NICE
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522
_RAW_MEMORY = ("/dev/mem", "/dev/kmem", "/dev/port")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one worker may use of the device's `folder`; all of it by path.

    `read`: folders; `write`: folders in which it may do everything; `plain`: folders for plain files, which the agent
    opens too (a link there would lead it astray). `closed`: further places that it must not see. `cgroup`: the control
    group that it joins.
    """

    folder: str
    read: list[str] = field(default_factory=list)
    write: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    cgroup: str = ""

    def text(self) -> str:
        """As it stands on the command line; there is nothing secret in it."""
        return json.dumps(asdict(self))


def plan(
    folder: Path,
    read: Sequence[Path],
    write: Sequence[Path],
    cgroup: Path | None = None,
    plain: Sequence[Path] = (),
) -> Plan:
    """The plan of a worker of the device in `folder`. A cloud on the same machine is closed to it, too."""
    closed = [folder, paths.context(), paths.cloud()]
    inside = [Path(p) for p in {sys.prefix, sys.base_prefix} if Path(p).resolve().is_relative_to(folder.resolve())]
    return Plan(
        folder=_real(folder),
        read=[_real(place) for place in (*read, *inside)],
        write=[_real(place) for place in write],
        plain=[_real(place) for place in plain],
        closed=[_real(place) for place in closed if place.exists()],
        cgroup=str(cgroup or ""),
    )


def _real(place: Path) -> str:
    return os.path.realpath(place)


def confine(plan: Plan) -> None:
    """Give up what `plan` does not name. Call it while the process has one thread. Raises OSError."""
    if plan.cgroup:
        # Before any limit: the group's own holds from the first page on.
        (Path(plan.cgroup) / "cgroup.procs").write_text("0")
    _bound()
    if landlock.abi():
        closed = {plan.folder: 0, **dict.fromkeys(plan.closed, 0), "/sys/fs/cgroup": landlock.READ}
        if os.geteuid() == 0:
            closed |= _of_root()
        # What the device keeps for this worker lies in places that are closed to it as a whole.
        _keep_homely(landlock.ways_to(closed), plan)
        own = [(each, landlock.READ) for each in plan.read] + [(each, landlock.ALL) for each in plan.write]
        own += [(each, landlock.PLAIN) for each in plan.plain]
        landlock.restrict([*landlock.everything_but(closed), *own])
    _drop_capabilities()


def _bound() -> None:
    _limit(resource.RLIMIT_CORE, 0)  # a core file would hold what the app sees, and its secrets
    _limit(resource.RLIMIT_NOFILE, MOST_FILES)
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The kernel counts every task of the user, so the bound stands above those that there are.
        tasks = int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
        _limit(resource.RLIMIT_NPROC, tasks + MOST_TASKS)


def _limit(which: int, most: int) -> None:
    soft, hard = resource.getrlimit(which)
    hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
    soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (soft, hard))


def _of_root() -> dict[str, int]:
    """What root must not touch beside the device's folder: disks below the file system, the kernel's own settings."""
    closed = {"/proc": landlock.READ, **{place: 0 for place in _RAW_MEMORY if os.path.exists(place)}}  # noqa: PTH110 - see `ways_to`
    with contextlib.suppress(OSError), os.scandir("/dev") as entries:
        closed |= {entry.path: 0 for entry in entries if stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode)}
    return closed


def _keep_homely(ways: set[str], plan: Plan) -> None:
    """Nothing new can be made directly in a folder that leads to the device's: mend what commonly is."""
    temporary = os.path.realpath(os.environ.get("TMPDIR") or "/tmp")
    if temporary in ways and plan.write:
        os.environ["TMPDIR"] = plan.write[0]
    home = os.path.realpath(os.environ.get("HOME") or "/")
    if home in ways:
        with contextlib.suppress(OSError):
            (Path(home) / ".cache").mkdir(mode=0o700, exist_ok=True)


def _drop_capabilities() -> None:
    """Root's powers, but for a few. Everybody else has none."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None, use_errno=True)
    for number in set(range(_LAST_CAPABILITY + 1)) - _KEPT_CAPABILITIES:
        library.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Two words of effective, permitted, inheritable each.
    sets = (ctypes.c_uint32 * 6)()
    if library.capget(header, sets) == 0:
        for number in set(range(_LAST_CAPABILITY + 1)) - _KEPT_CAPABILITIES:
            for which in range(3):
                sets[3 * (number // 32) + which] &= ~(1 << number % 32) & 0xFFFFFFFF
        library.capset(header, sets)


def seal_agent() -> None:
    """In the agent: nobody of its own user reads its memory, environment or descriptors, and no core is kept."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _limit(resource.RLIMIT_CORE, 0)


def isolation(groups: Groups | None = None) -> str:
    """What keeps workers from what is not theirs on this machine, for people."""
    return _walls() if groups is None else f"{_walls()}; {groups.words}"


def _walls() -> str:
    version = landlock.abi()
    if not version:
        why = "this kernel has no Landlock" if sys.platform.startswith("linux") else f"{sys.platform} has no Landlock"
        return f"none: {why}; workers can read what the agent can"
    kept = ["files", "memory of others"] + (["signals"] if landlock.scopes(version) else [])
    words = f"landlock {version}: {', '.join(kept)}"
    return f"{words}; as root" if os.geteuid() == 0 else words


def main(arguments: list[str]) -> None:
    """See the module's words; ends with status 5 where the process cannot be confined."""
    text, module, *rest = arguments
    try:
        confine(Plan(**json.loads(text)))
    except OSError as error:
        print(f"a worker cannot be confined: {error.strerror or error}", file=sys.stderr, flush=True)
        os._exit(5)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
