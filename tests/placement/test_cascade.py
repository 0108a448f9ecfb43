"""The cascade on made streams: targets held, budgets never broken, empty answers, drift, absence, restarts."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.placement.cascade import Action, Cascade, Judged
from marram.placement.sureness import EMPTY, LEVELS, STRATA, UNTOLD, floor_of, stratum_of, sureness
from marram.placement.tally import Tally
from marram.placement.thresholds import chain
from marram.schema.model import Task
from marram.schema.result import Detection, Result

# ------------------------------------------------ how sure an answer is


def label(confidence: float, second: float | None = None) -> Result:
    top = [("a", confidence)] + ([("b", second)] if second is not None else [])
    return Result(Task.CLASSIFICATION, "m@1", "a", confidence, tuple(top))


def boxes(*confidences: float) -> Result:
    found = tuple(Detection("a", confidence, (0, 0, 1, 1)) for confidence in confidences)
    return Result(Task.DETECTION, "m@1", detections=found)


def score(value: float, threshold: float | None = 1.0) -> Result:
    return Result(Task.ANOMALY, "m@1", score=value, threshold=threshold)


def test_a_close_race_is_less_sure() -> None:
    assert stratum_of(label(0.5, 0.1)) > stratum_of(label(0.5, 0.45)) > stratum_of(label(0.3, 0.25))
    assert stratum_of(label(0.999, 0.0)) > stratum_of(label(0.99, 0.0)) > stratum_of(label(0.9, 0.0))
    assert sureness(label(0.8)) == pytest.approx(0.7)  # one label told: the second has what is left


def test_a_detection_is_as_sure_as_its_least_sure_box_and_nothing_found_is_a_state_of_its_own() -> None:
    assert stratum_of(boxes(0.9, 0.6)) == stratum_of(boxes(0.6)) < stratum_of(boxes(0.9))
    assert stratum_of(boxes()) == EMPTY


def test_a_score_is_as_sure_as_it_is_far_from_the_threshold_on_either_side() -> None:
    assert stratum_of(score(2.0)) == stratum_of(score(0.5)) > stratum_of(score(1.1))
    value = Result(Task.REGRESSION, "m@1", value=4.0, threshold=1.0)
    assert stratum_of(value) == stratum_of(score(4.0))
    for untold in (score(2.0, None), score(math.nan), Result(Task.REGRESSION, "m@1", value=3.0), score(-1.0)):
        assert stratum_of(untold) == UNTOLD


@given(st.floats(0, 1), st.floats(0, 1))
def test_surer_is_never_a_lower_stratum(one: float, other: float) -> None:
    low, high = sorted((one, other))
    strata = stratum_of(boxes(low)), stratum_of(boxes(high))
    assert 0 <= strata[0] <= strata[1] < LEVELS
    assert floor_of(strata[0]) <= low + 1e-9


# ------------------------------------------------ streams

Frame = tuple[int, float]  # stratum, loss


def made(draws: random.Random, shift: float = 0.0) -> Iterator[Frame]:
    """Frames whose edge is wrong less often the surer it is: from 62 % to about none. `shift`: wrong more often."""
    while True:
        stratum = min(max(round(draws.gauss(24, 7)), 0), LEVELS - 1)
        wrong = min(1.0, (1 + shift) / (1 + math.exp((stratum - 18) / 3)))
        yield stratum, float(draws.random() < wrong)


class Run:
    """Frames through a cascade; what came of it, as shares of the frames."""

    def __init__(self, cascade: Cascade, frames: Iterator[Frame], count: int, seed: int, cost: float = 0.0) -> None:
        draws = random.Random(seed + 1000)
        asked = kept = 0.0
        self.actions = []
        for _ in range(count):
            stratum, loss = next(frames)
            judged = cascade.judge(stratum, cost, draws.random())
            self.actions.append(judged.action)
            if judged.action is not Action.ACCEPT:
                asked += 1
                cascade.learn(judged, loss)
            if judged.action is not Action.ESCALATE:
                kept += loss
        self.asked, self.lost = asked / count, kept / count
        self.cost = cost * self.asked + self.lost


@pytest.mark.parametrize("target", [0.99, 0.95])
def test_an_accuracy_target_is_held_and_sends_hardly_more_than_the_best_threshold(target: float) -> None:
    lost, asked = [], []
    for seed in range(6):
        run = Run(Cascade(accuracy=target), made(random.Random(seed)), 6000, seed)
        lost.append(run.lost)
        asked.append(run.asked)
        assert run.lost < 1 - target + 0.01  # each of them within a point
    assert statistics.mean(lost) <= (1 - target) * 1.1
    frames = made(random.Random(99))
    stream = sorted((next(frames) for _ in range(6000)), reverse=True)
    total, kept = 0.0, 0
    for kept, (_, loss) in enumerate(stream):  # noqa: B007 - where it stops is what is asked
        total += loss
        if total > (1 - target) * len(stream):
            break
    assert statistics.mean(asked) < (1 - kept / len(stream)) + 0.10


def test_accuracy_is_held_through_a_drift_that_sureness_does_not_show() -> None:
    """The edge goes wrong twice as often at the same confidence: only answers of the cloud can tell."""
    before, after, frozen = [], [], []
    for seed in range(4):
        cascade = Cascade(accuracy=0.97)
        before.append(Run(cascade, made(random.Random(seed)), 5000, seed).lost)
        settled = Cascade(accuracy=0.97)
        settled.restore(json.loads(json.dumps(cascade.saved())))
        worse = made(random.Random(seed + 50), shift=1.5)
        after.append(Run(cascade, worse, 5000, seed).lost)
        # What the threshold of before would have lost.
        accepted = [settled.judge(stratum, 0.0, 1.0).action is Action.ACCEPT for stratum in range(STRATA)]
        worse = made(random.Random(seed + 50), shift=1.5)
        frozen.append(sum(loss for stratum, loss in (next(worse) for _ in range(5000)) if accepted[stratum]) / 5000)
    assert statistics.mean(before) <= 0.033
    assert statistics.mean(frozen) > 0.045
    assert statistics.mean(after) <= 0.04


def test_what_it_says_of_a_drift() -> None:
    cascade = Cascade(accuracy=0.97)
    Run(cascade, made(random.Random(1)), 4000, 1)
    assert not any("as often as known" in line for line in cascade.explain())
    Run(cascade, made(random.Random(2), shift=2.0), 300, 2)
    assert any("as often as known" in line for line in cascade.explain())


def test_at_first_everything_is_asked_and_it_says_so() -> None:
    cascade = Cascade(accuracy=0.99)
    run = Run(cascade, iter([(40, 0.0)] * 399), 399, 0)
    assert run.asked == 1.0
    assert cascade.explain() == ["learning: 399 of 400 answers compared, all are sent to the cloud"]
    assert cascade.judge(40, 0.0, 1.0).reason == "learning"
    cascade.learn(cascade.judge(40, 0.0, 1.0), 0.0)
    assert cascade.judge(40, 0.0, 1.0).action is Action.ACCEPT
    assert "100% of the frames" in cascade.explain()[0]


def test_a_target_out_of_reach_sends_everything() -> None:
    draws = random.Random(3)
    coin = ((30, float(draws.random() < 0.5)) for _ in range(2000))
    assert Run(Cascade(accuracy=0.99), coin, 2000, 3).asked == 1.0


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_a_budget_is_used_and_never_overdrawn(share: float) -> None:
    cascade, frames = Cascade(offload=share, checks=0.0), made(random.Random(5))
    run = Run(cascade, frames, 6000, 5)
    sent = 0
    for number, action in enumerate(run.actions, 1):
        sent += action is not Action.ACCEPT
        assert sent <= share * number + 1e-6
    assert run.asked > 0.9 * share
    # Another kind of frames, all less sure: still.
    harder = ((max(stratum - 15, 0), loss) for stratum, loss in made(random.Random(6)))
    assert Run(cascade, harder, 6000, 6).asked <= share + 0.06


def test_a_budget_goes_to_the_least_sure() -> None:
    cascade = Cascade(offload=0.3, checks=0.0)
    Run(cascade, made(random.Random(7)), 3000, 7)
    frames = made(random.Random(8))
    escalated, accepted = [], []
    for _ in range(2000):
        stratum, _ = next(frames)
        judged = cascade.judge(stratum, 0.0, 1.0)
        (escalated if judged.action is Action.ESCALATE else accepted).append(stratum)
    assert statistics.mean(escalated) < statistics.mean(accepted) - 8
    assert sorted(escalated)[int(0.95 * len(escalated))] <= sorted(accepted)[int(0.2 * len(accepted))]


def test_checks_of_a_budget_are_paid_from_it() -> None:
    run = Run(Cascade(offload=0.02, checks=0.5), made(random.Random(9)), 3000, 9)
    assert Action.CHECK in run.actions
    assert run.asked <= 0.02


def test_a_learnt_threshold_asks_where_asking_is_cheap() -> None:
    shares = [Run(Cascade(), made(random.Random(11)), 4000, 11, cost).asked for cost in (0.02, 0.2, 0.6, 1.5)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9 and shares[-1] < 0.03


def test_a_learnt_threshold_costs_little_more_than_the_best_one() -> None:
    for cost in (0.1, 0.3):
        run = Run(Cascade(checks=0.0), made(random.Random(12)), 8000, 12, cost)
        frames = made(random.Random(12))
        losses: list[float] = [0.0] * LEVELS
        counts = [0] * LEVELS
        for _ in range(8000):
            stratum, loss = next(frames)
            losses[stratum] += loss
            counts[stratum] += 1
        best = min(
            (cost * sum(counts[:border]) + sum(losses[border:])) / 8000 for border in range(LEVELS + 1)
        )  # fmt: skip
        assert run.cost < best + 0.025
        assert run.cost < min(cost, sum(losses) / 8000)  # better than either alone


def test_the_price_of_the_moment_decides() -> None:
    cascade = Cascade(checks=0.0)
    Run(cascade, made(random.Random(13)), 4000, 13, 0.2)
    assert cascade.judge(20, 0.05, 1.0).action is Action.ESCALATE
    assert cascade.judge(20, 0.9, 1.0).action is Action.ACCEPT


# ------------------------------------------------ empty answers


def detecting(draws: random.Random, empty_wrong: float) -> Iterator[Frame]:
    while True:
        if draws.random() < 0.4:
            yield EMPTY, float(draws.random() < empty_wrong)
        else:
            yield 34, float(draws.random() < 0.002)


@pytest.mark.parametrize(("wrong", "action"), [(0.2, Action.ESCALATE), (0.001, Action.ACCEPT)])
def test_empty_answers_escalate_where_they_hide_something(wrong: float, action: Action) -> None:
    cascade = Cascade(accuracy=0.98)
    run = Run(cascade, detecting(random.Random(15), wrong), 3000, 15)
    assert cascade.judge(EMPTY, 0.0, 1.0).action is action
    assert cascade.judge(34, 0.0, 1.0).action is Action.ACCEPT
    assert run.lost < 0.02
    assert f"empty answers are {'sent' if action is Action.ESCALATE else 'accepted'}" in cascade.explain()[0]


def test_a_budget_goes_to_empty_answers_where_those_are_the_worst() -> None:
    cascade = Cascade(offload=0.2)
    Run(cascade, detecting(random.Random(16), 0.5), 3000, 16)
    frames = detecting(random.Random(17), 0.5)
    asked = [s for s, _ in (next(frames) for _ in range(1000)) if cascade.judge(s, 0.0, 1.0).action is Action.ESCALATE]
    assert len(asked) > 100 and set(asked) == {EMPTY}


def test_learnt_thresholds_know_empty_answers_apart() -> None:
    cascade = Cascade(checks=0.0)
    Run(cascade, detecting(random.Random(18), 0.6), 3000, 18, 0.2)
    assert cascade.judge(EMPTY, 0.2, 1.0).action is Action.ESCALATE
    assert cascade.judge(34, 0.2, 1.0).action is Action.ACCEPT


def test_a_kind_of_answer_that_never_came_is_not_accepted_unseen() -> None:
    cascade = Cascade(accuracy=0.95)
    Run(cascade, iter([(40, 0.0)] * 500), 500, 0)
    assert cascade.judge(40, 0.0, 1.0).action is Action.ACCEPT
    assert cascade.judge(EMPTY, 0.0, 1.0).action is Action.ESCALATE


def test_empty_answers_stand_in_the_chain_where_they_belong() -> None:
    tally = Tally()
    for stratum, loss in [(50, 0.0), (30, 0.2), (10, 0.6), (EMPTY, 0.4)] * 40:
        tally.saw(stratum)
        tally.labelled(stratum, loss)
    order = [stratum for stratum in chain(tally) if stratum in (50, 30, 10, EMPTY)]
    assert order == [50, 30, EMPTY, 10]
    assert sorted(chain(tally)) == list(range(STRATA))


def test_one_odd_label_moves_no_empty_answer_in_the_chain() -> None:
    tally = Tally()
    for stratum, loss in [(50, 0.0), (48, 0.0), (10, 0.6), (EMPTY, 0.3)] * 100 + [(49, 1.0)]:
        tally.saw(stratum)
        tally.labelled(stratum, loss)
    order = [stratum for stratum in chain(tally) if stratum in (50, 49, 48, 10, EMPTY)]
    assert order == [50, 49, 48, EMPTY, 10]


# ------------------------------------------------ what the target rests on


def known(accuracy: float, *told: tuple[int, int, int, float]) -> Cascade:
    """A cascade that has learnt: of each stratum how many frames, how many labels and what they lost."""
    cascade = Cascade(accuracy=accuracy)
    document = cascade.saved()
    for stratum, frames, labels, losses in told:
        for name, count in (("frames", frames), ("labels", labels), ("losses", losses)):
            document["tally"][name][stratum] = count
    document["tally"].update(seen=2000, asked=1000)
    assert cascade.restore(document)
    return cascade


def accepts(cascade: Cascade, stratum: int) -> bool:
    return cascade.judge(stratum, 0.0, 1.0).action is not Action.ESCALATE


def test_few_labels_are_not_enough_however_good() -> None:
    """n/(n+1)·R̂ + 1/(n+1) ≤ α: without one error 1 % takes 99 labels."""
    assert not accepts(known(0.99, (40, 1000, 97, 0.0)), 40)
    assert accepts(known(0.99, (40, 1000, 100, 0.0)), 40)
    assert not accepts(known(0.99, (40, 1000, 1000, 9.5)), 40)
    assert accepts(known(0.99, (40, 1000, 1000, 8.0)), 40)


def test_one_stratum_may_stand_in_for_another() -> None:
    """Half of the frames may lose twice the target, where the others lose nothing."""
    assert accepts(known(0.99, (50, 500, 1000, 0.0), (40, 500, 1000, 16.0)), 40)
    assert not accepts(known(0.99, (50, 100, 1000, 0.0), (40, 900, 1000, 16.0)), 40)


def test_what_nobody_compared_counts_as_lost() -> None:
    assert not accepts(known(0.99, (60, 20, 0, 0.0), (40, 980, 1000, 0.0)), 40)
    assert accepts(known(0.99, (60, 5, 0, 0.0), (40, 995, 1000, 0.0)), 40)


def test_checks_that_keep_finding_errors_end_all_acceptance() -> None:
    """Whatever the estimate says: the level follows what the checks find, and the estimate has to stay below it."""
    cascade = known(0.99, (40, 1000, 1000, 0.0))
    check = Judged(Action.CHECK, 60, 0.02, "")  # of a stratum without any frames: no part of the estimate
    for _ in range(3):
        cascade.learn(check, 1.0)
    assert accepts(cascade, 40)
    for _ in range(5):
        cascade.learn(check, 1.0)
    assert not accepts(cascade, 40)
    assert "checks found more errors than expected" in " ".join(cascade.explain())
    for _ in range(2000):
        cascade.learn(Judged(Action.CHECK, 40, 0.02, ""), 0.0)
    assert accepts(cascade, 40)


# ------------------------------------------------ checks, absence, restarts


def test_checks_are_as_many_as_asked_for_and_none_where_none() -> None:
    for checks in (0.0, 0.02):
        cascade = Cascade(accuracy=0.9, checks=checks)
        frames = iter([(40, 0.0)] * 10_000)
        Run(cascade, frames, 3000, 20)
        actions = Run(cascade, frames, 5000, 21).actions
        assert actions.count(Action.CHECK) / 5000 == pytest.approx(checks, abs=0.006)
        assert Action.ESCALATE not in actions


def test_a_sureness_never_seen_is_checked_at_once() -> None:
    cascade = Cascade(accuracy=0.9)
    Run(cascade, iter([(30, 0.0)] * 500), 500, 22)
    assert cascade.judge(60, 0.0, 0.99).action is Action.CHECK


@pytest.mark.parametrize("goal", [{"accuracy": 0.97}, {"offload": 0.2}, {}])
def test_while_the_cloud_is_away_all_is_accepted_unverified_and_nothing_moves(goal: dict[str, float]) -> None:
    cascade = Cascade(**goal)
    frames = made(random.Random(23))
    Run(cascade, frames, 1500, 23, 0.2)
    before = json.dumps(cascade.saved())
    for _ in range(3000):
        judged = cascade.judge(next(frames)[0], 0.2, 0.0, reachable=False)
        assert (judged.action, judged.verified, judged.reason) == (Action.ACCEPT, False, "the cloud is away")
    assert json.dumps(cascade.saved()) == before
    assert cascade.judge(60, 0.2, 1.0).verified


@pytest.mark.parametrize("goal", [{"accuracy": 0.97}, {"offload": 0.2}, {}])
def test_a_restart_forgets_nothing(goal: dict[str, float]) -> None:
    cascade = Cascade(**goal)
    Run(cascade, made(random.Random(24)), 3000, 24, 0.2)
    again = Cascade(**goal)
    assert again.restore(json.loads(json.dumps(cascade.saved())))
    # Rounded figures may move a border by a stratum, no more.
    differ = [
        stratum
        for stratum in range(LEVELS)
        if again.judge(stratum, 0.2, 1.0).action is not cascade.judge(stratum, 0.2, 1.0).action
    ]
    assert len(differ) <= 1
    assert again.explain()[0].split(":")[0] == cascade.explain()[0].split(":")[0]


def test_another_target_keeps_what_was_learnt_of_the_models() -> None:
    cascade = Cascade(accuracy=0.9)
    Run(cascade, made(random.Random(25)), 3000, 25)
    stricter = Cascade(accuracy=0.99)
    assert stricter.restore(cascade.saved())
    assert "learning" not in stricter.explain()[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(form=9),
        lambda d: d.pop("tally"),
        lambda d: d["tally"]["labels"].pop(),
        lambda d: d["tally"]["frames"].__setitem__(0, "many"),
        lambda d: d["tally"]["losses"].__setitem__(0, float("nan")),
        lambda d: d["tally"].update(seen=-1),
        lambda d: d.update(rule=None),
    ],
)
def test_a_damaged_state_is_learnt_anew(damage: Any) -> None:
    cascade = Cascade(accuracy=0.97)
    Run(cascade, made(random.Random(26)), 1500, 26)
    document = cascade.saved()
    damage(document)
    fresh = Cascade(accuracy=0.97)
    assert not fresh.restore(document)
    assert "learning: 0 of" in fresh.explain()[0]


def test_a_damaged_level_costs_the_level_only() -> None:
    cascade = Cascade(accuracy=0.97)
    Run(cascade, made(random.Random(27)), 1500, 27)
    document = cascade.saved()
    document["rule"]["level"] = "high"
    fresh = Cascade(accuracy=0.97)
    assert fresh.restore(document)
    assert "learning" not in fresh.explain()[0]


def test_counts_stay_in_range_for_ever() -> None:
    tally = Tally()
    for _ in range(60_000):
        tally.saw(3)
    tally.saw(4)
    assert tally.share(3) + tally.share(4) == pytest.approx(1)
    assert 1 / 3000 < tally.share(4) < 1 / 1000
    assert max(tally.saved()["frames"]) < 3000
    assert tally._weight < 1e9


def test_labels_of_long_ago_fade() -> None:
    tally = Tally()
    for _ in range(5000):
        tally.labelled(3, 0.0)
    for _ in range(1000):
        tally.labelled(3, 1.0)
    assert tally.loss(3) > 0.5


@settings(max_examples=30, deadline=None)
@given(
    goal=st.sampled_from([{"accuracy": 0.99}, {"offload": 0.1}, {}]),
    told=st.lists(
        st.tuples(st.integers(0, STRATA - 1), st.floats(0, 10), st.floats(0, 1), st.floats(-1, 2), st.booleans()),
        max_size=60,
    ),
)
def test_whatever_it_is_told_it_decides_and_explains(goal: dict[str, float], told: list[Any]) -> None:
    cascade = Cascade(**goal)
    for stratum, cost, draw, loss, reachable in told:
        judged = cascade.judge(stratum, cost, draw, reachable=reachable)
        assert 0 <= judged.chance <= 1
        if judged.action is not Action.ACCEPT:
            cascade.learn(judged, loss)
    assert all(line for line in cascade.explain())
    assert Cascade(**goal).restore(json.loads(json.dumps(cascade.saved())))
