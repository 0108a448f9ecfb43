"""What happens to one camera on one link: when frames come, what the link carries, what each inference takes.

Everything is drawn beforehand, so every policy, and the schedule in hindsight, live through the very same minutes.
"""

from __future__ import annotations

import math
import random
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from marram.lab.traces import Direction

# After the last frame the link goes on for so long, so that what is under way then can end.
_AFTER_S = 20.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One kind of work: `payload_bytes` a frame, `fps` frames a second, the edge takes `edge_s`, the cloud `cloud_s`.

    The link's recorded rates are multiplied by `scale`. Service times vary log-normally with `noise`. An answer later
    than `deadline_s` counts as `miss_s`, one in time as its latency.
    """

    name: str
    payload_bytes: int
    edge_s: float
    fps: float
    scale: float = 1.0
    cloud_s: float = 0.02
    rtt_s: float = 0.04
    noise: float = 0.1
    frames: int = 600
    deadline_s: float = 0.25
    miss_s: float = 0.5

    def loss_s(self, latency_s: float) -> float:
        """What an answer after `latency_s` costs; infinity: there was none."""
        return latency_s if latency_s <= self.deadline_s else self.miss_s


SETTINGS = (
    Setting("A", 15_000, 0.150, 5.0),
    Setting("B", 10_000, 0.300, 5.0),
    Setting("C", 40_000, 0.100, 15.0, scale=8.0),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One camera's minutes: `up` begins at frame 0. `edge_s`, `cloud_s`: what each frame would take there."""

    name: str
    setting: Setting
    up: Direction
    edge_s: tuple[float, ...]
    cloud_s: tuple[float, ...]

    def captured_s(self, frame: int) -> float:
        """When `frame` is captured."""
        return frame / self.setting.fps


def make_stream(
    name: str, setting: Setting, up: Direction, *, from_s: float = 0.0, outages: Sequence[tuple[float, float]] = ()
) -> Stream:
    """The minutes of `up` that begin at `from_s`. During `outages` (from, to; seconds of the stream) nothing leaves.

    Service times are drawn from a seed made of the name, setting and start: the same arguments, the same stream.
    """
    draw = random.Random(zlib.crc32(f"{name}/{setting.name}/{from_s}".encode()))

    def times(typical_s: float) -> tuple[float, ...]:
        return tuple(typical_s * math.exp(draw.gauss(0, setting.noise)) for _ in range(setting.frames))

    length_s = setting.frames / setting.fps + _AFTER_S
    window = _window(up, from_s, length_s, setting.scale, outages)
    return Stream(f"{name}@{from_s:g}", setting, window, times(setting.edge_s), times(setting.cloud_s))


def _window(
    way: Direction, from_s: float, length_s: float, scale: float, outages: Sequence[tuple[float, float]]
) -> Direction:
    """`length_s` of a direction from `from_s` on, its rates times `scale` and zero during `outages`."""
    marks = {0.0} | {edge for cut in outages for edge in cut if 0 < edge < length_s}
    at_s = from_s
    while at_s < from_s + length_s:
        cycle, rest = divmod(at_s, way.length_s)
        step = bisect_right(way.starts_s, rest)
        end_s = cycle * way.length_s + (way.starts_s[step] if step < len(way.starts_s) else way.length_s)
        # Rounding must not keep it at the same step for ever.
        at_s = max(end_s, at_s + 1e-6)
        if at_s < from_s + length_s:
            marks.add(at_s - from_s)
    starts = sorted(marks)
    rates = [
        0.0 if any(cut <= start < heal for cut, heal in outages) else scale * way.at(from_s + start + 1e-9)
        for start in starts
    ]
    return Direction(tuple(starts), tuple(rates), length_s)
