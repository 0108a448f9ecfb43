"""Why a device runs what it runs: each case of the table has one cause, and the sentence a person needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from marram.rollout import Evidence, about_device, why
from marram.rollout.chronicle import Noted, timed
from marram.rollout.desire import living
from marram.schema.device import AppState, Device, DeviceState, Reported, ReportedApp
from marram.schema.journal import Entry, What
from marram.schema.rollout import DeviceOutcome, Plan, RolloutDevice, RolloutState, at_once
from marram.store import DeploymentRow, RolloutRow, Standing

NOW_S = 1_800_000_000.0
DEAD = (RolloutState.ROLLED_BACK, RolloutState.ABORTED)


@dataclass
class Case:
    """What was decided, what the device says; `evidence` puts it together as the cloud does."""

    said: dict[str, Any] | None = field(default_factory=lambda: {"version": 1, "state": "committed", "running": 1})
    device: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    decided: list[tuple[RolloutRow | DeploymentRow, RolloutDevice | None]] = field(default_factory=list)
    journal: list[Noted] = field(default_factory=list)
    waits: str = ""

    def evidence(self) -> Evidence:
        apps = [] if self.said is None else [ReportedApp.model_validate({"name": "gate", **self.said})]
        known: dict[str, Any] = {
            "id": "pi",
            "labels": {"site": "x"},
            "state": DeviceState.ONLINE,
            "seen_s": NOW_S - 1,
            "joined_s": 1.0,
            "reported": Reported.model_validate({"apps": apps, "time_s": NOW_S - 1, **self.reported}),
        }
        rows = [row for row, _ in self.decided]
        deployments = [DeploymentRow(r.id, "gate", r.version, r.selector, r.created_s) for r in rows]
        rollouts = {row.id: row for row in rows if isinstance(row, RolloutRow)}
        history = {row.id: mine for row, mine in self.decided if mine is not None}
        standings = [
            Standing(
                replace(d),  # read by another query: equal, never the same
                rollouts[d.id].state if d.id in rollouts else None,
                frozenset({"pi"} if d.id in history and history[d.id].outcome is not DeviceOutcome.WAITING else ()),
            )
            for d in deployments
            if d.id not in rollouts or rollouts[d.id].state not in DEAD
        ]
        return Evidence(
            device=Device.model_validate(known | self.device),
            app="gate",
            now_s=NOW_S,
            deployments=deployments,
            standings=living(standings),
            rollouts=rollouts,
            history=history,
            journal=self.journal,
            waits={row.id: self.waits for row in rows},
            matching={row.id: 48 for row in rows},
        )


def rollout(
    id: int, version: int, state: RolloutState, selector: dict[str, str] | None = None, **more: Any
) -> RolloutRow:
    plan = more.pop("plan", at_once() if id == 1 else Plan())
    row = RolloutRow(id, "gate", version, selector or {}, NOW_S - 1000 + id, state, plan=plan)
    return replace(row, **more)


def reached(outcome: str = "reached", **more: Any) -> RolloutDevice:
    return RolloutDevice.model_validate(
        {"device": "pi", "stage": 2, "outcome": outcome, "reached_s": NOW_S - 60, **more}
    )


def noted(sequence: int, what: What, received_s: float, **told: Any) -> Noted:
    entry = Entry(serial=sequence, what=what, id=f"k-{sequence}", **told)
    return Noted("stream", sequence, received_s, entry)


DONE = (rollout(1, 1, RolloutState.COMPLETED), None)


def second(state: RolloutState = RolloutState.RUNNING, mine: RolloutDevice | None = None, **more: Any) -> Any:
    return [DONE, (rollout(2, 2, state, stage=2, **more), mine)]


ROLLED_BACK = {"version": 2, "state": "rolled_back", "running": 1, "refused": [2]}
PENDING = {"version": 2, "state": "pending", "running": 1}
OFFLINE = {"state": DeviceState.OFFLINE, "seen_s": NOW_S - 3600}
TRIED = [
    noted(1, What.MOVED, NOW_S - 50, version=2, to=AppState.PENDING, time_s=NOW_S - 58),
    noted(2, What.MOVED, NOW_S - 50, version=2, to=AppState.FETCHED, time_s=NOW_S - 56),
    noted(3, What.MOVED, NOW_S - 50, version=2, to=AppState.VERIFIED, time_s=NOW_S - 55),
    noted(4, What.MOVED, NOW_S - 50, version=2, to=AppState.PROVISIONAL, time_s=NOW_S - 55),
    noted(
        5, What.GATE, NOW_S - 20, version=2, reason="p95 212 ms > 150 ms", evidence={"passed": False}, time_s=NOW_S - 21
    ),
    noted(
        6, What.MOVED, NOW_S - 20, version=2, to=AppState.ROLLED_BACK, reason="p95 212 ms > 150 ms", time_s=NOW_S - 21
    ),
]
LONG_AGO = [noted(1, What.MOVED, NOW_S - 9000, version=2, to=AppState.ROLLED_BACK, time_s=NOW_S - 9000)]
DAY = {"window": {"hours": "22:00-05:00", "zone": "Asia/Shanghai"}}  # it is 16:00 there

CASES: dict[str, tuple[Case, str, str, str]] = {
    "runs what it should": (Case(decided=[DONE]), "as_it_should", "pi runs gate 1, as rollout 1 says.", ""),
    "stage": (
        Case(decided=second(), waits="the end of its soak, 12 s"),
        "stage",
        "pi runs gate 1, not 2: rollout 2 has not reached it: it is in stage 2 of 3 (10%: 5 of 48 devices) and waits "
        "for the end of its soak, 12 s.",
        "marram rollout show 2",
    ),
    "window": (
        Case(decided=second(plan=Plan.model_validate(DAY))),
        "window",
        "it reaches devices in its window only, 22:00-05:00 Asia/Shanghai.",
        "marram rollout show 2",
    ),
    "paused": (
        Case(decided=second(RolloutState.PAUSED)),
        "paused",
        "has not reached it, and is paused in stage 2 of 3",
        "marram rollout resume 2",
    ),
    "halted": (
        Case(decided=second(RolloutState.HALTED, reason="failed 1 of 1: po")),
        "halted",
        "was halted in stage 2 of 3 (10%: 5 of 48 devices): failed 1 of 1: po.",
        "marram rollout show 2",
    ),
    "offline before it was reached": (
        Case(decided=second(), device=OFFLINE),
        "offline",
        "it is offline, and is reached when it is back.",
        "",
    ),
    "offline after it was reached": (
        Case(decided=second(mine=reached()), device=OFFLINE),
        "offline",
        "it is offline, and hears of it when it is back.",
        "marram edge status",
    ),
    "silent": (
        Case(
            decided=second(mine=reached("silent", reason="said nothing since it was reached, for 10 min")),
            device=OFFLINE,
        ),
        "offline",
        "it is offline (said nothing since it was reached, for 10 min)",
        "marram edge status",
    ),
    "told just now": (Case(decided=second(mine=reached())), "told", "it was told just now, and has not begun.", ""),
    "fetching": (Case(said=PENDING, decided=second(mine=reached())), "under_way", "it is fetching it.", ""),
    "on trial": (
        Case(said={"version": 2, "state": "provisional", "running": 2}, decided=second(mine=reached())),
        "on_trial",
        "pi has gate 2 on trial.",
        "",
    ),
    "no room": (
        Case(said=PENDING | {"reason": "the disk has 3 MB free, and 20 MB are needed"}, decided=second(mine=reached())),
        "disk",
        "it waits for room: the disk has 3 MB free",
        "marram device show pi",
    ),
    "no room, in whole sentences": (
        Case(said=PENDING | {"reason": "the disk is too full. It goes on."}, decided=second(mine=reached())),
        "disk",
        "it waits for room: the disk is too full. It goes on.",
        "marram device show pi",
    ),
    "link": (
        Case(said=PENDING | {"reason": "the cloud does not answer"}, decided=second(mine=reached())),
        "waiting",
        "it waits: the cloud does not answer.",
        "marram device show pi",
    ),
    "a secret": (
        Case(
            said=PENDING | {"reason": "waits for the secret KEY. marram secret set KEY."},
            decided=second(mine=reached()),
        ),
        "waiting",
        ": it waits for the secret KEY. marram secret set KEY.",
        "marram device show pi",
    ),
    "untrusted": (
        Case(said=PENDING | {"reason": "freeze: the timestamp expired 3 days ago"}, decided=second(mine=reached())),
        "untrusted",
        "does not believe what it was sent (freeze: the timestamp expired 3 days ago)",
        "marram device show pi",
    ),
    "untrusted, since a person has to renew what is signed": (
        Case(
            said=PENDING | {"reason": "freeze: what the cloud signed as root expired 3 days ago (2026-01-02)"},
            decided=second(mine=reached()),
        ),
        "untrusted",
        "does not believe what it was sent (freeze: what the cloud signed as root expired 3 days ago",
        "marram cloud root renew",
    ),
    "halted after it was reached": (
        Case(
            decided=second(RolloutState.HALTED, mine=reached("committed"), reason="p95 212 ms > 150 ms"),
            said={"version": 2, "state": "committed", "running": 2},
        ),
        "halted",
        "pi runs gate 2, and rollout 2, which brought it, was halted in stage 2 of 3 (10%: 5 of 48 devices): p95",
        "marram rollout promote 2",
    ),
    "a reason with a full stop": (
        Case(said=ROLLED_BACK | {"reason": "no such file: t.csv."}, decided=second(mine=reached()), journal=TRIED),
        "device_rolled_back",
        "2 was tried here and rolled back: no such file: t.csv.",
        "marram rollout retry 2 pi",
    ),
    "its own gate": (
        Case(said=ROLLED_BACK | {"reason": "p95 212 ms > 150 ms"}, decided=second(mine=reached()), journal=TRIED),
        "device_rolled_back",
        "pi runs gate 1, not 2: 2 was tried here and rolled back: p95 212 ms > 150 ms.",
        "marram rollout retry 2 pi",
    ),
    "its own gate, and offline since": (
        Case(
            said=ROLLED_BACK | {"reason": "it crashed"},
            decided=[DONE, (rollout(2, 2, RolloutState.COMPLETED), reached("failed"))],
            journal=TRIED,
            device=OFFLINE,
        ),
        "device_rolled_back",
        "2 was tried here and rolled back: it crashed.",
        "marram rollout retry 2 pi",
    ),
    "its own gate, and the rollout with it": (
        Case(
            said={"version": 1, "state": "committed", "running": 1, "refused": [2]},
            decided=second(
                RolloutState.ROLLED_BACK, reached("failed", reason="p95 212 ms"), reason="failed 1 of 1: pi"
            ),
            journal=TRIED,
        ),
        "tried_and_rolled_back",
        "2 was tried here and failed (p95 212 ms), and rollout 2 was rolled back everywhere.",
        "marram rollout show 2",
    ),
    "the rollout": (
        Case(decided=second(RolloutState.ROLLED_BACK, reached("committed"), reason="failed 1 of 5: po")),
        "rollout_rolled_back",
        "pi runs gate 1, not 2: rollout 2 was rolled back, in stage 2: failed 1 of 5: po.",
        "marram rollout show 2",
    ),
    "the rollout, before it came": (
        Case(decided=second(RolloutState.ROLLED_BACK, reason="failed 1 of 5: po")),
        "rollout_rolled_back",
        "rollout 2 was rolled back before it came here, in stage 2",
        "marram rollout show 2",
    ),
    "aborted": (
        Case(decided=second(RolloutState.ABORTED)),
        "aborted",
        "rollout 2 was aborted by a person.",
        "marram rollout show 2",
    ),
    "blocked": (
        Case(
            said=ROLLED_BACK | {"reason": "it crashed"},
            decided=second(mine=reached()),
            journal=LONG_AGO,
        ),
        "blocked",
        "2 was given up here before this deployment: it crashed.",
        "marram rollout retry 2 pi",
    ),
    "held": (
        Case(decided=second(mine=reached()), reported={"held": "held until noon: we measure"}),
        "held",
        "a person at the device told it to change nothing (held until noon: we measure).",
        "marram edge release",
    ),
    "held and not reached": (
        Case(decided=second(), reported={"held": "held: we measure"}),
        "held",
        "change nothing (held: we measure).",
        "marram edge release",
    ),
    "a newer deployment": (
        Case(
            decided=[
                (rollout(1, 2, RolloutState.COMPLETED), None),
                (rollout(2, 1, RolloutState.COMPLETED, {"site": "x"}), reached("committed")),
            ]
        ),
        "another_wins",
        "pi runs gate 1, not 2: deployment 2 for site=x is newer than 1 for all devices, and holds here.",
        "marram deploy --list",
    ),
    "never deployed": (
        Case(said=None, decided=[(rollout(1, 1, RolloutState.COMPLETED, {"site": "y"}), None)]),
        "never_deployed",
        "pi runs no gate: no deployment of gate is for its labels (site=x).",
        "marram deploy --list",
    ),
    "removed": (
        Case(said=None, decided=[DONE, (DeploymentRow(2, "gate", None, {}, NOW_S), None)]),
        "removed",
        "pi runs no gate: it was taken off all devices.",
        "",
    ),
    "being removed": (
        Case(decided=[DONE, (DeploymentRow(2, "gate", None, {"site": "x"}, NOW_S), None)]),
        "removed",
        "it was taken off site=x; 1 still runs there until it hears of it.",
        "",
    ),
    "revoked": (
        Case(decided=second(mine=reached()), device=OFFLINE | {"revoked_s": NOW_S - 10}),
        "revoked",
        "pi runs gate 1, not 2: the device is revoked and hears nothing any more.",
        "",
    ),
    "given up, and nothing to go back to": (
        Case(
            said={"version": 1, "state": "rolled_back", "reason": "it crashed", "refused": [1]},
            decided=[(rollout(1, 1, RolloutState.COMPLETED), None)],
        ),
        "device_rolled_back",
        "pi does not run gate 1: 1 was tried here and rolled back: it crashed.",
        "marram rollout retry 1 pi",
    ),
    "committed and not there": (
        Case(said={"version": 1, "state": "committed", "reason": "its source came to its end"}, decided=[DONE]),
        "not_running",
        "which is committed there but does not run: its source came to its end.",
        "marram device show pi",
    ),
    "revoked, and taken off": (
        Case(
            device=OFFLINE | {"revoked_s": NOW_S - 10},
            decided=[DONE, (DeploymentRow(2, "gate", None, {}, NOW_S), None)],
        ),
        "revoked",
        "pi runs gate 1: the device is revoked and hears nothing any more.",
        "",
    ),
    "in its window": (
        Case(decided=second(plan=Plan.model_validate({"window": {"hours": "07:00-09:00"}}))),
        "stage",
        "it is in stage 2 of 3",
        "marram rollout show 2",
    ),
    "given up before it was reached, though after it was deployed": (
        Case(
            said=ROLLED_BACK,
            decided=second(mine=reached()),
            journal=[noted(1, What.MOVED, NOW_S - 500, version=2, to=AppState.ROLLED_BACK)],
        ),
        "blocked",
        "2 was given up here before this deployment.",
        "marram rollout retry 2 pi",
    ),
    "rolled back before it came here, although it was considered": (
        Case(decided=second(RolloutState.ROLLED_BACK, reached("waiting", reached_s=None), reason="failed 1 of 1: po")),
        "rollout_rolled_back",
        "rollout 2 was rolled back before it came here, in stage 2: failed 1 of 1: po.",
        "marram rollout show 2",
    ),
    "rolled back, and the device has not heard of it": (
        Case(
            said={"version": 2, "state": "committed", "running": 2},
            decided=second(RolloutState.ROLLED_BACK, reached("committed"), reason="failed 1 of 2: po"),
        ),
        "told",
        "it was told just now, and has not begun.",
        "",
    ),
    "held, and runs what it should": (
        Case(decided=[DONE], reported={"held": "held until noon"}),
        "as_it_should",
        "pi runs gate 1, as rollout 1 says.",
        "",
    ),
    "runs it, though it was last told another": (
        Case(said=PENDING, decided=[DONE]),
        "as_it_should",
        "pi runs gate 1, as rollout 1 says.",
        "",
    ),
    "the version before it still holds for others": (
        Case(said={"version": 2, "state": "committed", "running": 2}, decided=second(mine=reached("committed"))),
        "as_it_should",
        "pi runs gate 2, as rollout 2 says.",
        "",
    ),
    "another deployment is for others": (
        Case(
            said={"version": 2, "state": "committed", "running": 2},
            decided=[
                (rollout(1, 1, RolloutState.COMPLETED, {"site": "y"}), None),
                (rollout(2, 2, RolloutState.COMPLETED, {"site": "x"}), None),
            ],
        ),
        "as_it_should",
        "pi runs gate 2, as rollout 2 says.",
        "",
    ),
    "a newer one was superseded before it came here": (
        Case(decided=[DONE, (rollout(2, 2, RolloutState.SUPERSEDED, {"site": "x"}), None)]),
        "as_it_should",
        "pi runs gate 1, as rollout 1 says.",
        "",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case_has_its_cause_its_sentence_and_the_next_step(name: str) -> None:
    case, cause, sentence, next = CASES[name]
    answer = why(case.evidence())
    assert (answer.cause, sentence in answer.sentence, answer.next.startswith(next)) == (cause, True, True), answer
    assert ".." not in answer.sentence
    assert bool(answer.next) == bool(next), answer
    assert answer.sentence.startswith("pi ") and answer.sentence.endswith(".")


def test_the_story_of_a_version_that_broke_its_gate_here() -> None:
    """As in the picture drawn before the code."""
    answer = why(CASES["its own gate"][0].evidence())
    assert [line.text for line in answer.lines] == [
        "rollout 2, stage 2, reached it: gate 2",
        "told to run 2, fetched, verified, started on trial",
        "2 broke its gate: p95 212 ms > 150 ms",
        "2 rolled back: p95 212 ms > 150 ms",
    ]
    assert answer.after == "It will not retry 2 by itself."
    assert [line.time_s for line in answer.lines] == sorted(line.time_s for line in answer.lines)


def test_a_long_reason_is_said_whole_once_in_a_story() -> None:
    reason = "ValueError: a handler's words go on and on, with paths, numbers and whatever else it knows of the frame"
    journal = [each.model_copy(update={"reason": reason}) if each.reason else each for each in (n.entry for n in TRIED)]
    case = Case(
        said=ROLLED_BACK | {"reason": reason},
        decided=second(
            RolloutState.ROLLED_BACK, reached("failed", reason=reason), reason=f"failed 1 of 1: pi, {reason}",
            ended_s=NOW_S - 5,
        ),
        journal=[replace(n, entry=entry) for n, entry in zip(TRIED, journal, strict=True)],
    )  # fmt: skip
    texts = [line.text for line in why(case.evidence()).lines]
    begun = reason[:60].rstrip() + "…"
    assert texts[-3:] == [
        f"2 broke its gate: {reason}",
        f"2 rolled back: {begun}",
        f"rollout 2 rolled back: failed 1 of 1: pi, {begun}",
    ]


@pytest.mark.parametrize("off_s", [0.0, -86400.0 * 365, 7200.0, -NOW_S])
def test_a_wrong_clock_changes_neither_order_nor_times(off_s: float) -> None:
    """The device's clock is off by `off_s`; what is shown is the cloud's."""
    journal = [
        replace(each, entry=each.entry.model_copy(update={"time_s": each.entry.time_s + off_s})) for each in TRIED
    ]
    case = replace(CASES["its own gate"][0], journal=list(reversed(journal)), reported={"time_s": NOW_S - 1 + off_s})
    shown = timed(case.journal, case.evidence().device)
    assert [entry.serial for _, entry in shown] == [1, 2, 3, 4, 5, 6]
    if off_s != -NOW_S:
        assert [time_s for time_s, _ in shown] == pytest.approx([entry.entry.time_s for entry in TRIED])
    assert all(1.0 <= time_s <= NOW_S for time_s, _ in shown)


def test_a_clock_that_was_set_on_the_way_leaves_the_order() -> None:
    """It began at 1970: those entries stand where they came, never after they were heard."""
    early = [
        noted(1, What.MOVED, NOW_S - 40, version=2, to=AppState.PENDING, time_s=100.0),
        noted(2, What.MOVED, NOW_S - 40, version=2, to=AppState.FETCHED, time_s=NOW_S + 9e6),
        noted(3, What.MOVED, NOW_S - 30, version=2, to=AppState.VERIFIED, time_s=NOW_S - 35),
    ]
    shown = timed(early, Case().evidence().device)
    assert [entry.serial for _, entry in shown] == [1, 2, 3]
    assert [time_s for time_s, _ in shown] == sorted(time_s for time_s, _ in shown)
    assert shown[1][0] == NOW_S - 40


def test_an_entry_that_came_twice_is_told_once_and_a_new_outbox_goes_on_after_the_old() -> None:
    first = noted(7, What.MOVED, NOW_S - 40, version=2, to=AppState.PENDING, time_s=NOW_S - 41)
    again = replace(first, stream="new", sequence=1, received_s=NOW_S - 10)
    after = replace(noted(8, What.MOVED, NOW_S - 5, version=2, to=AppState.FETCHED), stream="new", sequence=2)
    shown = timed([after, again, first], Case().evidence().device)
    assert [entry.serial for _, entry in shown] == [7, 8]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"state": DeviceState.ONLINE}, ""),
        ({"state": DeviceState.NEW, "seen_s": None}, "pi joined and was never heard."),
        (OFFLINE, "pi is offline: it was last heard 60 min ago"),
        ({"revoked_s": 5.0}, "pi is revoked"),
    ],
)
def test_what_is_wrong_with_the_device_itself_comes_first(device: dict[str, Any], words: str) -> None:
    said, next = about_device(Case(device=device).evidence().device, NOW_S)
    assert words in said and bool(said) == bool(words) == bool(next)


def story(*journal: Noted, **more: Any) -> list[str]:
    return [line.text for line in why(replace(Case(), journal=list(journal), **more).evidence()).lines]


def moved(sequence: int, to: AppState, version: int = 2, after_s: float = 0.0, **told: Any) -> Noted:
    return noted(sequence, What.MOVED, NOW_S - 10, version=version, to=to, time_s=NOW_S - 100 + after_s, **told)


def test_steps_of_one_version_stand_on_one_line_and_what_is_news_on_its_own() -> None:
    assert story(
        moved(1, AppState.PENDING),
        moved(2, AppState.FETCHED),
        moved(3, AppState.FETCHED, 3),
        moved(4, AppState.PENDING, 3),
    ) == ["told to run 2, fetched", "fetched", "told to run 3"]
    assert story(moved(1, AppState.PROVISIONAL), moved(2, AppState.ROLLED_BACK, reason="it fell")) == [
        "started on trial",
        "2 rolled back: it fell",
    ]
    assert story(moved(1, AppState.FETCHED), moved(2, AppState.VERIFIED, after_s=11)) == ["fetched", "verified"]
    again = moved(1, AppState.COMMITTED, 1, **{"from": AppState.PENDING})
    first = moved(1, AppState.COMMITTED, 1, **{"from": AppState.PROVISIONAL})
    assert (story(again), story(first)) == (["back on 1"], ["committed"])


def test_what_is_no_news_has_no_line() -> None:
    assert story(noted(1, What.GATE, NOW_S, version=2, evidence={"passed": True}, reason="frames 30")) == []
    # A rollout that ended before it came here is no part of this device's story.
    nothing = reached("waiting", reached_s=None)
    assert story(decided=second(RolloutState.ROLLED_BACK, nothing, reason="po", ended_s=NOW_S - 5)) == []
    # What the device says itself is not told again as what the rollout makes of it.
    own = reached("failed", reason="it fell", ended_s=NOW_S - 5)
    silent = reached("silent", reason="said nothing", ended_s=NOW_S - 5)
    fell = moved(1, AppState.ROLLED_BACK, reason="it fell")
    assert story(fell, decided=second(mine=own)) == ["2 rolled back: it fell", "rollout 2, stage 2, reached it: gate 2"]
    assert story(decided=second(mine=silent))[-1] == "rollout 2 counts it as silent: said nothing"


def test_of_a_long_story_the_end_is_told() -> None:
    journal = [moved(number, AppState.ROLLED_BACK, number, number) for number in range(1, 31)]
    assert story(*journal) == [f"{number} rolled back" for number in range(11, 31)]


def test_a_clock_that_was_set_back_leaves_the_order_of_the_lines() -> None:
    journal = [
        noted(1, What.MOVED, NOW_S - 40, version=2, to=AppState.PENDING, time_s=NOW_S - 45),
        noted(2, What.MOVED, NOW_S - 30, version=2, to=AppState.FETCHED, time_s=NOW_S - 3600),
    ]
    assert [time_s for time_s, _ in timed(journal, Case().evidence().device)] == [NOW_S - 45, NOW_S - 45]
    # An outbox that was made anew, whatever it is called, goes on after the one before.
    old, new = replace(journal[0], stream="z"), replace(journal[1], stream="a", sequence=1)
    assert [entry.serial for _, entry in timed([new, old], Case().evidence().device)] == [1, 2]
