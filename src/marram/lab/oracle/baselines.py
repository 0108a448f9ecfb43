"""Policies to compare with, behind the same seam: what the literature and what incumbents do. For measuring only.

They are given what an offline profile would tell (`Profile`); the policy under test is not. None of them drops a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from marram.lab.oracle.stream import Stream
from marram.placement.circuit import PROBE_BYTES
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Decision, EdgeOutcome, LinkEstimate, Policy, Way
from marram.schema.load import LONGEST_S
from marram.schema.result import Place

_FOR_EVER_S = 1e6
_PROBE_AFTER_S = 0.7


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured beforehand, seconds."""

    edge_s: float
    cloud_s: float
    rtt_s: float

    @classmethod
    def of(cls, stream: Stream) -> Profile:
        setting = stream.setting
        return cls(setting.edge_s, setting.cloud_s, setting.rtt_s)


class _Baseline:
    """What they share: requests under way, the edge's queue, decisions without a time limit."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._edge_s = profile.edge_s
        self._out: dict[int, CloudSent] = {}
        self._heard_s = -math.inf

    def _way(self, ask: Ask) -> tuple[Place, float]:
        """Where to, and the delay expected there."""
        raise NotImplementedError

    def decide(self, ask: Ask) -> Decision:
        ways: dict[Place, Way] = {way.place: way for way in reversed(ask.ways)}
        if not ways:
            return Decision(Place.DROP, None, 0.0, "nobody may")
        place, predicted_s = self._way(ask)
        if place not in ways:
            place = next(iter(ways))
        timeout_s = None if place in (Place.EDGE, Place.DROP) else _FOR_EVER_S
        return Decision(place, ways[place], predicted_s, type(self).__name__, timeout_s)

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        if isinstance(outcome, EdgeOutcome):
            if 0 <= outcome.service_s <= LONGEST_S:
                self._edge_s += 0.2 * (outcome.service_s - self._edge_s)
        elif isinstance(outcome, CloudSent):
            self._out[outcome.id] = outcome
        elif (sent := self._out.pop(outcome.id, None)) is not None and outcome.ok:
            self._heard_s = outcome.now_s
            self._measure(sent, outcome)

    def _measure(self, sent: CloudSent, outcome: CloudOutcome) -> None:
        """A reply came."""

    def hedged(self) -> None:
        """See `Policy.hedged`."""

    def probe_due(self, now_s: float) -> int | None:
        return None

    def link(self) -> LinkEstimate:
        return LinkEstimate(None, None, True)

    def _at_edge_s(self, ask: Ask) -> float:
        # Whoever runs now is half done, on average.
        ahead = max(0.0, ask.edge_waiting - 0.5) if ask.edge_waiting else 0.0
        return self._edge_s * (1 + ahead)


class AlwaysEdge(_Baseline):
    """Everything at the edge."""

    def _way(self, ask: Ask) -> tuple[Place, float]:
        return Place.EDGE, self._at_edge_s(ask)


class AlwaysCloud(_Baseline):
    """Everything in the cloud."""

    def _way(self, ask: Ask) -> tuple[Place, float]:
        return Place.CLOUD, self._profile.rtt_s + self._profile.cloud_s


class StaticThreshold(_Baseline):
    """To the cloud while fewer than two are under way there."""

    def _way(self, ask: Ask) -> tuple[Place, float]:
        if len(self._out) < 2:
            return Place.CLOUD, self._profile.rtt_s + self._profile.cloud_s
        return Place.EDGE, self._at_edge_s(ask)


class Neurosurgeon(_Baseline):
    """Predicts both sides from profiles and the rate that the last transfer reached (Kang et al., ASPLOS 2017)."""

    alpha = 1.0
    rate_byte_s = 1e5

    def _measure(self, sent: CloudSent, outcome: CloudOutcome) -> None:
        spent_s = outcome.now_s - sent.now_s - self._profile.rtt_s - (outcome.service_s if sent.key else 0.0)
        if -LONGEST_S < spent_s < LONGEST_S:
            self.rate_byte_s += self.alpha * (sent.bytes / max(spent_s, 1e-3) - self.rate_byte_s)

    def _way(self, ask: Ask) -> tuple[Place, float]:
        far = next((way for way in ask.ways if way.place is Place.CLOUD), None)
        edge_s = self._at_edge_s(ask)
        if far is None:
            return Place.EDGE, edge_s
        transfer_s = max(0, far.payload_bytes) / max(self.rate_byte_s, 1.0)
        cloud_s = transfer_s + self._profile.rtt_s + self._profile.cloud_s
        return (Place.CLOUD, cloud_s) if cloud_s < edge_s else (Place.EDGE, edge_s)


class EwmaGreedy(Neurosurgeon):
    """The same with a moving average of the rate."""

    alpha = 0.3


class EwmaProbes(EwmaGreedy):
    """The same, an idle link probed with 6 kB."""

    def probe_due(self, now_s: float) -> int | None:
        return PROBE_BYTES if not self._out and now_s - self._heard_s > _PROBE_AFTER_S else None


class LinUcb(_Baseline):
    """ANS's μLinUCB with discounting (Zhang et al., INFOCOM 2021; discount .97 added): two arms, forced exploration.

    The cloud's delay is linear in x = (1, requests under way); the arm's lower confidence bound decides. Every
    ceil(T^¼)-th frame may not go to the edge; T doubles each time it is reached.
    """

    discount = 0.97
    alpha = 0.1

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._a = [1.0, 0.0, 1.0]  # the symmetric 2 x 2 matrix
        self._b = [0.0, 0.0]
        self._features: dict[int, float] = {}
        self._frame, self._horizon = 0, 64

    def _way(self, ask: Ask) -> tuple[Place, float]:
        self._frame += 1
        if self._frame >= self._horizon:
            self._horizon *= 2
        out = float(len(self._out))
        a, c, d = self._a
        determinant = max(a * d - c * c, 1e-9)
        theta = (d * self._b[0] - c * self._b[1]) / determinant, (a * self._b[1] - c * self._b[0]) / determinant
        spread = math.sqrt(max(0.0, (d - 2 * c * out + a * out * out) / determinant))
        cloud_s = theta[0] + theta[1] * out - self.alpha * math.sqrt(0.8) * spread
        forced = self._frame % math.ceil(self._horizon**0.25) == 0
        edge_s = self._at_edge_s(ask)
        return (Place.CLOUD, max(0.0, cloud_s)) if forced or cloud_s < edge_s else (Place.EDGE, edge_s)

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        if isinstance(outcome, CloudSent):
            self._features[outcome.id] = float(len(self._out))
        super().learn(outcome)

    def _measure(self, sent: CloudSent, outcome: CloudOutcome) -> None:
        out, delay_s = self._features.pop(sent.id, 0.0), outcome.now_s - sent.now_s
        if not 0 <= delay_s <= LONGEST_S:
            return
        self._a = [self.discount * old + new for old, new in zip(self._a, (1.0, out, out * out), strict=True)]
        self._b = [self.discount * old + new for old, new in zip(self._b, (delay_s, out * delay_s), strict=True)]


class KnowsThePresent(_Baseline):
    """A bound, no baseline: what this frame would take on each way, exactly; of the frames after it, nothing."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(Profile.of(stream))
        self._stream = stream
        self._link_s = self._free_s = 0.0

    def decide(self, ask: Ask) -> Decision:
        stream, now_s = self._stream, ask.now_s
        frame = round(now_s * stream.setting.fps)
        edge_way, far = ask.ways
        left_s = stream.up.finish(max(self._link_s, now_s), far.payload_bytes)
        cloud_s = left_s + stream.setting.rtt_s + stream.cloud_s[frame] - now_s
        done_s = max(self._free_s, now_s) + stream.edge_s[frame]
        if min(cloud_s, done_s - now_s) > stream.setting.deadline_s:
            return Decision(Place.DROP, None, 0.0, "late")
        if cloud_s < done_s - now_s:
            self._link_s = left_s
            return Decision(Place.CLOUD, far, cloud_s, "sooner", _FOR_EVER_S)
        self._free_s = done_s
        return Decision(Place.EDGE, edge_way, done_s - now_s, "sooner")


BASELINES: dict[str, Callable[[Profile], Policy]] = {
    "always-edge": AlwaysEdge,
    "always-cloud": AlwaysCloud,
    "static threshold": StaticThreshold,
    "Neurosurgeon": Neurosurgeon,
    "EWMA-greedy": EwmaGreedy,
    "EWMA + probes": EwmaProbes,
    "LinUCB, discounted": LinUcb,
}
