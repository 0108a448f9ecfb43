"""The shipped cascade over what two real models answered: are its targets held, and how much does it send for that?

`python -m bench.cascade`. mobilenet_v1_0.25 (edge; float and quant) asks EfficientNet-Lite2 (cloud) about the labelled
photos, cropped and corrupted (`bench/_pictures.py`). Both models' answers are computed once; streams of them then go
through `placement/cascade.py`, which hears the cloud's answer only where it asked, as on a device. The photos' labels
judge it and are never told it. Each figure is over many streams: shuffled ones, and ones that drift in the middle from
good pictures to bad ones.

- Accuracy targets: the share of answers that are the cloud's (what it controls), and accuracy by the photos' labels
  relative to the cloud's (what the target is called). Held: the mean over streams, two standard errors less, is within
  a point of the target, in each setting by both.
- What is sent (checks included) beside the best fixed threshold of that stream in hindsight that reaches the same
  agreement as the cascade did, and beside an oracle that sends nothing but what the edge has wrong.
- Offload targets: never more than asked for, and the agreement reached beside the same two.
- `learnt`: cost (an error 1, asking the price) beside the best fixed threshold's in hindsight.

`ratio` is the worst setting's: what the fixed threshold sends over what the cascade sends, for the same agreement.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench import _pictures
from bench._verdict import conclude, skip
from marram.placement.cascade import Action, Cascade
from marram.placement.sureness import stratum_of, sureness
from marram.schema.agreement import lost
from marram.schema.errors import MarramError

GOAL = 0.9
POINT = 0.01
STREAMS = 16
COPIES = 4  # of each view in a stream
TARGETS = (0.99, 0.97, 0.95)
OFFLOADS = (0.1, 0.2, 0.4)
COSTS = (0.1, 0.3, 0.5, 0.7)
# A price that changes: so many frames of each in turn, as where a link fades.
FADING, FADE_FRAMES = (0.1, 0.6), 500


@dataclass(frozen=True, slots=True)
class Item:
    """One frame. `loss`: of the edge's answer, the cloud's being right; the rest is by the photo's labels."""

    stratum: int
    sure: float
    loss: float
    edge_right: bool
    cloud_right: bool


@dataclass(frozen=True, slots=True)
class Played:
    """Shares of all frames (0–1), but `accuracy`: relative to the cloud's, by the photos' labels; `cost` a frame."""

    sent: float
    agreement: float
    accuracy: float
    cost: float = 0.0


def items(views: Sequence[_pictures.View], edge: str) -> list[Item]:
    """What `edge` answered."""
    return [
        Item(
            stratum_of(view.edge[edge]),
            sureness(view.edge[edge]) or 0.0,
            lost(view.edge[edge], view.cloud),
            view.edge[edge].label in view.truth,
            view.cloud.label in view.truth,
        )
        for view in views
    ]


def play(cascade: Cascade, stream: Sequence[Item], draws: random.Random, price: Callable[[int], float]) -> Played:
    """One stream through the shipped cascade."""
    sent = right = cloud_right = 0
    kept = cost = 0.0
    for number, item in enumerate(stream):
        cost_now = price(number)
        judged = cascade.judge(item.stratum, cost_now, draws.random())
        if judged.action is not Action.ACCEPT:
            cascade.learn(judged, item.loss)
            sent += 1
            cost += cost_now
        escalated = judged.action is Action.ESCALATE
        kept += 0.0 if escalated else item.loss
        right += item.cloud_right if escalated else item.edge_right
        cloud_right += item.cloud_right
    frames = len(stream)
    return Played(sent / frames, 1 - kept / frames, right / cloud_right, (cost + kept) / frames)


@dataclass(frozen=True, slots=True)
class Curve:
    """All fixed thresholds of one stream in hindsight: points (share sent, agreement), the least sent first."""

    points: list[tuple[float, float]]
    wrong: float

    @classmethod
    def of(cls, stream: Sequence[Item]) -> Curve:
        frames, sent = len(stream), 0
        kept = wrong = sum(item.loss for item in stream)
        points = [(0.0, 1 - wrong / frames)]
        for _, alike in groupby(sorted(stream, key=lambda item: item.sure), key=lambda item: item.sure):
            for item in alike:
                sent, kept = sent + 1, kept - item.loss
            points.append((sent / frames, 1 - kept / frames))
        return cls(points, wrong / frames)

    def sent_for(self, agreement: float) -> float:
        """The least that a fixed threshold sends to reach it."""
        return next((sent for sent, reached in self.points if reached >= agreement - 1e-9), 1.0)

    def agreement_for(self, share: float) -> float:
        """The most that one reaches which sends no more than `share`."""
        return max(reached for sent, reached in self.points if sent <= share + 1e-9)

    def least_cost(self, cost: float) -> float:
        return min(cost * sent + 1 - reached for sent, reached in self.points)

    def oracle_sends(self, agreement: float) -> float:
        return max(0.0, self.wrong - (1 - agreement))


def streams(views: Sequence[_pictures.View], edge: str, kind: str) -> Iterator[tuple[list[Item], random.Random]]:
    """`shuffled`: each view `COPIES` times; `drift`: as long, half of it good pictures, half bad ones."""
    every = items(views, edge)
    good = [item for item, view in zip(every, views, strict=True) if view.strength <= 1]
    bad = [item for item, view in zip(every, views, strict=True) if view.strength > 1]
    half = COPIES * len(every) // 2
    for seed in range(STREAMS):
        draws = random.Random(seed)
        if kind == "shuffled":
            stream = every * COPIES
            draws.shuffle(stream)
        else:
            stream = draws.choices(good, k=half) + draws.choices(bad, k=half)
        yield stream, draws


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def rounded(**figures: float) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


class Report:
    """What every setting came to."""

    def __init__(self) -> None:
        self.ratio = float("inf")
        self.held = True
        self.figures: dict[str, dict[str, float]] = {}

    def accuracy(self, views: Sequence[_pictures.View], edge: str, kind: str) -> None:
        """The accuracy targets; prints a table."""
        print(f"\naccuracy targets, {edge}, {kind}: mean ± standard error of {STREAMS} streams")
        print("target   agreement         accuracy          within 1 pt   sent     fixed    oracle   fixed at target")
        for target in TARGETS:
            played: list[Played] = []
            fixed: list[float] = []
            oracle: list[float] = []
            aimed: list[float] = []
            for stream, draws in streams(views, edge, kind):
                played.append(play(Cascade(accuracy=target), stream, draws, lambda number: 0.0))
                curve = Curve.of(stream)
                fixed.append(curve.sent_for(played[-1].agreement))
                oracle.append(curve.oracle_sends(played[-1].agreement))
                aimed.append(curve.sent_for(target))
            agreed, agreed_error = spread([each.agreement for each in played])
            right, right_error = spread([each.accuracy for each in played])
            within = statistics.mean(min(each.agreement, each.accuracy) >= target - POINT for each in played)
            sent, better = (statistics.mean(values) for values in ([each.sent for each in played], fixed))
            held = min(agreed - 2 * agreed_error, right - 2 * right_error) >= target - POINT
            self.held &= held
            self.ratio = min(self.ratio, better / sent)
            print(
                f"{target:.0%}   {agreed:8.2%} ± {agreed_error:.2%}  {right:8.2%} ± {right_error:.2%}"
                f"   {within:8.0%}  {sent:9.1%} {better:8.1%} {statistics.mean(oracle):9.1%}"
                f" {statistics.mean(aimed):10.1%}   {'' if held else 'NOT HELD'}"
            )
            self.figures[f"{edge}_{kind}_{target:.0%}"] = rounded(
                agreement=agreed, agreement_error=agreed_error, accuracy=right, accuracy_error=right_error,
                within_a_point=within, sent=sent, fixed_sends=better, oracle_sends=statistics.mean(oracle),
            )  # fmt: skip

    def offload(self, views: Sequence[_pictures.View], edge: str, kind: str) -> None:
        """The offload targets; prints a table."""
        print(f"\noffload targets, {edge}, {kind}")
        print("target   sent (most)         agreement   fixed    oracle   edge alone")
        for share in OFFLOADS:
            played: list[Played] = []
            fixed: list[float] = []
            alone: list[float] = []
            for stream, draws in streams(views, edge, kind):
                played.append(play(Cascade(offload=share, checks=0.0), stream, draws, lambda number: 0.0))
                curve = Curve.of(stream)
                fixed.append(curve.agreement_for(share))
                alone.append(1 - curve.wrong)
            most = max(each.sent for each in played)
            self.held &= most <= share
            agreed, sent = (statistics.mean(v) for v in ([p.agreement for p in played], [p.sent for p in played]))
            edge_alone = statistics.mean(alone)
            print(
                f"{share:.0%} {sent:10.1%} ({most:.1%}) {agreed:15.1%} {statistics.mean(fixed):9.1%}"
                f" {min(1.0, edge_alone + share):8.1%} {edge_alone:9.1%}"
            )
            best = statistics.mean(fixed)
            self.figures[f"{edge}_{kind}_offload_{share:.0%}"] = rounded(sent_most=most, agreement=agreed, fixed=best)

    def learnt(self, views: Sequence[_pictures.View], edge: str) -> None:
        """What errors and asking cost together; prints a table."""
        print(f"\nlearnt threshold, {edge}, shuffled: cost of a frame, an error being 1")
        print("price     cascade              best fixed    regret   always edge  always cloud   oracle")
        prices: list[tuple[str, float, Callable[[int], float]]] = [
            (f"{cost:g}", cost, lambda number, cost=cost: cost) for cost in COSTS  # type: ignore[misc]
        ]  # fmt: skip
        low, high = FADING
        prices.append((f"{low:g}/{high:g}", (low + high) / 2, lambda n: FADING[n // FADE_FRAMES % 2]))
        for name, mean, price in prices:
            cost: list[float] = []
            fixed: list[float] = []
            wrong: list[float] = []
            for stream, draws in streams(views, edge, "shuffled"):
                cost.append(play(Cascade(), stream, draws, price).cost)
                curve = Curve.of(stream)
                # Of a price that knows nothing of the frames a fixed threshold pays the mean.
                fixed.append(curve.least_cost(mean))
                wrong.append(curve.wrong)
            ours, error = spread(cost)
            best, alone = statistics.mean(fixed), statistics.mean(wrong)
            print(
                f"{name:<8} {ours:8.4f} ± {error:.4f} {best:12.4f} {ours - best:+12.4f} {alone:10.4f} {mean:12.4f}"
                f" {alone * mean:12.4f}"
            )
            self.figures[f"{edge}_learnt_{name}"] = rounded(cost=ours, best_fixed=best)


def plot(views: Sequence[_pictures.View], edge: str, report: Report) -> None:
    """Share sent (across) and agreement (up): `.` fixed thresholds, `o` the oracle, `#` the cascade."""
    curve = Curve.of(items(views, edge))
    width, height = 64, 16
    lowest = 1 - curve.wrong
    grid = [[" "] * (width + 1) for _ in range(height + 1)]

    def put(sent: float, agreement: float, mark: str) -> None:
        row = round((agreement - lowest) / (1 - lowest) * height)
        grid[height - min(max(row, 0), height)][round(sent * width)] = mark

    for sent, agreement in curve.points:
        put(sent, agreement, ".")
        put(sent, min(1.0, lowest + sent), "o")
    for target in TARGETS:
        found = report.figures[f"{edge}_shuffled_{target:.0%}"]
        put(found["sent"], found["agreement"], "#")
    for share in OFFLOADS:
        found = report.figures[f"{edge}_shuffled_offload_{share:.0%}"]
        put(found["sent_most"], found["agreement"], "#")
    print(f"\n{edge}: agreement with the cloud over the share sent: # cascade, . fixed thresholds, o oracle")
    for number, row in enumerate(grid):
        print(f"{lowest + (1 - lowest) * (height - number) / height:6.0%} |{''.join(row)}")
    print(f"        0 %{'100 %':>{width - 3}}")


def main() -> None:
    """Measure, print, say whether the targets are held."""
    absent = _pictures.missing()
    if absent is not None:
        skip("cascade", GOAL, absent)
        return
    try:
        views = _pictures.views()
    except MarramError as error:
        skip("cascade", GOAL, f"its models cannot be had here: {error}")
        return
    right = statistics.mean(view.cloud.label in view.truth for view in views)
    print(f"{len(views)} views; by the photos' labels the cloud's model has {right:.1%} right")
    report = Report()
    for edge in _pictures.EDGES:
        alone = statistics.mean(view.edge[edge].label in view.truth for view in views)
        same = 1 - statistics.mean(item.loss for item in items(views, edge))
        print(f"\n== {edge}: {alone:.1%} right at the edge alone, {same:.1%} as the cloud")
        for kind in ("shuffled", "drift"):
            report.accuracy(views, edge, kind)
            report.offload(views, edge, kind)
        report.learnt(views, edge)
        plot(views, edge, report)
    conclude("cascade", report.ratio, GOAL, {"held": report.held, **report.figures}, also=report.held)


if __name__ == "__main__":
    main()
