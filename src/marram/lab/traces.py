"""Traces: what a link can carry over time. Made in the shape of Wi-Fi, LTE and 3G, or read from recordings.

One type, `Trace`, serves the shaper (live), the simulations (virtual clock) and the benchmarks. A trace is piecewise
constant and starts over at its end. It only describes: it never waits, and holds no clock of its own.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from marram.schema.errors import Invalid, Missing
from marram.schema.units import parse_duration, parse_rate

_STEP_S = 0.1
_PACKET_BITS = 1500 * 8


@dataclass(frozen=True, slots=True)
class Direction:
    """Capacity one way: from `starts_s[i]` on, `bit_s[i]`; the whole repeats every `length_s`."""

    starts_s: tuple[float, ...]
    bit_s: tuple[float, ...]
    length_s: float
    # Bits carried before each step, and in the whole length: what makes `finish` a binary search.
    carried: tuple[float, ...] = field(init=False, repr=False)
    total: float = field(init=False)

    def __post_init__(self) -> None:
        ends = (*self.starts_s[1:], self.length_s)
        rising = all(end > start for start, end in zip(self.starts_s, ends, strict=True))
        if not self.starts_s or self.starts_s[0] != 0 or not rising or len(self.bit_s) != len(self.starts_s):
            raise Invalid("a trace needs rising times that start at 0, and one rate for each")
        if not all(math.isfinite(rate) and rate >= 0 for rate in self.bit_s):
            raise Invalid("a trace's rates must be finite and not negative")
        bits = [r * (end - start) for r, start, end in zip(self.bit_s, self.starts_s, ends, strict=True)]
        sums = list(accumulate(bits, initial=0.0))
        if sums[-1] <= 0:
            raise Invalid("a trace that never carries anything is an outage; cut the link instead")
        object.__setattr__(self, "carried", tuple(sums[:-1]))
        object.__setattr__(self, "total", sums[-1])

    def at(self, t_s: float) -> float:
        """The capacity at `t_s`, bit/s."""
        return self.bit_s[bisect_right(self.starts_s, t_s % self.length_s) - 1]

    def finish(self, t_s: float, size_bytes: float) -> float:
        """When `size_bytes` that begin to leave at `t_s` (and have the link to themselves) have left, seconds."""
        cycles, t = divmod(t_s, self.length_s)
        i = bisect_right(self.starts_s, t) - 1
        goal = self.carried[i] + self.bit_s[i] * (t - self.starts_s[i]) + size_bytes * 8
        whole, rest = divmod(goal, self.total)
        # The first moment at which `rest` bits have gone: never inside a step that carries nothing.
        j = max(bisect_right(self.carried, rest) - 1, 0)
        while j > 0 and rest <= self.carried[j]:
            j -= 1
        left = rest - self.carried[j]
        inside = left / self.bit_s[j] if left > 0 and self.bit_s[j] > 0 else 0.0
        return max((cycles + whole) * self.length_s + self.starts_s[j] + inside, t_s)


@dataclass(frozen=True, slots=True)
class Trace:
    """A link over time: capacity up and down, and the round-trip time without queueing (from `starts_s[i]`)."""

    name: str
    up: Direction
    down: Direction
    starts_s: tuple[float, ...]
    rtt_s: tuple[float, ...]
    length_s: float

    def __post_init__(self) -> None:
        if not self.rtt_s or len(self.rtt_s) != len(self.starts_s) or self.length_s <= self.starts_s[-1]:
            raise Invalid(f"trace {self.name}: one round-trip time for each start is needed")
        if not all(math.isfinite(rtt) and rtt >= 0 for rtt in self.rtt_s):
            raise Invalid(f"trace {self.name}: round-trip times must be finite and not negative")

    def rtt_at(self, t_s: float) -> float:
        """The round-trip time at `t_s` without queueing, seconds."""
        return self.rtt_s[bisect_right(self.starts_s, t_s % self.length_s) - 1]


def constant(up_bit_s: float, rtt_s: float, down_bit_s: float | None = None, name: str = "constant") -> Trace:
    """A link that never changes; `down_bit_s` is `up_bit_s` where not given."""
    down = up_bit_s if down_bit_s is None else down_bit_s
    return Trace(name, Direction((0.0,), (up_bit_s,), 1.0), Direction((0.0,), (down,), 1.0), (0.0,), (rtt_s,), 1.0)


# ---------------------------------------------------------------- made here


@dataclass(frozen=True, slots=True)
class Shape:
    """How a kind of link behaves; `synthetic` draws traces from it.

    The log of the rate and of the added delay wander (first-order autoregression: Ornstein-Uhlenbeck every 0.1 s)
    with standard deviation `*_sigma` and memory `*_memory_s`; `dips` a second, for about `dip_s`, the rate falls to
    `dip_share` and the delay grows by `dip_rtt_s` (handover, a microwave oven, a deep fade).
    """

    up_bit_s: float
    down_bit_s: float
    rtt_s: float
    rate_sigma: float
    rate_memory_s: float
    jitter_s: float
    jitter_sigma: float
    jitter_memory_s: float
    dips: float
    dip_s: float
    dip_share: float
    dip_rtt_s: float


SHAPES: dict[str, Shape] = {
    "wifi": Shape(38e6, 46e6, 0.004, 0.16, 4.0, 0.002, 0.5, 0.5, 0.03, 0.2, 0.35, 0.008),
    "lte": Shape(6.2e6, 19e6, 0.042, 0.28, 3.0, 0.006, 0.5, 0.8, 0.04, 0.3, 0.25, 0.030),
    # HSDPA down, the plain 384 kbit/s channel up: what a gate's modem mostly gets.
    "3g": Shape(0.42e6, 6.0e6, 0.140, 0.30, 4.0, 0.020, 0.5, 1.0, 0.05, 0.6, 0.30, 0.080),
}


def synthetic(shape: str | Shape, seed: int = 0, length_s: float = 120.0) -> Trace:
    """A trace in the shape of `wifi`, `lte` or `3g`; the same seed gives the same trace. Raises Missing."""
    if isinstance(shape, str):
        name = f"{shape}:{seed}"
        if shape not in SHAPES:
            raise Missing(f'no trace shape "{shape}"; there are {", ".join(SHAPES)}')
        shape = SHAPES[shape]
    else:
        name = f"made:{seed}"
    draw = random.Random(f"{name}:{length_s}")
    steps = max(1, round(length_s / _STEP_S))
    rate_log = _wander(draw, steps, shape.rate_sigma, shape.rate_memory_s)
    down_log = _wander(draw, steps, shape.rate_sigma, shape.rate_memory_s)
    jitter_log = _wander(draw, steps, shape.jitter_sigma, shape.jitter_memory_s)
    dips = _dips(draw, steps, shape)
    starts = tuple(i * _STEP_S for i in range(steps))
    up = tuple(
        shape.up_bit_s * math.exp(x) * (shape.dip_share if d else 1) for x, d in zip(rate_log, dips, strict=True)
    )
    # Both ways share the radio: the down link follows the up link's fades in part.
    down = tuple(
        shape.down_bit_s * math.exp(0.6 * x + 0.8 * y) * (shape.dip_share if d else 1)
        for x, y, d in zip(rate_log, down_log, dips, strict=True)
    )
    rtt = tuple(
        shape.rtt_s + shape.jitter_s * math.exp(j) + (shape.dip_rtt_s if d else 0)
        for j, d in zip(jitter_log, dips, strict=True)
    )
    length = steps * _STEP_S
    return Trace(name, Direction(starts, up, length), Direction(starts, down, length), starts, rtt, length)


def _wander(draw: random.Random, steps: int, sigma: float, memory_s: float) -> list[float]:
    """A stationary first-order autoregression with standard deviation `sigma`, one value a step."""
    keep = math.exp(-_STEP_S / memory_s)
    value, fresh = draw.gauss(0, sigma), sigma * math.sqrt(1 - keep * keep)
    values = []
    for _ in range(steps):
        values.append(value)
        value = keep * value + draw.gauss(0, fresh)
    return values


def _dips(draw: random.Random, steps: int, shape: Shape) -> list[bool]:
    marks, left = [], 0
    for _ in range(steps):
        if left == 0 and draw.random() < shape.dips * _STEP_S:
            left = max(1, round(draw.expovariate(1 / shape.dip_s) / _STEP_S))
        marks.append(left > 0)
        left = max(0, left - 1)
    return marks


_BIN_S = 0.02
# Packets a second that a saturated cellular link carries at most, over seeds; an outage is left after so long, on
# average.
_MOST_PACKETS = (100.0, 800.0)
_WANDERS = (0.1, 0.4)
_OUTAGE_S = 0.33


def bursty(seed: int = 0, length_s: float = 240.0) -> Trace:
    """A saturated cellular link both ways, as packets leave it: in lumps, with outages; the same seed, the same trace.

    After Winstein, Sivaraman & Balakrishnan, "Stochastic forecasts achieve high throughput and low delay over cellular
    networks", NSDI 2013, 3.1: packets are a Poisson process, its rate a Brownian motion between none and the most, and
    where it has come to none it stays for an exponential time. How fast it wanders (as a share of the most, in a
    second) and how much it carries are drawn from the seed; nothing is fitted to recordings.
    """
    draw = random.Random(f"bursty:{seed}:{length_s}")
    most = math.exp(draw.uniform(*map(math.log, _MOST_PACKETS)))
    wander = draw.uniform(*_WANDERS)
    up, down = (_doubly_stochastic(draw, most * share, wander, length_s) for share in (1.0, 3.0))
    return Trace(f"bursty:{seed}", up, down, (0.0,), (0.05,), length_s)


def _doubly_stochastic(draw: random.Random, most: float, wander: float, length_s: float) -> Direction:
    bins = max(1, round(length_s / _BIN_S))
    step = wander * most * math.sqrt(_BIN_S)
    rate, packets = draw.uniform(0.25, 1.0) * most, []
    for _ in range(bins):
        if rate > 0:
            rate = min(max(rate + draw.gauss(0, step), 0.0), most)
        elif draw.random() < _BIN_S / _OUTAGE_S:
            rate = abs(draw.gauss(0, step))
        packets.append(_poisson(draw, rate * _BIN_S))
    starts = tuple(i * _BIN_S for i in range(bins))
    return Direction(starts, tuple(n * _PACKET_BITS / _BIN_S for n in packets), bins * _BIN_S)


def _poisson(draw: random.Random, mean: float) -> int:
    """Arrivals of rate 1 within `mean`."""
    count, passed = 0, draw.expovariate(1.0)
    while passed < mean:
        count, passed = count + 1, passed + draw.expovariate(1.0)
    return count


# ---------------------------------------------------------------- read from recordings


def read_mahimahi(up: Path, down: Path | None = None, *, rtt_s: float = 0.05, bin_s: float = 0.02) -> Trace:
    """A mahimahi pair: each line the millisecond at which one 1500-byte packet can leave. No `down`: as `up`.

    Packets are counted in bins of `bin_s`; the files hold no delay, so `rtt_s` is given. Raises Missing, Invalid.
    """
    up_way = _mahimahi_direction(up, bin_s)
    down_way = up_way if down is None else _mahimahi_direction(down, bin_s)
    return Trace(up.name, up_way, down_way, (0.0,), (rtt_s,), up_way.length_s)


def _mahimahi_direction(file: Path, bin_s: float) -> Direction:
    try:
        times_ms = [int(line) for line in _read(file).split()]
    except ValueError as error:
        raise Invalid("not a mahimahi trace: each line is a whole number of milliseconds", where=str(file)) from error
    if not times_ms or min(times_ms) < 0:
        raise Invalid("not a mahimahi trace: it names no millisecond", where=str(file))
    first = times_ms[0]  # recordings begin with a silence of the recorder's own
    bins = [0] * (int((times_ms[-1] - first) / 1000 / bin_s) + 1)
    for time_ms in times_ms:
        if time_ms < first:
            raise Invalid("not a mahimahi trace: its times go back", where=str(file))
        bins[int((time_ms - first) / 1000 / bin_s)] += 1
    starts = tuple(i * bin_s for i in range(len(bins)))
    return Direction(starts, tuple(n * _PACKET_BITS / bin_s for n in bins), len(bins) * bin_s)


def read_sabre(file: Path, *, up_share: float = 1.0, min_bit_s: float = 0.0) -> Trace:
    """A sabre JSON file (`duration_ms`, `bandwidth_kbps`, `latency_ms`; down link). The up link is `up_share` of it.

    The files' latency is one way and constant, not measured. Raises Missing, Invalid.
    """
    try:
        rows = [
            (float(r["duration_ms"]), float(r["bandwidth_kbps"]), float(r["latency_ms"]))
            for r in json.loads(_read(file))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"not a sabre trace: {error}", where=str(file)) from error
    rows = [row for row in rows if row[0] > 0]
    if not rows:
        raise Invalid("not a sabre trace: it is empty", where=str(file))
    ends = list(accumulate(row[0] / 1000 for row in rows))
    starts = (0.0, *ends[:-1])
    down = tuple(max(row[1] * 1000, min_bit_s) for row in rows)
    up = tuple(rate * up_share for rate in down)
    rtt = tuple(2 * row[2] / 1000 for row in rows)
    return Trace(file.name, Direction(starts, up, ends[-1]), Direction(starts, down, ends[-1]), starts, rtt, ends[-1])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except FileNotFoundError as error:
        raise Missing(f"no trace file {file}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read the trace: {error}", where=str(file)) from error


def parse_trace(text: str) -> Trace:
    """A trace by its name: `wifi`, `lte:7` (seed), `bursty`, `6 Mbit/s 48 ms` (constant), or a file (`.up`, `.json`).

    Raises Missing, Invalid.
    """
    shape, _, seed = text.partition(":")
    if shape in SHAPES and (not seed or seed.isdecimal()):
        return synthetic(shape, int(seed or 0))
    if shape == "bursty" and (not seed or seed.isdecimal()):
        return bursty(int(seed or 0))
    file = Path(text)
    if file.suffix in (".up", ".down"):
        down = file.with_suffix(".down")
        return read_mahimahi(file, down if down.exists() else None)
    if file.suffix == ".json":
        return read_sabre(file)
    words = text.split()
    if len(words) == 4:
        try:
            return constant(parse_rate(" ".join(words[:2])), parse_duration(" ".join(words[2:])), name=text)
        except ValueError as error:
            raise Invalid(str(error), where=f'trace "{text}"') from error
    hint = "Write wifi, lte, 3g, lte:7, bursty, 6 Mbit/s 48 ms, or a .up or .json file."
    raise Missing(f'no trace "{text}"', hint=hint)
