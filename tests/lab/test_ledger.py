"""The count at both ends sees what it is there to see: a lost event, a doubled one, one that was given up."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from marram.bus.outbox import Outbox
from marram.lab.ledger import Ledger, Mark, delivered, read_ledger, read_mark
from marram.schema.api import EventView
from marram.schema.errors import NotReady
from marram.schema.event import Event, EventKind


class Rows:
    """A cloud that holds exactly these rows."""

    def __init__(self, rows: list[EventView]) -> None:
        self._rows = rows

    def events(self, *, after: int, limit: int) -> list[EventView]:
        return [row for row in self._rows if row.id > after][: min(limit, 3)]


def row(id: int, sequence: int, stream: str = "stream-1", device: str = "gate") -> EventView:
    return EventView(id=id, device=device, app="a", kind=EventKind.RESULT, time_s=0.0, stream=stream, sequence=sequence)


def count(rows: list[EventView], mark: Mark) -> Ledger:
    return read_ledger(Rows(rows), {"gate": mark})  # type: ignore[arg-type]


MARK = Mark("stream-1", 5, 0, 0, None)


def test_all_there_once() -> None:
    ledger = count([row(n, n) for n in range(1, 9)], MARK)
    # 6 to 8 came after the mark; they are not part of the account.
    assert (ledger.recorded, ledger.stored, ledger.lost, ledger.duplicated) == (5, 5, 0, 0)
    assert [event.sequence for event in ledger.events["gate"]] == [1, 2, 3, 4, 5]


def test_a_lost_one_and_a_doubled_one_do_not_cancel_out() -> None:
    ledger = count([row(1, 1), row(2, 2), row(3, 2), row(4, 4), row(5, 5)], MARK)
    assert (ledger.recorded, ledger.stored, ledger.lost, ledger.duplicated) == (5, 4, 1, 1)


def test_rows_of_another_outbox_or_device_do_not_fill_a_gap() -> None:
    others = [row(6, 3, stream="stream-2"), row(7, 3, device="other")]
    assert count([row(n, n) for n in (1, 2, 4, 5)] + others, MARK).lost == 1


def test_what_a_full_outbox_gave_up_is_counted_as_that() -> None:
    ledger = count([row(n, n) for n in (3, 4, 5)], dataclasses.replace(MARK, given_up=2))
    assert (ledger.stored, ledger.given_up, ledger.lost) == (3, 2, 0)


def test_marks_are_read_beside_a_living_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with pytest.raises(NotReady):
        read_mark(path)
    outbox = Outbox(path)
    try:
        outbox.append([Event(EventKind.RESULT, "a", time.time(), {"n": n}) for n in range(10)])
        mark = read_mark(path)
        assert (mark.stream, mark.highest, mark.waiting, mark.oldest, mark.given_up) == (outbox.stream, 10, 10, 1, 0)
        assert not delivered(path, mark)
        outbox.acknowledge(range(1, 11))
        assert delivered(path, mark)
        # The number is never given out again, however empty the file is.
        assert read_mark(path).highest == 10
        outbox.append([Event(EventKind.RESULT, "a", time.time(), {})])
        assert delivered(path, mark)
    finally:
        outbox.close()
