"""Rules of choosing among replicas to compare with, each behind `lab.crowd.Chooser`. For measuring only."""

from __future__ import annotations

import itertools
import random

from marram.lab.crowd import Crowd
from marram.placement.balance import Choice
from marram.placement.contract import CloudOutcome, CloudSent


class _Rule:
    """Knows the replicas' names and learns nothing."""

    def __init__(self, crowd: Crowd, device: int) -> None:
        self.names = [each.name for each in crowd.replicas]
        self.draw = random.Random(f"{crowd.world.seed}/{device}")

    def sent(self, now_s: float, sent: CloudSent) -> None:
        """Nothing to remember."""

    def heard(self, now_s: float, outcome: CloudOutcome, link_s: float = 0.0) -> None:
        """Likewise."""

    def failed(self, now_s: float, outcome: CloudOutcome) -> None:
        """Likewise."""


class Random(_Rule):
    """Any of them."""

    def choose(self, now_s: float) -> Choice:
        return Choice(self.draw.choice(self.names))


class RoundRobin(_Rule):
    """One after another."""

    def __init__(self, crowd: Crowd, device: int) -> None:
        super().__init__(crowd, device)
        self._next = itertools.cycle(self.draw.sample(self.names, len(self.names)))

    def choose(self, now_s: float) -> Choice:
        return Choice(next(self._next))


class LeastConnections(_Rule):
    """The one where the fewest of our own requests are under way; among equals any."""

    def __init__(self, crowd: Crowd, device: int) -> None:
        super().__init__(crowd, device)
        self._under_way: dict[int, str] = {}

    def choose(self, now_s: float) -> Choice:
        held = list(self._under_way.values())
        return Choice(min(self.names, key=lambda name: (held.count(name), self.draw.random())))

    def sent(self, now_s: float, sent: CloudSent) -> None:
        self._under_way[sent.id] = sent.replica or ""

    def heard(self, now_s: float, outcome: CloudOutcome, link_s: float = 0.0) -> None:
        self._under_way.pop(outcome.id, None)

    def failed(self, now_s: float, outcome: CloudOutcome) -> None:
        self._under_way.pop(outcome.id, None)


class Clairvoyant(_Rule):
    """Knows each replica's true remaining work, what is on its way there, and how fast it is; not who will go."""

    def __init__(self, crowd: Crowd, device: int) -> None:
        super().__init__(crowd, device)
        self._crowd = crowd

    def choose(self, now_s: float) -> Choice | None:
        live = self._crowd.live()
        if not live:
            return None
        work_s = self._crowd.world.service_s
        return Choice(min(live, key=lambda each: each.remaining_s(now_s) + work_s * each.factor).name)
