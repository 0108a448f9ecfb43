"""What is offered again, because nobody could know whether it came to a commit, is recorded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from marram.bus.outbox import Outbox
from marram.schema.errors import Invalid
from marram.schema.event import Event, EventKind


def lines(*serials: int) -> list[tuple[int, Event]]:
    return [(n, Event(EventKind.DEPLOYMENT, "gate", 1.0, {"serial": n})) for n in serials]


def serials(outbox: Outbox) -> list[int]:
    return [record.event.data["serial"] for record in outbox.read()]


def test_each_line_once_over_restarts(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    outbox.append_once("a", lines(1, 2))
    outbox.append_once("a", lines(1, 2, 3))
    outbox.append_once("b", lines(1))
    assert serials(outbox) == [1, 2, 3, 1]
    outbox.acknowledge(record.sequence for record in outbox.read())
    outbox.close()
    outbox = Outbox(tmp_path / "o.db")
    outbox.append_once("a", lines(2, 3))
    assert serials(outbox) == []
    outbox.append_once("a", lines(3, 4))
    outbox.forget_once("a")
    outbox.append_once("a", lines(4))
    assert serials(outbox) == [4, 4]
    outbox.close()


def test_all_or_none(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    spoilt = (2, Event(EventKind.DEPLOYMENT, "gate", 1.0, {"bad": object()}))
    with pytest.raises(Invalid):
        outbox.append_once("a", [*lines(1), spoilt])
    outbox.append_once("a", lines(1))
    assert serials(outbox) == [1]
    outbox.close()


def test_a_full_outbox_gives_deployments_up_last(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", limit_bytes=20_000)
    outbox.append_once("a", lines(*range(1, 51)))
    outbox.append([Event(EventKind.ALERT, "gate", 1.0, {"x": "y" * 500}) for _ in range(100)])
    given_up = outbox.given_up()
    assert given_up.get("alert", 0) > 0 and "deployment" not in given_up
    outbox.close()
