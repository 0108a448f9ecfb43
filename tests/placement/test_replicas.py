"""The policy over several replicas of one cloud model: whom it names, and what one that fails means for the others."""

from __future__ import annotations

from marram.placement.contract import Ask, CloudOutcome, CloudSent, Decision, Way
from marram.placement.policy import LatencyPolicy
from marram.schema.load import Load
from marram.schema.result import Place

CLOUD = Way(Place.CLOUD, "lite2@1 224x224", 5_000)


class Rig:
    """A policy that may ask the cloud only, on a clock of its own; every reply takes 20 ms of link."""

    def __init__(self) -> None:
        self.policy = LatencyPolicy(seed=3)
        self.now_s, self.number = 10.0, 0

    def probe(self, *loads: Load) -> None:
        self._exchange(None, 200, 0.0, None, loads)

    def answer(self, replica: str, service_s: float = 0.02) -> None:
        self._exchange(CLOUD.key, 5_000, service_s, replica, ())

    def _exchange(
        self, key: str | None, size: int, service_s: float, replica: str | None, loads: tuple[Load, ...]
    ) -> None:
        self.number += 1
        self.policy.learn(CloudSent(self.now_s, self.number, key, size, replica))
        self.now_s += 0.02 + service_s
        self.policy.learn(
            CloudOutcome(self.now_s, self.number, True, 0.0, service_s, replica=replica, waiting=0, loads=loads)
        )

    def decide(self) -> Decision:
        self.now_s += 0.1
        return self.policy.decide(Ask(self.now_s, (CLOUD,)))


def load(replica: str, waiting: int, service_s: float = 0.02, model: str = "lite2@1") -> Load:
    return Load(replica, model, waiting, waiting * service_s, service_s)


def test_a_probe_tells_of_replicas_that_were_never_asked() -> None:
    rig = Rig()
    rig.answer("slow", 0.3)
    for _ in range(4):
        rig.probe(load("slow", 9, 0.3), load("fast", 0), load("other", 0, model="lite0@1"))
    decision = rig.decide()
    assert decision.place is Place.CLOUD and decision.replica == "fast"
    assert decision.considered[0].replica == "fast"


def test_one_replica_that_hangs_is_left_alone_and_not_the_model() -> None:
    rig = Rig()
    for _ in range(4):
        rig.answer("hangs")
        rig.answer("well")
    rig.number += 1
    rig.policy.learn(CloudSent(rig.now_s, rig.number, CLOUD.key, 5_000, "hangs"))
    hung = rig.number
    rig.now_s += 0.5
    rig.probe()  # the way there is open
    rig.policy.learn(CloudOutcome(rig.now_s, hung, False, replica="hangs"))
    rig.probe()
    decision = rig.decide()
    assert decision.place is Place.CLOUD and decision.replica == "well"
