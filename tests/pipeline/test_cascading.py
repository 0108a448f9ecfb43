"""The edge answers first; what it is unsure of goes to the cloud; its answer stands where the cloud says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.scripted import GOOD, Chooser, Scripted, fails, reply, says, silent

from marram.pipeline import appeals
from marram.placement.cascade import Action, Cascade, Judged
from marram.placement.contract import Ask, Considered, Decision
from marram.runtime.bundle import Bundle
from marram.schema.errors import Retryable
from marram.schema.result import Place

NAMES = ["red", "green", "blue"] * 3


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Action], list[Any]]:
    """Has every answer judged so (accepted where the cloud is away); what the judge was asked, and what it was told."""
    heard: list[Any] = []

    def be(action: Action) -> list[Any]:
        def judge(self: Any, stratum: int, cost: float, draw: float, *, reachable: bool = True) -> Judged:
            heard.append(("judge", cost, reachable))
            if not reachable:
                return Judged(Action.ACCEPT, stratum, 0.0, "the cloud is away", verified=False)
            return Judged(action, stratum, 1.0, "as the test says")

        monkeypatch.setattr(Cascade, "judge", judge)
        monkeypatch.setattr(Cascade, "learn", lambda self, verdict, loss: heard.append(("learn", loss)))
        return heard

    return be


@pytest.fixture
def run(build: Any, photos: Path, colours: Path) -> Callable[..., Any]:
    def go(
        behave: Any, policy: Chooser, options: str = "cascade: learnt", raw: str = "allowed", before: str = ""
    ) -> Any:
        remote = Scripted(behave)
        pipeline, seen = build(
            f"source: {{images: {photos}}}\nraw: {raw}\nsteps: [{before}{{classify: MODEL, cloud: big, {options}}}]\n",
            remote=remote, cloud_cards={"big": Bundle.open(colours).card}, policy=policy,
        )  # fmt: skip
        pipeline.run()
        return pipeline, seen, remote

    return go


def test_what_is_sure_stays_here(run: Any, judged: Any) -> None:
    judged(Action.ACCEPT)
    _, seen, remote = run(says(reply()), Chooser([Place.EDGE]))
    assert seen.labels == NAMES and remote.asked == []
    assert {frame.placed.place for frame in seen.frames} == {Place.EDGE}
    assert all(frame.placed.verified and not frame.placed.escalated for frame in seen.frames)
    assert seen.events[0].data["reason"] == "as the test says"


def test_what_is_unsure_is_answered_by_the_cloud_and_learnt_from(run: Any, judged: Any) -> None:
    heard = judged(Action.ESCALATE)
    pipeline, seen, remote = run(says(reply()), Chooser([Place.EDGE]), "cascade: learnt, deadline: 30 s")
    assert {frame.result.model for frame in seen.frames} == {"the-cloud"} and len(seen.frames) == 9
    assert {frame.placed.place for frame in seen.frames} == {Place.CLOUD}
    event = seen.events[0].data
    assert (event["escalated"], event["reason"], "verified" in event) == (True, "as the test says", False)
    assert all(0 < request.left_s <= 30 for request in remote.asked)  # what is left of the deadline
    # The cloud says green: of nine answers three are the same.
    losses = [loss for kind, loss in (h[:2] for h in heard) if kind == "learn"]
    assert len(losses) == 9 and sum(loss < 0.5 for loss in losses) == 3
    assert pipeline.stats()["escalated"] == 9 and pipeline.stats()["disagreed"] == 6


@pytest.mark.parametrize("behave", [silent, fails(Retryable("gone")), says(reply(None))])
def test_the_edges_answer_stands_unverified_where_the_cloud_says_nothing(run: Any, judged: Any, behave: Any) -> None:
    judged(Action.ESCALATE)
    pipeline, seen, _ = run(behave, Chooser([Place.EDGE], timeout_s=0.02))
    assert seen.labels == NAMES and {frame.placed.place for frame in seen.frames} == {Place.EDGE}
    assert all(not frame.placed.verified and not frame.placed.escalated for frame in seen.frames)
    assert seen.events[0].data["verified"] is False
    stats = pipeline.stats()
    assert (stats["unverified"], stats["dropped"], stats["edge"]) == (9, 0, 9)


def test_an_unsure_answer_waits_for_the_cloud_no_longer_than_its_deadline(run: Any, judged: Any) -> None:
    judged(Action.ESCALATE)
    _, seen, _ = run(silent, Chooser([Place.EDGE], timeout_s=600), "cascade: learnt, deadline: 50 ms")
    assert seen.labels == NAMES and not any(frame.placed.verified for frame in seen.frames)


def test_without_a_deadline_a_silent_cloud_holds_an_answer_back_for_a_moment_only(
    run: Any, judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(Action.ESCALATE)
    monkeypatch.setattr(appeals, "ERROR_S", 0.05)
    _, seen, _ = run(silent, Chooser([Place.EDGE], timeout_s=600))
    assert seen.labels == NAMES and not any(frame.placed.verified for frame in seen.frames)


def test_a_reply_that_comes_too_late_is_still_learnt_from(run: Any, judged: Any) -> None:
    heard = judged(Action.ESCALATE)
    policy = Chooser([Place.EDGE], timeout_s=0.02)
    _, seen, remote = run(silent, policy)
    assert seen.labels == NAMES and not any(kind[0] == "learn" for kind in heard)
    remote.futures[0].set_result(reply())
    assert [kind[0] for kind in heard].count("learn") == 1 and any(o.ok for o in policy.outcomes)


def test_checks_happen_behind_the_answer(run: Any, judged: Any) -> None:
    heard = judged(Action.CHECK)
    pipeline, seen, remote = run(says(reply()), Chooser([Place.EDGE]))
    assert seen.labels == NAMES and {frame.placed.place for frame in seen.frames} == {Place.EDGE}
    assert all(frame.placed.verified for frame in seen.frames)
    assert 1 <= len(remote.asked) == [kind[0] for kind in heard].count("learn") == pipeline.stats()["checked"]


def test_checks_that_nobody_answers_hold_nothing_up_and_do_not_pile_up(run: Any, judged: Any) -> None:
    judged(Action.CHECK)
    _, seen, remote = run(silent, Chooser([Place.EDGE], timeout_s=600))
    assert seen.labels == NAMES and len(remote.asked) == 2


def test_while_the_cloud_is_away_answers_are_unverified_and_nothing_is_asked(run: Any, judged: Any) -> None:
    heard = judged(Action.ESCALATE)
    _, seen, remote = run(says(reply()), Chooser([Place.EDGE], up=False))
    assert seen.labels == NAMES and remote.asked == []
    assert not any(frame.placed.verified for frame in seen.frames)
    assert {each[2] for each in heard} == {False}


def test_what_may_not_leave_is_not_escalated(run: Any, judged: Any, tmp_path: Path) -> None:
    heard = judged(Action.ESCALATE)
    (tmp_path / "mine.py").write_text("def hide(frame, result):\n    return frame\n")  # redacts nothing, and says so
    _, seen, remote = run(says(reply()), Chooser([Place.EDGE]), raw="redacted", before="{function: mine.py:hide}, ")
    assert seen.labels == NAMES and remote.asked == []
    assert {each[2] for each in heard} == {False}


def test_what_asking_costs_now_is_what_the_judge_is_told(run: Any, judged: Any) -> None:
    heard = judged(Action.ACCEPT)

    class Dear(Chooser):
        def decide(self, ask: Ask) -> Decision:
            decision = super().decide(ask)
            if ask.objective != "cloud" or decision.way is None:
                return decision
            told = Considered(decision.way, 0.3, 0.2, 0.4, price_s=0.1)
            return replace(decision, considered=(told,))

    run(says(reply()), Dear([Place.EDGE]), "cascade: learnt, deadline: 2 s")
    assert {round(cost, 9) for _, cost, _ in heard} == {0.2}  # 0.4 s of the 2 s that an error is worth


def test_the_first_frame_of_a_real_cascade_is_asked_about(run: Any) -> None:
    """With nothing known, an unsure answer is worth more than what asking takes."""
    pipeline, seen, remote = run(says(reply()), Chooser([Place.EDGE]), "cascade: {accuracy: 99 %}")
    assert remote.asked and len(seen.frames) == 9
    assert pipeline.stats()["escalated"] + pipeline.stats()["checked"] >= 1
    assert pipeline.stats()["cascade"]
    assert GOOD.label in seen.labels


def test_conditions_see_what_was_unsure(build: Any, photos: Path, colours: Path, judged: Any) -> None:
    judged(Action.ESCALATE)
    for behave, condition in ((says(reply()), "frame.escalated"), (silent, "!frame.verified")):
        step = f"{{classify: MODEL, cloud: big, cascade: learnt}}, {{filter: '{condition}'}}"
        pipeline, seen = build(
            f"source: {{images: {photos}}}\nraw: allowed\nsteps: [{step}]\n",
            remote=Scripted(behave), cloud_cards={"big": Bundle.open(colours).card},
            policy=Chooser([Place.EDGE], timeout_s=0.02),
        )  # fmt: skip
        pipeline.run()
        assert len(seen.frames) == 9
