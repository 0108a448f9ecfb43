"""What a decision costs the frames after it: each choice is rolled out over the queues of the link and of the edge.

A frame that goes now keeps the link (or the edge) busy when the next one comes. Each first choice is followed by some
frames that choose greedily, with today's estimates (a rollout: Bertsekas, "Dynamic programming and optimal control",
vol. I, 6.4; one step of policy improvement over the greedy choice). Once both queues are empty all choices cost the
same from there on, so it mostly ends early.

Where frames may be dropped and the two together cannot keep up (`Rollout.overloaded`), some must be, and no frame waits
as long as until the next one comes: that one could have its place, be answered sooner, and something is lost either
way. (An exchange argument; a frame that waits less keeps its place, for without it the place would stand empty.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from marram.placement.lognormal import expected_loss


class Lane(NamedTuple):
    """How a later frame fares on one of the two queues: `fixed_s` and, log-normal, `vary_s` once it has its turn.

    `busy_s`: for how long it keeps the queue busy, `price_s` what it costs besides.
    """

    fixed_s: float
    vary_s: float
    spread: float
    busy_s: float
    price_s: float


class First(NamedTuple):
    """A first choice: its own expected loss, and how long it leaves edge and link busy from now on. Seconds."""

    loss_s: float
    edge_s: float
    link_s: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """`depth` frames, one each `every_s`, go by `edge` or `link` (None: no such way), or are dropped for `miss_s`."""

    depth: int
    every_s: float
    edge: Lane | None
    link: Lane | None
    deadline_s: float | None
    miss_s: float
    may_drop: bool
    overloaded: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "overloaded", self.may_drop and self._rate() * self.every_s < 1)

    def _rate(self) -> float:
        """Frames a second that edge and link can answer in time, were nothing in their way."""
        rate = 0.0
        for lane in (self.edge, self.link):
            if lane is not None and (self.deadline_s is None or lane.fixed_s + lane.vary_s < self.deadline_s):
                rate += 1 / lane.busy_s if lane.busy_s > 0 else math.inf
        return rate

    def loss_s(self, first: First) -> float:
        """Expected loss of the first choice and of the frames after it, in sum."""
        edge, link, deadline_s, miss_s = self.edge, self.link, self.deadline_s, self.miss_s
        longest_s = self.every_s if self.overloaded else math.inf
        edge_s, link_s, total_s, passed_s = first.edge_s, first.link_s, first.loss_s, 0.0
        for step in range(self.depth):
            passed_s += self.every_s
            edge_wait_s = edge_s - passed_s if edge_s > passed_s else 0.0
            link_wait_s = link_s - passed_s if link_s > passed_s else 0.0
            idle = not edge_wait_s and not link_wait_s
            best_s, chosen = (miss_s, 0) if self.may_drop else (float("inf"), 0)
            if edge is not None and edge_wait_s < longest_s:
                loss_s = edge.price_s + expected_loss(
                    edge.fixed_s + edge_wait_s, edge.vary_s, edge.spread, deadline_s, miss_s
                )
                if loss_s < best_s:
                    best_s, chosen = loss_s, 1
            if link is not None and link_wait_s < longest_s:
                # How long it waits is as uncertain as how long it takes: both hang on the rate.
                loss_s = link.price_s + expected_loss(
                    link.fixed_s, link.vary_s + link_wait_s, link.spread, deadline_s, miss_s
                )
                if loss_s < best_s:
                    best_s, chosen = loss_s, 2
            if idle and self._drains(chosen):
                return total_s + (self.depth - step) * best_s
            total_s += best_s
            if chosen == 1 and edge is not None:
                edge_s = max(edge_s, passed_s) + edge.busy_s
            elif chosen == 2 and link is not None:
                link_s = max(link_s, passed_s) + link.busy_s
        return total_s

    def _drains(self, chosen: int) -> bool:
        """Whether what an idle system chooses has ended when the next frame comes."""
        lane = (None, self.edge, self.link)[chosen]
        return lane is None or lane.busy_s <= self.every_s
