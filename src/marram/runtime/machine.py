"""What machine this is, as far as it matters to inference: processor, memory, board, Jetson's power mode.

Read from `/proc`, `/sys` and `/etc`; what is not there is simply not said. It runs no command and needs no rights.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# Instructions that int8 models run two to four times faster with.
_INT8_FEATURES = {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "asimddp": "dot product", "i8mm": "i8mm"}


@dataclass(frozen=True, slots=True)
class Machine:
    """`board` is the device tree's name (Raspberry Pi, Jetson), `power_mode` Jetson's nvpmodel; empty where none."""

    processor: str
    architecture: str
    cores: int
    memory_bytes: int
    int8: tuple[str, ...] = ()
    board: str = ""
    power_mode: str = ""
    power_modes: tuple[str, ...] = ()


def inspect(root: Path = Path("/")) -> Machine:
    """The machine whose file system is at `root`. Never raises: what cannot be read is left out."""
    cpuinfo = _read(root / "proc/cpuinfo")
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split())
    board = _read(root / "proc/device-tree/model").rstrip("\0").strip()
    mode, modes = _power(root)
    kilobytes = _field(_read(root / "proc/meminfo"), "MemTotal").split()
    return Machine(
        processor=_field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=int(kilobytes[0]) * 1024 if kilobytes and kilobytes[0].isdecimal() else 0,
        int8=tuple(name for flag, name in _INT8_FEATURES.items() if flag in flags),
        board=board,
        power_mode=mode,
        power_modes=modes,
    )


def _power(root: Path) -> tuple[str, tuple[str, ...]]:
    """Jetson's current power mode and all it has: nvpmodel's table, and the file where it keeps what was chosen."""
    table = _read(root / "etc/nvpmodel.conf")
    names = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", table))
    chosen = re.search(r"pmode:0*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    current = names.get(chosen.group(1), f"mode {chosen.group(1)}") if chosen else ""
    return current, tuple(names.values())


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
