"""`marram edge hold` and `release`: what the folder says, whatever the clock does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from marram.edge import hold
from marram.edge.hold import Holding
from marram.edge.state import Folder
from marram.schema.errors import Missing
from marram.schema.journal import What


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.make()
    return made


def test_held_until_released(folder: Folder) -> None:
    holding = Holding(folder)
    assert holding.words() is None and holding.lines() == ("", [])
    hold.hold(folder, None, "line 4 runs")
    assert holding.words() == "held until it is released: line 4 runs"
    assert Holding(folder).words() == holding.words(), "a new agent reads the same"
    key, lines = holding.lines()
    assert [line.what for line in lines] == [What.HOLD]
    hold.release(folder)
    assert holding.words() is None
    again, lines = holding.lines()
    assert again == key and [line.what for line in lines] == [What.HOLD, What.RELEASE]
    with pytest.raises(Missing, match="not held"):
        hold.release(folder)
    hold.hold(folder, None, "")
    assert holding.words() == "held until it is released" and holding.lines()[0] != key


def test_within_a_boot_its_end_is_told_by_the_uptime(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a device may jump by years once it hears the time."""
    wall_s, up_s = 1000.0, 50.0
    monkeypatch.setattr(time, "time", lambda: wall_s)
    monkeypatch.setattr(hold, "_uptime_s", lambda: up_s)
    monkeypatch.setattr(hold, "_boot", lambda: "one")
    holding = Holding(folder)
    hold.hold(folder, 7200, "")
    wall_s = 1.8e9
    assert holding.words() is not None
    up_s += 7199
    assert holding.words() is not None
    up_s += 1
    assert holding.words() is None
    assert holding.lines()[1][1].reason == "its time was over"


def test_over_a_reboot_by_the_wall_clock(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    wall_s, boot = 1.8e9, "one"
    monkeypatch.setattr(time, "time", lambda: wall_s)
    monkeypatch.setattr(hold, "_uptime_s", lambda: 5.0)
    monkeypatch.setattr(hold, "_boot", lambda: boot)
    hold.hold(folder, 100, "")
    boot = "two"
    assert Holding(folder).words() == "held until 2027-01-15 08:01 UTC"
    wall_s -= 1e9
    held = hold.read(folder)
    assert held is not None and held.left_s() == 100, "a clock that goes back makes no hold longer"
    wall_s += 1e9 + 100
    assert Holding(folder).words() is None


def test_a_hold_in_the_place_of_another_is_seen_whatever_its_size(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(hold, "_uptime_s", lambda: 5.0)
    holding = Holding(folder)
    for reason in ("line 4 runs", "line 5 runs"):
        hold.hold(folder, None, reason)
        assert holding.words() == f"held until it is released: {reason}"


def test_a_damaged_hold_is_none(folder: Folder) -> None:
    hold.hold(folder, None, "")
    (folder.path / hold.FILE).write_bytes(b"{")
    assert Holding(folder).words() is None


def test_a_hold_that_no_calendar_has_holds_nothing_and_stops_no_report(folder: Folder) -> None:
    (folder.path / hold.FILE).write_text('{"id": "x", "begun_s": 0, "for_s": 1e300}')
    assert Holding(folder).words() is None
    hold.hold(folder, None, "a" * 10_000)
    words = Holding(folder).words()
    assert words is not None and len(words) < 2000, "what the cloud takes"
