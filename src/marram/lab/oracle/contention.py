"""Several cameras, each on a link of its own, whose questions meet at a few replicas: how they fare together.

There is no best schedule to compare with: what one stream sends, another one waits for, and the states of all queues
are too many to search. So a policy is held against the other policies, each played by all streams of a run alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from marram.lab.oracle.compare import OFFSETS_S, Link, Make
from marram.lab.oracle.play import play_sharing
from marram.lab.oracle.stream import Setting, Stream, make_stream

# Nobody's frames come exactly as often as another one's: rates differ by so much, or bursts would never part.
_RATES = 0.04


@dataclass(frozen=True, slots=True)
class Shared:
    """One policy in one run: over the frames of all its streams. `loss_s`: mean loss of a frame."""

    policy: str
    streams: int
    replicas: int
    loss_s: float
    p50_s: float
    p99_s: float
    miss_share: float
    sent_bytes: int


def crowd(links: Sequence[Link], setting: Setting, count: int) -> list[Stream]:
    """So many streams over `links`, in turns, from the moments at which streams begin."""
    draw = random.Random(count)
    found = []
    for number in range(count):
        link, round_ = links[number % len(links)], number // len(links)
        own = replace(setting, fps=setting.fps * draw.uniform(1 - _RATES, 1 + _RATES))
        from_s = OFFSETS_S[round_ % len(OFFSETS_S)] + round_ // len(OFFSETS_S)
        found.append(make_stream(f"{link.name}/{number}", own, link.up, from_s=from_s))
    return found


def sharing(streams: Sequence[Stream], replicas: int, makes: Mapping[str, Make]) -> list[Shared]:
    """Every policy, played by all `streams` at once."""
    found = []
    for name, make in makes.items():
        scores = play_sharing(streams, [make(stream) for stream in streams], replicas)
        frames = sum(len(score.latencies_s) for score in scores)
        answered = sorted(late for score in scores for late in score.latencies_s if late < math.inf) or [math.inf]
        found.append(
            Shared(
                name,
                len(streams),
                replicas,
                sum(score.loss_s for score in scores) / frames,
                answered[len(answered) // 2],
                answered[int(0.99 * len(answered))],
                sum(score.miss_share * len(score.latencies_s) for score in scores) / frames,
                sum(score.sent_bytes for score in scores),
            )
        )
    return found
