"""The hold: a person at the device says that nothing is to be changed there for now. Kept in the folder, `hold.json`.

`marram edge hold` writes the file, whether an agent runs or not; the agent looks at it before every change, so what the
file says holds from that moment on, over restarts. What runs already runs on, and a version that fails still goes back.
A release is written too, not deleted, so that an agent that was away learns of it for its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from marram.edge.state import Folder
from marram.schema.errors import Missing
from marram.schema.journal import Entry, What
from marram.schema.model import Strict
from marram.schema.units import LONGEST_S

FILE = "hold.json"
LOOK_S = 1.0
_LONGEST_REASON = 1000


class Held(Strict):
    """A hold. `for_s` None: until it is released. `begun_s`: Unix time; `boot` and `uptime_s`: which boot, when in it.

    Within one boot its end is told by the uptime: the wall clock of a device may jump by years once it hears the time.
    """

    id: str
    reason: str = ""
    begun_s: float = Field(ge=0, le=10 * LONGEST_S)
    for_s: float | None = Field(default=None, ge=0, le=LONGEST_S)
    boot: str = ""
    uptime_s: float = 0.0
    released_s: float | None = None

    def over(self) -> bool:
        """Whether it holds no longer."""
        return self.released_s is not None or self.left_s() == 0.0

    def left_s(self) -> float | None:
        """Seconds until it ends by itself; None where it does not."""
        if self.for_s is None:
            return None
        passed_s = _uptime_s() - self.uptime_s if self.boot and self.boot == _boot() else time.time() - self.begun_s
        return max(0.0, self.for_s - max(0.0, passed_s))

    def words(self) -> str:
        """`held until 2026-03-01 12:00 UTC: line 4 is running`."""
        end_s = None if self.for_s is None else self.begun_s + self.for_s
        reason = self.reason[:_LONGEST_REASON]
        until = "it is released" if end_s is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end_s))
        return f"held until {until}{f': {reason}' if reason else ''}"


def hold(folder: Folder, for_s: float | None, reason: str) -> Held:
    """Hold the device from now on, in the place of an earlier hold. Raises Retryable, Permanent (disk)."""
    made = Held(
        id=os.urandom(6).hex(), reason=reason, begun_s=time.time(), for_s=for_s, boot=_boot(), uptime_s=_uptime_s()
    )
    folder.keep(FILE, made)
    return made


def release(folder: Folder) -> Held:
    """End the hold. Raises Missing where there is none, Retryable, Permanent (disk)."""
    found = read(folder)
    if found is None or found.over():
        raise Missing("this device is not held", hint="Nothing has to be released.")
    folder.keep(FILE, found.model_copy(update={"released_s": time.time()}))
    return found


def read(folder: Folder) -> Held | None:
    """The hold that is written in the folder, over or not; None where there is none."""
    return folder.kept(FILE, Held)


class Holding:
    """The agent's view of the hold; reads the file where that changed."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._stamp: tuple[int, int, int] | None = None
        self._held: Held | None = None

    def words(self) -> str | None:
        """That nothing may be changed now, and why; None where it may. Looks at the file."""
        stamp = _stamp(self._folder.path / FILE)
        if stamp != self._stamp:
            self._stamp, self._held = stamp, read(self._folder)
        return None if self._held is None or self._held.over() else self._held.words()

    async def released(self, told: Callable[[str], None]) -> None:
        """Wait until nothing is held. `told` hears why at every look; "" at the end, where it had to wait."""
        waited = False
        while (words := self.words()) is not None:
            waited = True
            told(words)
            await asyncio.sleep(LOOK_S)
        if waited:
            told("")

    def lines(self) -> tuple[str, list[Entry]]:
        """What the journal has to know of the newest hold, and under which key: always the same lines."""
        held = self._held
        if held is None:
            return "", []
        lines = [Entry(serial=1, what=What.HOLD, reason=held.words(), time_s=held.begun_s)]
        if held.over():
            why = "" if held.released_s is not None else "its time was over"
            ended_s = held.released_s or held.begun_s + (held.for_s or 0.0)
            lines.append(Entry(serial=2, what=What.RELEASE, reason=why, time_s=ended_s))
        return f"hold-{held.id}", lines


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _uptime_s() -> float:
    """Seconds since this boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
