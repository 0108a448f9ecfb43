"""What must hold before a rollout goes on: each gate looks at figures and says passed, failed, or too little to judge.

Pure. Few frames prove little: no measured gate judges fewer than `FEW_FRAMES` on a side (`FEW_DELAYS` for a tail), and
a share fails only where chance does not explain it: the lower end of its Wilson interval is above the limit (Wilson
1927, "Probable inference, the law of succession, and statistical inference"). Hardware classes are compared with
themselves: a slow class neither hides behind a fast one nor fails for being as slow as it always was. A worker's
figures begin at zero with each of its starts, so those of a new version are that version's alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, median, median_low, pstdev

from marram.rollout.observation import Observation
from marram.schema.rollout import DeviceOutcome, Gates, GateVerdict, RolloutDevice

FEW_FRAMES = 30
# A 95th percentile of fewer is the delay of the slowest few, which are the first ones after a start.
FEW_DELAYS = 100
# Delays that lie less apart than this are alike, whatever their ratio: below it is the machine's own jitter.
P95_FLOOR_MS = 10.0
# How sure a share must be of being above its limit: three standard errors, one false alarm in 740.
_Z = 3.0
# How far means of devices may lie apart because each looks at something else, in standard errors.
_SPREAD = 2.0

# A device counts with at most so many frames, or so many times as many as half of the others have.
_HEAVY_FRAMES, _HEAVIEST = 1000.0, 2.0

# Gates over devices, which need no figures: they fail as soon as they are broken. The others wait for a stage's end.
AT_ONCE = ("failures", "silent")
# Gates that hold only where a person asked for them: without enough frames to judge by they do not let it pass.
ASKED = ("p95_ms", "disagreement")


@dataclass(frozen=True, slots=True)
class Sides:
    """Whom the gates compare. `canaries`: devices that run the new version.

    `rest`: those with the one before, and each canary as it was when it was reached.
    """

    reached: list[RolloutDevice]
    canaries: list[Observation]
    rest: list[Observation]


def judge(gates: Gates, sides: Sides) -> list[GateVerdict]:
    """What each gate that is set says, in the order people read them."""
    said = [gate(gates, sides) for gate in _GATES]
    return [verdict for verdict in said if verdict is not None]


def _failures(gates: Gates, sides: Sides) -> GateVerdict | None:
    if gates.failures is None:
        return None
    return _devices("failures", "failed", gates.failures, DeviceOutcome.FAILED, sides)


def _silent(gates: Gates, sides: Sides) -> GateVerdict | None:
    return None if gates.silent is None else _devices("silent", "silent", gates.silent, DeviceOutcome.SILENT, sides)


def _devices(gate: str, word: str, limit: float, outcome: DeviceOutcome, sides: Sides) -> GateVerdict:
    """A share of the devices that were reached; below the limit is not enough where the limit is nobody."""
    broken = [device for device in sides.reached if device.outcome is outcome]
    share = len(broken) / len(sides.reached) if sides.reached else 0.0
    words = f"{word} {len(broken)} of {len(sides.reached)}" + (f" (at most {_percent(limit)})" if limit else "")
    if broken:
        first = broken[0]
        words += f": {first.device}" + (f", {first.reason}" if first.reason else "")
    figures = {"devices": [device.device for device in broken[:20]], "of": len(sides.reached), "limit": limit}
    return GateVerdict(gate=gate, passed=share <= limit, words=words, figures=figures)


def _errors(gates: Gates, sides: Sides) -> GateVerdict | None:
    limit = gates.errors
    if limit is None:
        return None
    bad, seen = _pooled(sides.canaries, "errors", "frames", apart=True)
    if seen < FEW_FRAMES:
        return _too_few("errors", "errors", seen, FEW_FRAMES)
    rest_bad, rest_seen = _pooled(sides.rest, "errors", "frames", apart=True)
    before = rest_bad / rest_seen if rest_seen >= FEW_FRAMES else 0.0
    passed = wilson_low(bad, seen) <= limit + before
    words = f"errors {_percent(bad / seen)} {_sign(passed)} {_percent(limit + before)}"
    if rest_seen >= FEW_FRAMES:
        words += f" ({_percent(before)} on the rest)"
    figures = {"share": bad / seen, "frames": seen, "rest": before, "limit": limit}
    return GateVerdict(gate="errors", passed=passed, words=words, figures=figures)


def _p95(gates: Gates, sides: Sides) -> GateVerdict | None:
    limit = gates.p95_ms
    if limit is None:
        return None
    measured = _delays(sides.canaries)
    if not measured and _times_nothing(sides):
        return GateVerdict(gate="p95_ms", passed=True, words="p95: nothing here is timed")
    if not measured:
        return _too_few("p95_ms", "p95", _most_delays(sides.canaries), FEW_DELAYS)
    worst, p95 = max(measured.items(), key=lambda item: item[1])
    passed = p95 <= limit
    words = f"p95 {_ms(p95)} {_sign(passed)} {_ms(limit)}{_of_class(worst, measured)}"
    return GateVerdict(gate="p95_ms", passed=passed, words=words, figures={"p95_ms": p95, "limit_ms": limit})


def _p95_ratio(gates: Gates, sides: Sides) -> GateVerdict | None:
    limit = gates.p95_ratio
    if limit is None:
        return None
    ours, theirs = _delays(sides.canaries), _delays(sides.rest)
    if not ours and _times_nothing(sides):
        return None
    if not ours:
        return _too_few("p95_ratio", "p95 compared", _most_delays(sides.canaries), FEW_DELAYS)
    # Only like with like: what a class never ran before has nothing to be compared with.
    ratios = {hardware: p95 / theirs[hardware] for hardware, p95 in ours.items() if theirs.get(hardware)}
    if not ratios:
        return _no_rest("p95_ratio", "p95 compared")
    apart = {hardware: ratio for hardware, ratio in ratios.items() if ours[hardware] - theirs[hardware] >= P95_FLOOR_MS}
    worst, ratio = max((apart or ratios).items(), key=lambda item: item[1])
    alike = not apart and ratio > limit
    passed = alike or ratio <= limit
    if alike:
        words = f"p95 {_ms(ours[worst])}, the rest {_ms(theirs[worst])}: less than {P95_FLOOR_MS:g} ms apart"
        words += _of_class(worst, ratios)
    else:
        words = f"p95 {ratio:.2g} × that of the rest {_sign(passed)} {limit:g}{_of_class(worst, ratios)}"
    figures = {"ratio": ratio, "p95_ms": ours[worst], "rest_ms": theirs[worst], "limit": limit}
    return GateVerdict(gate="p95_ratio", passed=passed, words=words, figures=figures)


def _confidence(gates: Gates, sides: Sides) -> GateVerdict | None:
    limit = gates.confidence_shift
    if limit is None:
        return None
    ours, theirs = _means(sides.canaries), _means(sides.rest)
    if not ours:
        frames = _sum(sides.canaries, "confidence_frames")
        return _too_few("confidence_shift", "confidence", frames, FEW_FRAMES) if frames else None
    if not theirs:
        return _no_rest("confidence_shift", "confidence")
    shift = abs(mean(ours) - mean(theirs))
    # Each device looks at something else: what they differ by among themselves is no change of the version.
    allowed = limit + _SPREAD * pstdev(theirs) / math.sqrt(len(ours))
    passed = shift <= allowed
    words = f"confidence shift {shift:.2f} {_sign(passed)} {allowed:.2f}"
    figures = {"shift": shift, "mean": mean(ours), "rest": mean(theirs), "limit": limit, "allowed": allowed}
    return GateVerdict(gate="confidence_shift", passed=passed, words=words, figures=figures)


def _disagreement(gates: Gates, sides: Sides) -> GateVerdict | None:
    limit = gates.disagreement
    if limit is None:
        return None
    other, frames = _pooled(sides.canaries, "shadow_disagreements", "shadow_frames")
    if frames < FEW_FRAMES:
        return _too_few("disagreement", "disagreement", frames, FEW_FRAMES)
    passed = wilson_low(other, frames) <= limit
    words = f"disagreement {_percent(other / frames)} {_sign(passed)} {_percent(limit)}"
    figures = {"share": other / frames, "frames": frames, "limit": limit}
    return GateVerdict(gate="disagreement", passed=passed, words=words, figures=figures)


_GATES: list[Callable[[Gates, Sides], GateVerdict | None]] = [
    _failures,
    _silent,
    _errors,
    _p95,
    _p95_ratio,
    _confidence,
    _disagreement,
]


def overheated(gates: Gates, seen: Observation, throttled_before: bool | None) -> str:
    """Why a device counts as failed for its heat; "" where it does not."""
    if gates.temperature_c is not None and seen.temperature_c is not None and seen.temperature_c > gates.temperature_c:
        return f"{seen.temperature_c:.0f} °C, above {gates.temperature_c:g} °C"
    if gates.throttling and seen.throttled and throttled_before is False:
        return "throttled, which it was not before"
    return ""


def wilson_low(hits: float, of: float) -> float:
    """The lower end of the Wilson score interval of a share; 0 of nothing."""
    if of <= 0:
        return 0.0
    share = min(1.0, hits / of)
    middle = share + _Z * _Z / (2 * of)
    spread = _Z * math.sqrt(share * (1 - share) / of + _Z * _Z / (4 * of * of))
    # Rounding must not put the lower end above the share itself: none of many is no sign of any.
    return min(share, max(0.0, (middle - spread) / (1 + _Z * _Z / of)))


# ---------------------------------------------------------------- figures


def _sum(seen: Iterable[Observation], key: str) -> float:
    return sum(max(0.0, each.figure(key) or 0.0) for each in seen)


def _pooled(seen: Iterable[Observation], bad: str, all_: str, *, apart: bool = False) -> tuple[float, float]:
    """How many were bad of how many, over devices; `apart`: the bad ones are not counted among `all_`.

    No device weighs much more than the others: whatever one says of itself, it decides for none but itself.
    """
    counts = []
    for each in seen:
        broken, frames = max(0.0, each.figure(bad) or 0.0), max(0.0, each.figure(all_) or 0.0)
        frames = broken + frames if apart else frames
        if frames:
            counts.append((min(broken, frames), frames))
    most = max(_HEAVY_FRAMES, _HEAVIEST * median_low([frames for _, frames in counts])) if counts else 0.0
    weights = [min(1.0, most / frames) for _, frames in counts]
    return (
        sum(broken * weight for (broken, _), weight in zip(counts, weights, strict=True)),
        sum(frames * weight for (_, frames), weight in zip(counts, weights, strict=True)),
    )


def _answers(seen: Observation) -> float:
    """How many delays its p95 is made of."""
    return seen.figure("delays") or 0.0


def _delays(seen: Iterable[Observation]) -> dict[str, float]:
    """By hardware class, the median of its devices' p95, in milliseconds; only where enough frames were answered."""
    found: dict[str, list[float]] = defaultdict(list)
    for each in seen:
        p95 = each.figure("p95_ms")
        if p95 is not None and p95 > 0 and _answers(each) >= FEW_DELAYS:
            found[each.hardware].append(p95)
    return {hardware: median(values) for hardware, values in found.items()}


def _most_delays(seen: Iterable[Observation]) -> float:
    return max((_answers(each) for each in seen), default=0.0)


def _times_nothing(sides: Sides) -> bool:
    """Whether its frames go through and none of them ever asks its model: then no number of them gives it a delay."""
    return _sum(sides.canaries, "frames") >= FEW_FRAMES and not _most_delays([*sides.canaries, *sides.rest])


def _means(seen: Iterable[Observation]) -> list[float]:
    """The mean confidence of each device that answered enough frames."""
    found = [(each.figure("confidence_mean"), each.figure("confidence_frames") or 0.0) for each in seen]
    return [min(1.0, max(0.0, value)) for value, frames in found if value is not None and frames >= FEW_FRAMES]


# ---------------------------------------------------------------- words


def _too_few(gate: str, what: str, frames: float, needed: int) -> GateVerdict:
    words = f"{what} not judged: {frames:,.0f} frames of the {needed} it takes"
    return GateVerdict(gate=gate, passed=None, words=words, figures={"frames": frames, "needed": needed})


def _no_rest(gate: str, what: str) -> GateVerdict:
    return GateVerdict(gate=gate, passed=True, words=f"{what}: no device with the version before to compare with")


def _sign(passed: bool) -> str:
    return "≤" if passed else ">"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def _of_class(hardware: str, among: dict[str, float]) -> str:
    """Which class it is, where there are several."""
    return f" on {hardware or 'unknown hardware'}" if len(among) > 1 else ""
