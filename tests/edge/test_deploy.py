from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.edge import deploy
from marram.edge.deploy import AppRecord
from marram.schema.device import TRANSITIONS, AppState, DesiredApp
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


def test_a_failed_version_is_not_tried_again_until_another_is_wanted() -> None:
    failed = deploy.move(deploy.retarget(committed(1), version(2)), AppState.ROLLED_BACK, "no")
    assert deploy.retarget(failed, version(2)) is failed
    back = deploy.retarget(failed, version(1))
    assert back.state is AppState.COMMITTED and back.runs == version(1)
    again = deploy.retarget(back, version(2))
    assert again.state is AppState.PENDING and again.tries == 0 and again.committed == version(1)


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


def test_tries_are_bounded() -> None:
    record = AppRecord(target=version(1))
    for _ in range(deploy.MAX_TRIES):
        assert not record.exhausted
        record = deploy.tried(record)
    assert record.exhausted


def test_illegal_moves_are_refused() -> None:
    with pytest.raises(ValueError, match="pending never becomes committed"):
        deploy.move(AppRecord(target=version(1)), AppState.COMMITTED)


@given(st.lists(st.one_of(st.sampled_from(list(AppState)), st.integers(1, 4)), max_size=40))
def test_only_what_was_proven_here_ever_runs_as_last_good(events: list[AppState | int]) -> None:
    record = AppRecord(target=version(1))
    proven: set[int] = set()
    for event in events:
        if isinstance(event, AppState):
            if event not in TRANSITIONS[record.state]:
                with pytest.raises(ValueError):
                    deploy.move(record, event)
                continue
            record = deploy.move(record, event)
            if event is AppState.COMMITTED:
                proven.add(record.target.version)
        else:
            record = deploy.retarget(record, version(event))
        assert record.runs is None or record.runs.version in proven
        # It survives the disk.
        assert AppRecord.model_validate_json(record.model_dump_json()) == record
