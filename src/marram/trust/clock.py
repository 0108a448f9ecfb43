"""What time it is at least, on a device whose clock may be wrong: decides whether a signature is still good.

A device may wake up in 1970, or have its clock turned back by whoever wants an old signature to look fresh. So there is
a floor: the newest moment that something signed has shown, plus the time the device was on since. It is raised only by
such evidence and by uptime, never by the wall clock: a clock that once ran ahead must not spoil the floor for ever. A
wall clock that is ahead can only refuse what is still good, and the refusal says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from marram.system import files

DAY_S = 86_400.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def uptime_s() -> float:
    """Seconds since the machine started, asleep or not where the system tells."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def boot() -> str:
    """Which start of the machine this is; "" where the system does not tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where time comes from; tests and rehearsals have others."""

    wall_s: Callable[[], float] = time.time
    uptime_s: Callable[[], float] = uptime_s
    boot: Callable[[], str] = field(default=boot)


class Clock:
    """The floor, kept in `file`. One process at a time uses it."""

    def __init__(self, file: Path, sources: Sources | None = None) -> None:
        self._file = file
        self._sources = sources or Sources()
        self._floor_s = 0.0
        self._at_uptime_s = self._sources.uptime_s()
        self._read()

    def now_s(self) -> float:
        """The reference time, in seconds since 1970: never before the floor."""
        return max(self._sources.wall_s(), self.floor_s())

    def wall_s(self) -> float:
        """What the machine's own clock says."""
        return self._sources.wall_s()

    def floor_s(self) -> float:
        """The newest moment shown by a signature, plus the time on since then; 0 where none was ever seen."""
        return self._floor_s + max(0.0, self._sources.uptime_s() - self._at_uptime_s) if self._floor_s else 0.0

    def saw(self, signed_s: float) -> None:
        """Something signed proves that it is `signed_s` at least. `keep` makes it last."""
        if signed_s > self.floor_s():
            self._floor_s, self._at_uptime_s = signed_s, self._sources.uptime_s()

    def keep(self) -> None:
        """Bring the floor to the disk. Raises OSError: the old floor then stands there."""
        floor_s = self.floor_s()
        if floor_s:
            state = {"floor_s": floor_s, "uptime_s": self._sources.uptime_s(), "boot": self._sources.boot()}
            files.write(self._file, json.dumps(state).encode())

    def _read(self) -> None:
        try:
            state = json.loads(self._file.read_bytes())
            floor_s, at_s, which = float(state["floor_s"]), float(state["uptime_s"]), str(state["boot"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return  # never taken, or damaged: the signed metadata on the disk raises it again
        if not (0 < floor_s < 1e11 and at_s >= 0):
            return
        self._floor_s, now_boot = floor_s, self._sources.boot()
        if which == now_boot:
            self._at_uptime_s = at_s
        elif which and now_boot:
            self._at_uptime_s = 0.0  # since another start of the machine, at least all of this one has passed
