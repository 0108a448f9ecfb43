"""How near many devices come to a balancer that sees everything, with eight replicas, one slow, one coming and going.

`python -m bench.balance`. `ratio` is 1.5 over the worst p99 relative to the clairvoyant's, over loads (the mean of its
seeds): each of 32 devices has its own `placement.balance.Balancer`, called through its public interface, and replicas
tell each other their load and hand requests on as `cloud/loads.py` has them do (`placement.handing`). A virtual clock,
so nothing of this machine matters. The clairvoyant knows what truly remains to be done at each replica, what is on its
way there, and how fast it is, at the moment it asks; it does not know who will go. Round robin, random choice and least
connections stand beside it, each without and with handing on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

from bench._verdict import conclude
from marram.lab.crowd import Chooser, Crowd, World
from marram.lab.crowd_rules import Clairvoyant, LeastConnections, Random, RoundRobin
from marram.placement.balance import Balancer

GOAL = 1.5
LOADS = (0.3, 0.5, 0.7, 0.85)
SEEDS = (1, 2, 3)

Make = Callable[[Crowd, int], Chooser]


def shipped(crowd: Crowd, device: int) -> Chooser:
    """As a device has it: draws of its own."""
    return Balancer(random.Random(f"{crowd.world.seed}/{device}").random)


RULES: dict[str, tuple[Make, bool]] = {
    "clairvoyant": (Clairvoyant, False),
    "marram": (shipped, True),
    "marram, nothing handed on": (shipped, False),
    "least connections": (LeastConnections, False),
    "random": (Random, False),
    "round robin": (RoundRobin, False),
    "random, handed on": (Random, True),
    "round robin, handed on": (RoundRobin, True),
}


def main() -> None:
    """Simulate, print, say whether the goal is reached."""
    worst, figures = 0.0, {}
    for load in LOADS:
        p99 = {name: [_p99(load, seed, *rule) for seed in SEEDS] for name, rule in RULES.items()}
        best = mean(p99["clairvoyant"])
        print(f"load {load:.0%}: p99 of each seed, ms, and the mean over the clairvoyant's")
        for name, values in p99.items():
            shown = " ".join(f"{1000 * value:6.0f}" for value in values)
            print(f"  {name:<26} {shown}   {mean(values) / best:6.2f}")
        ratios = [ours / theirs for ours, theirs in zip(p99["marram"], p99["clairvoyant"], strict=True)]
        worst = max(worst, mean(p99["marram"]) / best)
        figures[f"load_{load:.0%}"] = {
            "marram": round(mean(p99["marram"]) / best, 2),
            "marram_spread": [round(min(ratios), 2), round(max(ratios), 2)],
            **{name.replace(" ", "_"): round(mean(p99[name]) / best, 2) for name in ("round robin", "random")},
            "least_connections": round(mean(p99["least connections"]) / best, 2),
            "clairvoyant_p99_ms": round(1000 * best, 1),
        }
    conclude("balance", GOAL / worst, 1.0, {"p99_over_clairvoyant": round(worst, 2), "goal_p99": GOAL, **figures})


def _p99(load: float, seed: int, make: Make, hands_on: bool) -> float:
    world = replace(World(seed=seed, length_s=30.0), load=load, hands_on=hands_on)
    return Crowd(world).run(make).quantile_s(0.99)


if __name__ == "__main__":
    main()
