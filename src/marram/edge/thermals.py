"""How hot the machine is and whether heat slows it down, as far as Linux tells. Reads only, a few small files a report.

Nothing here raises: a machine that does not tell has None.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

# Zones whose name says that they are the processor's; where there is none, the hottest of all counts.
_PROCESSOR = ("cpu", "soc", "pkg", "core")
_PLAUSIBLE_C = (-40.0, 150.0)
_MOST_FILES = 32
# Raspberry Pi's bits of now: frequency capped, throttled, soft temperature limit (bit 0, under-voltage, caps too).
_PI_NOW = 0b1110


class Thermals:
    """What `root` (`/sys`) tells. Found once, read at each question; blocking for microseconds."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        zones = [(_text(zone / "type").lower(), zone / "temp") for zone in _some(root, "class/thermal/thermal_zone*")]
        own = [file for kind, file in zones if any(word in kind for word in _PROCESSOR)]
        self._zones = own or [file for _, file in zones]
        self._pi = _some(root, "devices/platform/soc/soc:firmware/get_throttled")
        coolers = _some(root, "class/thermal/cooling_device*")
        # What slows the processor down; a fan is none.
        self._coolers = [
            each / "cur_state" for each in coolers if any(w in _text(each / "type").lower() for w in ("cpu", "proc"))
        ]
        self._counts = _some(root, "devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
        self._last = [_number(file) for file in self._counts]

    def temperature_c(self) -> float | None:
        """The hottest of the processor's zones, °C."""
        found = [value / 1000 for file in self._zones if (value := _number(file)) is not None]
        sane = [value for value in found if _PLAUSIBLE_C[0] < value < _PLAUSIBLE_C[1] and value != 0]
        return round(max(sane), 1) if sane else None

    def throttled(self) -> bool | None:
        """Whether it is slowed down now, or was since the last time this was asked."""
        told: list[bool] = []
        told += [bool(int(text, 16) & _PI_NOW) for file in self._pi if _is_hex(text := _text(file))]
        told += [value > 0 for file in self._coolers if (value := _number(file)) is not None]
        counts = [_number(file) for file in self._counts]
        told += [
            now > before
            for now, before in zip(counts, self._last, strict=True)
            if now is not None and before is not None
        ]
        self._last = counts
        return any(told) if told else None


def _some(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))[:_MOST_FILES]
    except OSError:
        return []


def _text(file: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="ascii").strip()
    return ""


def _number(file: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(file))
    return None


def _is_hex(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return int(text, 16) >= 0
    return False
