"""What the operating system offers to hold a worker: its environment, its memory, its end with the agent's.

Linux first; where a system lacks one of these (macOS has no death signal, no `/proc`), it is left out and the channel's
hang-up still ends the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY",
     "XDG_RUNTIME_DIR", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MARRAM_SLOWDOWN",
     "MARRAM_EDGE_TPU", "MARRAM_ONNX_PROVIDERS", "MARRAM_TORCH_DEVICE"}
)  # fmt: skip
_PASSED_ON_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OPENCV_", "GST_", "COVERAGE_")


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker sees: enough to find its interpreter and display, and to choose an engine; nobody's secrets."""
    passed = {k: v for k, v in environment.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
    # Two arenas: a worker has many threads, and glibc would give each its own 64 MB of address space to fragment.
    return passed | {"MALLOC_ARENA_MAX": "2", "PYTHONFAULTHANDLER": "1"}


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends. Call first thing in the worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have ended before the call above.
    if os.getppid() != parent:
        os._exit(1)


def be_second(limit_bytes: int | None) -> None:
    """Step behind the agent: for the scheduler, for the kernel's out-of-memory choice, and within the memory limit.

    The limit proper is on resident memory, watched by the agent once a second; the kernel's own limit on private
    memory is set above it, so that one huge allocation fails at once instead of taking the machine down.
    """
    with contextlib.suppress(OSError):
        os.nice(2)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if limit_bytes is not None:
        hard = 2 * limit_bytes + 512_000_000
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def give_back_memory() -> None:
    """Return to the system what starting up took and no longer needs (parsed files, models loaded for a check)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has no malloc_trim, and keeps less
            ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(pid: int, *, children: bool = True) -> int:
    """Resident memory of a process (and its children); 0 where it cannot be told."""
    total, waiting, seen = 0, [pid], set[int]()
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        base = f"/proc/{each}"
        try:
            with open(f"{base}/statm", "rb") as file:  # noqa: PTH123 - once a second on small machines: no Path objects
                total += int(file.read().split()[1]) * _PAGE_BYTES
            for task in os.listdir(f"{base}/task") if children else ():  # noqa: PTH208 - as above
                with open(f"{base}/task/{task}/children", "rb") as file:  # noqa: PTH123 - as above
                    waiting.extend(int(child) for child in file.read().split())
        except (OSError, ValueError, IndexError):
            continue
    return total


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def kill_group(pid: int) -> None:
    """Kill a process group that we started, whatever is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def ended(status: int) -> str:
    """An exit status in words: `exit status 1`, for a negative one `killed by SIGKILL`."""
    return f"killed by {signal_name(-status)}" if status < 0 else f"exit status {status}"


def signal_name(number: int) -> str:
    """9 -> `SIGKILL`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
