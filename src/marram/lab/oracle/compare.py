"""Policies side by side over many links: regret against the best schedule in hindsight, link by link."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marram.lab.oracle.baselines import BASELINES, KnowsThePresent, Profile
from marram.lab.oracle.play import Score, play
from marram.lab.oracle.schedule import best_loss_s
from marram.lab.oracle.stream import SETTINGS, Setting, Stream, make_stream
from marram.lab.traces import SHAPES, Direction, bursty, read_mahimahi, read_sabre, synthetic
from marram.placement.constants import SHIPPED, Constants
from marram.placement.contract import Policy
from marram.placement.policy import LatencyPolicy

# Where in a recording streams begin, seconds.
OFFSETS_S = (5.0, 40.0, 80.0)
# Made here, five of each kind: they ship, the recordings do not.
_SEEDS = range(1, 6)
# Bursty ones, apart from the others: the policy was developed on seeds below these.
_BURSTY_SEEDS = range(21, 31)
PRESENT = "knows the present"

Make = Callable[[Stream], Policy]


@dataclass(frozen=True, slots=True)
class Link:
    """One link to run streams over. `kind`: what it is reported with."""

    name: str
    kind: str
    up: Direction


def made_links() -> list[Link]:
    """The synthetic ones, which ship."""
    return [Link(f"{shape}:{seed}", "synthetic", synthetic(shape, seed).up) for shape in SHAPES for seed in _SEEDS]


def bursty_links() -> list[Link]:
    """Saturated cellular links, which ship as well."""
    return [Link(f"bursty:{seed}", "bursty", bursty(seed).up) for seed in _BURSTY_SEEDS]


def recorded_links(folder: Path) -> list[Link]:
    """Every recording under `folder` (`mahimahi/`, `sabre/`), none left out."""
    links = [
        Link(file.name, "mahimahi", read_mahimahi(file).up)
        for file in sorted((folder / "mahimahi").iterdir())
        if file.suffix in (".up", ".down")
    ]
    for kind in ("3Glogs", "4Glogs"):
        files = sorted((folder / "sabre" / kind).glob("*.json"))
        links += [Link(f"{kind}/{file.name}", kind, read_sabre(file).up) for file in files]
    return links


def shipped(constants: Constants = SHIPPED) -> Make:
    """The policy under test, through its public interface."""
    return lambda stream: LatencyPolicy(constants=constants)


def contenders() -> dict[str, Make]:
    """All to compare: the policy under test, the baselines, and the bound."""

    def baseline(make: Callable[[Profile], Policy]) -> Make:
        return lambda stream: make(Profile.of(stream))

    return {
        "marram": shipped(),
        **{name: baseline(make) for name, make in BASELINES.items()},
        PRESENT: KnowsThePresent,
    }


@dataclass(frozen=True, slots=True)
class Fared:
    """One policy on one stream: `regret` as a share of the best loss, and what else is worth knowing."""

    setting: str
    policy: str
    regret: float
    p50_s: float
    p99_s: float
    miss_share: float
    sent_bytes: int
    hedges: int
    decisions_us: tuple[float, ...]

    @classmethod
    def of(cls, policy: str, score: Score, best_s: float) -> Fared:
        return cls(
            score.setting.name,
            policy,
            score.loss_s / best_s - 1,
            score.quantile_s(0.5),
            score.quantile_s(0.99),
            score.miss_share,
            score.sent_bytes,
            score.hedges,
            tuple(score.decisions_us),
        )


def over(
    link: Link,
    makes: Mapping[str, Make],
    settings: Sequence[Setting] = SETTINGS,
    offsets_s: Sequence[float] = OFFSETS_S,
    outages: Sequence[tuple[float, float]] = (),
) -> list[Fared]:
    """Every policy on every stream of one link. `outages`: from and to, as shares of a stream's length."""
    fared = []
    for setting in settings:
        for offset_s in offsets_s:
            length_s = setting.frames / setting.fps
            cuts = [(begin * length_s, end * length_s) for begin, end in outages]
            stream = make_stream(link.name, setting, link.up, from_s=offset_s, outages=cuts)
            best_s = best_loss_s(stream)
            fared += [Fared.of(name, play(stream, make(stream)), best_s) for name, make in makes.items()]
    return fared


def mean_of_links(by_link: Sequence[Sequence[Fared]], setting: str, policy: str) -> tuple[float, float]:
    """Mean regret and its standard error. Streams of one link are alike, so each link counts as one sample."""
    means = []
    for fared in by_link:
        own = [each.regret for each in fared if each.setting == setting and each.policy == policy]
        means.append(sum(own) / len(own))
    mean = sum(means) / len(means)
    if len(means) < 2:
        return mean, math.nan
    variance = sum((each - mean) ** 2 for each in means) / (len(means) - 1)
    return mean, math.sqrt(variance / len(means))
