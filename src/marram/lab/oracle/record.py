"""What a live run wrote down, and that run as a stream: what the hindsight and the simulated policy are given.

All times are `time.monotonic`'s, which the processes of one machine share.
"""

from __future__ import annotations

import json
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from marram.lab.oracle.stream import Setting, Stream, make_stream
from marram.lab.traces import Direction
from marram.pipeline.contract import Frame
from marram.placement.contract import (
    Ask,
    CloudOutcome,
    CloudSent,
    Decision,
    EdgeOutcome,
    LinkEstimate,
    Policy,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A frame that was answered: `answered_s` and `released_s` (in order) after its capture at `captured_s`."""

    number: int
    captured_s: float
    place: str
    answered_s: float
    released_s: float


@dataclass(slots=True)
class Record:
    """What the device saw. `edge`, `cloud`: (when it ended, how long it took there, a replica's queue included).

    `sent`: (when, bytes), probes included. `rtt_s`: of the idle link.
    """

    answers: list[Answer] = field(default_factory=list)
    edge: list[tuple[float, float]] = field(default_factory=list)
    cloud: list[tuple[float, float]] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)
    payload_bytes: int = 0
    rtt_s: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Record:
        told = json.loads(file.read_text(encoding="utf-8"))
        pairs = {name: [(at, took) for at, took in told[name]] for name in ("edge", "cloud", "sent")}
        return cls(**told | pairs | {"answers": [Answer(**each) for each in told["answers"]]})


class Recorder:
    """The shipped policy, and a sink, both writing down what passes through them."""

    def __init__(self, policy: Policy) -> None:
        self.record = Record()
        self._policy = policy
        self._lock = threading.Lock()

    # ------------------------------------------------ placement.contract.Policy

    def decide(self, ask: Ask) -> Decision:
        return self._policy.decide(ask)

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        now_s = time.monotonic()
        with self._lock:
            if isinstance(outcome, EdgeOutcome):
                self.record.edge.append((now_s, outcome.service_s))
            elif isinstance(outcome, CloudSent):
                self.record.sent.append((now_s, outcome.bytes))
                if outcome.key is not None:
                    self.record.payload_bytes = outcome.bytes
            elif outcome.ok and outcome.service_s > 0:  # probes' answers take no time there
                self.record.cloud.append((now_s, outcome.queue_s + outcome.service_s))
        self._policy.learn(outcome)

    def hedged(self) -> None:
        self._policy.hedged()

    def probe_due(self, now_s: float) -> int | None:
        return self._policy.probe_due(now_s)

    def link(self) -> LinkEstimate:
        return self._policy.link()

    # ------------------------------------------------ pipeline.contract.Sink

    def write(self, frame: Frame) -> None:
        """Frames are numbered by the first of their numbers."""
        placed = frame.placed
        assert placed is not None
        number = round(frame.reading[0])
        answer = Answer(number, frame.captured_s, placed.place.value, placed.answered_s, placed.latency_s)
        self.record.answers.append(answer)

    def close(self) -> None:
        """See `pipeline.contract.Sink`."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What was offered: frame k when `offered_s[k]` says. The first `warm` are not counted.

    `link_began_s`: when the link was at the beginning of its trace. `up_bytes`: what it carried since `link_seen_s`.
    `waited_share`: of the time in which anything on this machine waited for a processor (Linux tells; else None).
    """

    offered_s: tuple[float, ...]
    warm: int
    link_began_s: float
    link_seen_s: float
    up_bytes: int
    waited_share: float | None = None


def latencies_s(record: Record, offered: Offered, *, released: bool) -> list[float]:
    """Of each counted frame from when it was offered; infinity: it was skipped, dropped or never answered.

    `released`: until it left the pipeline, after all frames before it; else until its answer was there.
    """
    late = [math.inf] * len(offered.offered_s)
    for answer in record.answers:
        if 0 <= answer.number < len(late):
            took_s = answer.released_s if released else answer.answered_s
            late[answer.number] = answer.captured_s + took_s - offered.offered_s[answer.number]
    return late[offered.warm :]


def in_order(latencies: Sequence[float], fps: float) -> list[float]:
    """The same frames when each that is answered waits for those answered before it."""
    last_s, ordered = 0.0, []
    for number, late_s in enumerate(latencies):
        captured_s = number / fps
        if late_s < math.inf:
            last_s = max(last_s, captured_s + late_s)
            late_s = last_s - captured_s
        ordered.append(late_s)
    return ordered


def overhead_bytes(record: Record, offered: Offered) -> float:
    """What the link carried for each message besides its payload: framing, encryption, the agent's small talk."""
    sent = [size for at_s, size in record.sent if at_s >= offered.link_seen_s]
    return max(0.0, (offered.up_bytes - sum(sent)) / max(1, len(sent)))


def streams_of(name: str, setting: Setting, up: Direction, record: Record, offered: Offered) -> tuple[Stream, Stream]:
    """The run as a policy would live through it, warm-up included, and its counted part, for the hindsight.

    The link is where it was, messages are as large as they were, and a frame takes at either place what inferences
    took there at that moment.
    """
    size = round(record.payload_bytes + overhead_bytes(record, offered))
    edge_s, cloud_s = _typical(record.edge, setting.edge_s), _typical(record.cloud, setting.cloud_s)
    measured = replace(setting, payload_bytes=size, edge_s=edge_s, cloud_s=cloud_s, rtt_s=record.rtt_s)

    def stream(first: int) -> Stream:
        at_s = offered.offered_s[first:]
        kind = replace(measured, frames=len(at_s))
        made = make_stream(name, kind, up, from_s=at_s[0] - offered.link_began_s)
        return replace(made, edge_s=_nearest(record.edge, at_s, edge_s), cloud_s=_nearest(record.cloud, at_s, cloud_s))

    return stream(0), stream(offered.warm)


def _typical(measured: Sequence[tuple[float, float]], otherwise_s: float) -> float:
    times = sorted(took_s for _, took_s in measured)
    return times[len(times) // 2] if times else otherwise_s


def _nearest(measured: Sequence[tuple[float, float]], at_s: Sequence[float], otherwise_s: float) -> tuple[float, ...]:
    """For each moment, what an inference took that began nearest to it."""
    begun = sorted((ended_s - took_s, took_s) for ended_s, took_s in measured)
    if not begun:
        return (otherwise_s,) * len(at_s)
    starts = [start_s for start_s, _ in begun]

    def took(moment_s: float) -> float:
        after = bisect_left(starts, moment_s)
        near = begun[max(0, after - 1) : after + 1]
        return min(near, key=lambda one: abs(one[0] - moment_s))[1]

    return tuple(map(took, at_s))
