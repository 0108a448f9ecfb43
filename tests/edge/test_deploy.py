from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.edge import deploy
from marram.edge.deploy import AppRecord
from marram.schema.device import TRANSITIONS, AppState, DesiredApp
from marram.schema.journal import What
from marram.schema.model import Manifest


def version(number: int) -> DesiredApp:
    return DesiredApp(name="gate", version=number, files=Manifest(files=[]))


WAY = (AppState.FETCHED, AppState.VERIFIED, AppState.PROVISIONAL, AppState.COMMITTED)


def committed(number: int) -> AppRecord:
    record = AppRecord(target=version(number))
    for state in WAY:
        record = deploy.move(record, state)
    return record


def test_the_way_to_committed() -> None:
    record = committed(1)
    assert record.settled and record.runs == version(1) == record.committed


def test_a_failed_version_goes_back_to_the_committed_one() -> None:
    record = deploy.retarget(committed(1), version(2))
    assert record.state is AppState.PENDING and record.runs == version(1)
    record = deploy.move(record, AppState.FETCHED)
    record = deploy.move(record, AppState.ROLLED_BACK, "it does not load")
    assert record.settled and record.runs == version(1) and record.reason == "it does not load"


def refused(number: int) -> AppRecord:
    """Version 1 proven, another given up."""
    return deploy.move(deploy.retarget(committed(1), version(number)), AppState.ROLLED_BACK, "no")


def test_a_failed_version_is_not_tried_again_whatever_is_wanted_meanwhile() -> None:
    failed = refused(2)
    assert deploy.retarget(failed, version(2)) is failed
    back = deploy.retarget(failed, version(1))
    assert back.state is AppState.COMMITTED and back.runs == version(1)
    again = deploy.retarget(back, version(2))
    assert again.state is AppState.ROLLED_BACK and again.reason == "no" and again.runs == version(1)
    gone = deploy.move(again, AppState.REMOVED)
    assert deploy.retarget(gone, version(2)).state is AppState.ROLLED_BACK
    asked = deploy.retarget(gone, version(2), gone.attempt + 1)
    assert asked.state is AppState.PENDING and not asked.refused
    assert deploy.retarget(gone, version(3)).state is AppState.PENDING


def test_a_failed_version_is_tried_again_once_where_a_person_asks() -> None:
    failed = refused(2)
    again = deploy.retarget(failed, version(2), 1)
    assert again.state is AppState.PENDING and again.tries == 0 and again.attempt == 1 and not again.refused
    assert deploy.retarget(again, version(2), 1) is again
    failed = deploy.move(again, AppState.ROLLED_BACK, "no again")
    assert deploy.retarget(failed, version(2), 1) is failed
    # Asked for while another version was wanted, it was that one's.
    other = deploy.retarget(failed, version(1), 2)
    assert other.attempt == 2 and deploy.retarget(other, version(2), 2).state is AppState.ROLLED_BACK
    assert deploy.retarget(other, version(2), 3).state is AppState.PENDING


def test_a_proven_version_that_does_not_stay_goes_back_once() -> None:
    record = deploy.retarget(deploy.finished(committed(1)), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    assert record.previous == version(1) and record.back == version(1) and record.started == (2, 1)
    for _ in range(deploy.MAX_FALLS):
        assert not record.failing
        record = deploy.launched(record)
    assert record.failing
    record = deploy.fell_back(record, "it fell")
    assert record.state is AppState.ROLLED_BACK and record.reason == "it fell" and record.finished
    assert record.runs == version(1) and record.previous is None and not record.failing
    assert deploy.retarget(record, version(2)) is record
    # Nothing is left to go back to: the falls of this one are not even counted.
    assert deploy.launched(record) is record and deploy.breached(record, 0) is record
    with pytest.raises(ValueError, match="nothing to go back to"):
        deploy.fell_back(record, "it fell")


def test_a_proven_version_that_gives_way_while_another_is_on_its_way() -> None:
    record = deploy.retarget(committed(1), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    waiting = deploy.retarget(record, version(3))
    fallen = deploy.fell_back(waiting, "it fell")
    assert fallen.state is AppState.PENDING and fallen.target == version(3) and fallen.runs == version(1)
    assert fallen.refusal(2) is not None and fallen.refusal(3) is None


def test_what_counts_as_a_fall() -> None:
    record = deploy.retarget(committed(1), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    assert deploy.landed(deploy.launched(record)).falls == 0
    assert deploy.steady(deploy.launched(deploy.launched(record))).falls == 0
    once = deploy.breached(record, 5)
    assert deploy.breached(once, 5).breaches == 2 and deploy.breached(once, deploy.CALM_S).breaches == 1


def test_a_start_broken_off_by_ourselves_is_none_but_it_ran() -> None:
    record = deploy.untried(deploy.tried(deploy.retarget(committed(1), version(2))))
    assert record.tries == 0 and deploy.tried(record).started == (1, 2)


def test_the_version_before_begins_anew_where_it_is_wanted_again_and_goes_on_where_it_takes_over() -> None:
    record = deploy.retarget(committed(1), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    assert deploy.tried(deploy.retarget(record, version(1))).started == (2,)
    assert deploy.fell_back(record, "it fell").started == (1,)


def test_what_is_kept_on_the_disk() -> None:
    record = deploy.retarget(committed(1), version(2))
    assert record.kept == [version(2), version(1)]
    for state in WAY:
        record = deploy.move(record, state)
    assert record.kept == [version(2), version(2), version(1)]
    assert refused(2).kept == [version(1)]


def test_a_first_version_that_fails_leaves_nothing_to_run() -> None:
    assert deploy.move(AppRecord(target=version(1)), AppState.ROLLED_BACK, "no").runs is None


def test_what_finished_stays_finished_until_another_is_proven() -> None:
    done = deploy.finished(committed(1))
    trying = deploy.retarget(done, version(2))
    assert trying.finished and trying.runs == version(1)
    assert deploy.retarget(trying, version(1)).finished
    given_up = deploy.move(trying, AppState.ROLLED_BACK, "no")
    assert given_up.finished and given_up.runs == version(1)
    for state in WAY:
        trying = deploy.move(trying, state)
    assert trying.runs == version(2) and not trying.finished


def test_a_version_begins_with_nothing_of_the_one_before() -> None:
    record = deploy.retarget(committed(1), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    record = deploy.breached(deploy.launched(record), 5)
    trying = deploy.tried(deploy.begun(deploy.retarget(record, version(3)), 100))
    assert (trying.falls, trying.breaches) == (1, 1), "what is proven runs meanwhile, and its falls are its own"
    other = deploy.retarget(trying, version(4))
    assert (other.tries, other.held_bytes) == (0, None)
    for state in WAY:
        trying = deploy.move(trying, state)
    assert (trying.falls, trying.breaches, trying.tries) == (0, 0, 0)
    fallen = deploy.fell_back(deploy.breached(deploy.launched(trying), 5), "it fell")
    assert (fallen.falls, fallen.breaches) == (0, 0)


def test_another_document_of_the_same_version_is_tried_and_is_nothing_to_go_back_to() -> None:
    record = committed(2)
    other = version(2).model_copy(update={"secrets": ["pin"]})
    record = deploy.retarget(record, other)
    assert record.state is AppState.PENDING and record.runs == version(2)
    for state in WAY:
        record = deploy.move(record, state)
    assert record.runs == other and record.previous is None
    # Given up, it takes what runs not along; and what is known to be given up is told once.
    failed = deploy.move(deploy.retarget(record, version(2)), AppState.ROLLED_BACK, "no")
    assert failed.runs == other and failed.refusal(2) is None
    given_up = refused(2)
    assert deploy.retarget(given_up, other).serial == given_up.serial


def test_what_is_removed_leaves_nothing_to_go_back_to() -> None:
    record = deploy.retarget(deploy.finished(committed(1)), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    gone = deploy.move(deploy.finished(record), AppState.REMOVED)
    assert gone.kept == [] and gone.previous is None and gone.runs is None
    again = deploy.retarget(gone, version(3))
    assert not again.finished and not again.previous_finished


def test_hangs_and_breaches_in_a_row_give_a_proven_version_up() -> None:
    record = deploy.retarget(committed(1), version(2))
    for state in WAY:
        record = deploy.move(record, state)
    for _ in range(deploy.MAX_BREACHES):
        assert not record.failing
        record = deploy.breached(record, 5)
    assert record.failing


def test_a_line_is_told_at_the_time_it_was_written() -> None:
    record = deploy.stamped(deploy.retarget(None, version(1)), 10.0)
    record = deploy.stamped(deploy.move(record, AppState.FETCHED), 20.0)
    assert [entry.time_s for entry in record.journal] == [10.0, 20.0]


def test_what_is_remembered_is_bounded_and_the_oldest_is_forgotten() -> None:
    record = committed(1)
    for number in range(2, deploy.MOST_REFUSED + 4):
        record = deploy.move(deploy.retarget(record, version(number)), AppState.ROLLED_BACK, "no")
    last = deploy.MOST_REFUSED + 3
    assert [each.version for each in record.refused] == list(range(last - deploy.MOST_REFUSED + 1, last + 1))
    for _ in range(deploy.MOST_UNTOLD):
        record = deploy.wrote(record, What.RESTART, 1)
    record = deploy.wrote(record, What.RESTART, 1)
    assert len(record.journal) == deploy.MOST_UNTOLD and record.journal[-1].serial == record.serial


def test_tries_are_bounded() -> None:
    record = AppRecord(target=version(1))
    for _ in range(deploy.MAX_TRIES):
        assert not record.exhausted
        record = deploy.tried(record)
    assert record.exhausted


def test_illegal_moves_are_refused() -> None:
    with pytest.raises(ValueError, match="pending never becomes committed"):
        deploy.move(AppRecord(target=version(1)), AppState.COMMITTED)


EVENTS = st.one_of(
    st.sampled_from([state for state in AppState if state is not AppState.PENDING]),
    st.tuples(st.integers(1, 4), st.integers(0, 3)),
    st.sampled_from(["launched", "steady", "landed", "breached", "fell back", "finished", "told", "tried", "untried"]),
)


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_in_whatever_order(events: list[Any]) -> None:
    """Only what was proven here runs or is gone back to; a refused version is tried only when asked; all is told."""
    record = deploy.retarget(None, version(1), new_id="r")
    proven: set[int] = set()
    refused: set[int] = set()
    attempt, told = 0, 0
    for event in events:
        before = record
        if isinstance(event, AppState):
            if event not in TRANSITIONS[record.state] or (
                (record.state, event) == (AppState.COMMITTED, AppState.ROLLED_BACK) and record.previous is None
            ):
                with pytest.raises(ValueError):
                    deploy.move(record, event)
                continue
            record = deploy.move(record, event, "why")
            if event is AppState.COMMITTED:
                proven.add(record.target.version)
            if event is AppState.ROLLED_BACK:
                refused.add(before.target.version)
        elif isinstance(event, tuple):
            number, asked = event
            record = deploy.retarget(record, version(number), asked)
            if asked > attempt:
                attempt = asked
                refused.discard(number)
            assert record.attempt == attempt
            # It is on its way only where it was not given up, and given up only where it was.
            assert (record.state is AppState.ROLLED_BACK) == (number in refused)
            assert record.target == version(number)
        elif event == "fell back":
            if record.previous is not None:
                assert before.runs is not None
                refused.add(before.runs.version)
                record = deploy.fell_back(record, "why")
        elif event == "breached":
            record = deploy.breached(record, 1.0)
        elif event == "told":
            told = record.serial
            record = deploy.told(record, told)
        else:
            record = getattr(deploy, event)(record)
        for app in (record.runs, record.previous, record.back):
            assert app is None or (app.version in proven and app.version not in refused)
        # Never nothing where there was something, but when it is removed.
        if before.runs is not None and record.state is not AppState.REMOVED:
            assert record.runs is not None
        assert {each.version for each in record.refused} == refused
        assert all(app in record.kept for app in (record.runs, record.previous) if app is not None)
        if record.state is not before.state:
            assert record.serial > before.serial
        # Every line is told, once, in order.
        assert [entry.serial for entry in record.journal] == list(range(told + 1, record.serial + 1))
        # It survives the disk.
        assert AppRecord.model_validate_json(record.model_dump_json()) == record
