"""How far placement is from the best that could have been done, over recorded and made links; see docs/benchmarks.md.

`python -m bench.oracle`. Streams in three settings; regret is the total loss over that of the schedule which knows the
future, less one. Every recording is used that lies under `../shared/data/links`; without them the made links alone.
Links that are cut now and then, and crowds of streams that share a few replicas, are reported apart.
`--live` has the policy run in real processes on three of the recordings, beside the simulation of these very runs.
`--cross-validate` chooses the policy's constants anew on half of the links, several times, and reports on the others.
`ratio` is the worst of goal ÷ regret; `ok` also wants each baseline's regret to be higher in each setting.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from bench._oracle_live import live
from bench._verdict import at_least, conclude
from marram.lab.oracle.compare import (
    OFFSETS_S,
    PRESENT,
    Fared,
    Link,
    bursty_links,
    contenders,
    made_links,
    mean_of_links,
    over,
    recorded_links,
    shipped,
)
from marram.lab.oracle.contention import Shared, crowd, sharing
from marram.lab.oracle.stream import SETTINGS
from marram.placement.constants import SHIPPED, Constants

_LINKS = Path(__file__).resolve().parents[2] / "shared" / "data" / "links"
_GOALS = {"A": 0.07, "B": 0.05, "C": 0.08}
_WORKERS = 2
# Of a stream's length.
_OUTAGES = ((0.25, 0.35), (0.6, 0.7))
# Streams, and the replicas they share: one answers fifty a second, a stream asks five times.
_CROWDS = ((1, 2), (10, 2), (30, 2), (100, 2), (100, 8))
_CROWD_FRAMES = 150
_FOLDS = 5
# What a cross-validation chooses among: the shipped constants, and each of them one step down and one up.
_GRID = [
    SHIPPED,
    replace(SHIPPED, drift=0.1, noise=0.05),
    replace(SHIPPED, drift=1.0, noise=0.2),
    replace(SHIPPED, probe_after_s=0.25),
    replace(SHIPPED, probe_after_s=1.0),
    replace(SHIPPED, depth=2),
    replace(SHIPPED, depth=8),
    replace(SHIPPED, gain=0.05),
    replace(SHIPPED, gain=0.2),
    replace(SHIPPED, learn=0.025),
    replace(SHIPPED, learn=0.1),
]


def _all(link: Link) -> list[Fared]:
    return over(link, contenders())


def _constants(link: Link, constants: Sequence[Constants]) -> list[Fared]:
    """One stream a link: what is compared differs by its constants alone, and eleven policies play each."""
    makes = {str(index): shipped(each) for index, each in enumerate(constants)}
    return over(link, makes, offsets_s=OFFSETS_S[:1])


def _cut(link: Link) -> list[Fared]:
    """One stream in each setting, its link away twice for a tenth of the time."""
    return over(link, contenders(), offsets_s=OFFSETS_S[:1], outages=_OUTAGES)


def _crowd(run: tuple[int, int]) -> list[Shared]:
    """So many streams at so many replicas, all on made links. Who knows the present knows no queue of others."""
    makes = {name: make for name, make in contenders().items() if name != PRESENT}
    return sharing(crowd(made_links(), replace(SETTINGS[0], frames=_CROWD_FRAMES), run[0]), run[1], makes)


def _links() -> list[Link]:
    recorded = recorded_links(_LINKS) if _LINKS.is_dir() else []
    if not recorded:
        print(f"no recordings under {_LINKS.name}: made links alone")
    return recorded + made_links()


def compare() -> None:
    """All policies over all links: tables, and the verdict. Bursty links are reported, and not in it."""
    links, apart = _links(), bursty_links()
    with Pool(_WORKERS) as pool:
        fared_on = pool.map(_all, [*links, *apart], chunksize=1)
        by_cut = pool.map(_cut, made_links(), chunksize=1)
        crowds = pool.map(_crowd, _CROWDS, chunksize=1)
    by_link, by_bursty = fared_on[: len(links)], fared_on[len(links) :]
    kinds = list(dict.fromkeys(link.kind for link in links))
    for kind in ["all", *kinds]:
        some = [fared for link, fared in zip(links, by_link, strict=True) if kind in ("all", link.kind)]
        _table(f"{kind}: {len(some)} links", some)
    _table(f"bursty, in no other figure: {len(apart)} links", by_bursty)
    _table(f"away for a fifth of the time, in no other figure: {len(by_cut)} made links", by_cut)
    _crowd_table(crowds)
    regret = {s.name: {p: mean_of_links(by_link, s.name, p)[0] for p in contenders()} for s in SETTINGS}
    ours = {name: of["marram"] for name, of in regret.items()}
    best = {
        name: min((value, policy) for policy, value in of.items() if policy not in ("marram", PRESENT))
        for name, of in regret.items()
    }
    times = sorted(us for fared in by_link for each in fared if each.policy == "marram" for us in each.decisions_us)
    print(f"a decision takes {times[len(times) // 2]:.0f} µs, {times[int(0.99 * len(times))]:.0f} µs at p99")
    for name, (value, policy) in best.items():
        print(f"{name}: {ours[name]:.1%}, goal {_GOALS[name]:.0%}; best baseline {policy} {value:.1%}")
    figures = {
        "regret": {name: round(value, 4) for name, value in ours.items()},
        "goals": _GOALS,
        "best_baseline": {name: {policy: round(value, 4)} for name, (value, policy) in best.items()},
        "knows_the_present": {name: round(of[PRESENT], 4) for name, of in regret.items()},
        "bursty": {s.name: round(mean_of_links(by_bursty, s.name, "marram")[0], 4) for s in SETTINGS},
        "outages": {s.name: round(mean_of_links(by_cut, s.name, "marram")[0], 4) for s in SETTINGS},
        "crowds": {f"{some[0].streams} at {some[0].replicas}": round(_against_the_best(some), 3) for some in crowds},
        "links": len(links),
        "recorded": sum(link.kind != "synthetic" for link in links),
        "decision_p50_us": round(times[len(times) // 2], 1),
        "decision_p99_us": round(times[int(0.99 * len(times))], 1),
    }
    below = all(ours[name] < value for name, (value, _) in best.items())
    ratio = at_least(**{name: (max(value, 1e-9), _GOALS[name]) for name, value in ours.items()})
    conclude("oracle", ratio, 1.0, figures, also=below)


def _table(title: str, by_link: Sequence[Sequence[Fared]]) -> None:
    print(f"{title}; regret % ± standard error over links, then of all streams p50 and p99 ms, misses %, kB a minute")
    for policy in contenders():
        cells = []
        for setting in SETTINGS:
            mean, error = mean_of_links(by_link, setting.name, policy)
            own = [e for fared in by_link for e in fared if e.setting == setting.name and e.policy == policy]
            minutes = len(own) * setting.frames / setting.fps / 60
            cells.append(
                f"{setting.name} {100 * mean:6.1f} ± {100 * error:4.1f}"
                f" {1000 * sum(e.p50_s for e in own) / len(own):4.0f} {1000 * max(e.p99_s for e in own):6.0f}"
                f" {100 * sum(e.miss_share for e in own) / len(own):5.1f}"
                f" {sum(e.sent_bytes for e in own) / 1000 / minutes:6.0f}"
            )
        print(f"  {policy:<19} {' | '.join(cells)}", flush=True)


def _against_the_best(crowd: Sequence[Shared]) -> float:
    """The mean loss over that of the best baseline."""
    ours = next(each.loss_s for each in crowd if each.policy == "marram")
    return ours / min(each.loss_s for each in crowd if each.policy != "marram")


def _crowd_table(crowds: Sequence[Sequence[Shared]]) -> None:
    runs = ", ".join(f"{some[0].streams} at {some[0].replicas}" for some in crowds)
    print(f"streams of A that share replicas ({runs}); mean loss ms, p50 and p99 ms, misses %, kB a minute and stream")
    for rows in zip(*crowds, strict=True):
        cells = [
            f"{1000 * e.loss_s:4.0f} {1000 * e.p50_s:5.0f} {1000 * e.p99_s:6.0f} {100 * e.miss_share:5.1f}"
            f" {e.sent_bytes / 1000 / e.streams * 60 * SETTINGS[0].fps / _CROWD_FRAMES:5.0f}"
            for e in rows
        ]
        print(f"  {rows[0].policy:<19} {' | '.join(cells)}", flush=True)
    ratios = ", ".join(f"{_against_the_best(some):.2f}" for some in crowds)
    print(f"  mean loss over that of the best baseline: {ratios}")


def cross_validate() -> None:
    """Choose the constants on half of the links, report on the other half: what the shipped ones leave, or flatter."""
    links = _links()
    with Pool(_WORKERS) as pool:
        by_link = pool.map(partial(_constants, constants=_GRID), links, chunksize=1)
    at = _GRID.index(SHIPPED)

    def regret(some: Sequence[int], index: int) -> float:
        """Mean over settings, each against its goal, so that none outweighs the others."""
        chosen = [by_link[link] for link in some]
        return sum(mean_of_links(chosen, s.name, str(index))[0] / _GOALS[s.name] for s in SETTINGS) / len(SETTINGS)

    draw, gaps = random.Random(1), []
    for fold in range(_FOLDS):
        order = list(range(len(links)))
        draw.shuffle(order)
        half = len(order) // 2
        for learnt_on, held_out in ((order[:half], order[half:]), (order[half:], order[:half])):
            chosen = min(range(len(_GRID)), key=lambda index: regret(learnt_on, index))
            figures = []
            for setting in SETTINGS:
                some = [by_link[link] for link in held_out]
                there = mean_of_links(some, setting.name, str(chosen))[0]
                here = mean_of_links(some, setting.name, str(at))[0]
                figures.append(f"{setting.name} {there:.2%} (shipped {here:.2%})")
            gaps.append(regret(held_out, at) - regret(held_out, chosen))
            print(f"fold {fold}: {_GRID[chosen]}: held out {', '.join(figures)}", flush=True)
    mean = sum(gaps) / len(gaps)
    print(
        f"on links not chosen by, the shipped constants are {mean:+.3f} goals from those chosen (mean of {len(gaps)})"
    )
    conclude("oracle-cross-validation", None, 1.0, {"gap_in_goals": round(mean, 4), "worst": round(max(gaps), 4)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare; or as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m bench.oracle", description=__doc__)
    parser.add_argument("--cross-validate", action="store_true", help="choose the constants anew on half of the links")
    parser.add_argument("--live", action="store_true", help="real processes and shaped links, three recordings")
    asked = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if asked.cross_validate:
        cross_validate()
    elif asked.live:
        live(_LINKS)
    else:
        compare()


if __name__ == "__main__":
    main()
