"""The rehearsals of `make prove`, a sample of each: power cuts, full disks, a fleet, bad links; and that they find."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from marram.edge.state import Folder
from marram.lab import fleet, offline, virtual
from marram.lab.powercut import full_disk, rehearsal
from marram.lab.scratch import quiet
from marram.schema.errors import Missing


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_device_finds_its_way_from_every_power_cut() -> None:
    found = rehearsal.rehearse(every=60, orders=1, back_every=8)
    assert found.points > 40
    assert (found.bricks, found.lost, found.stuck) == ([], [], [])


def test_a_disk_that_becomes_full_at_any_write_breaks_nothing() -> None:
    try:
        disks, faults = full_disk.rehearse(full_disk.SIZES_BYTES[::12])
    except Missing as error:
        pytest.skip(str(error))
    assert disks > 8
    assert faults == []


# Defects that a careless change could bring, each in the real code of the child processes that rehearsals record.
NO_FSYNC = """
import os
os.fsync = lambda descriptor: None
"""
COMMITS_THAT_STAY_IN_MEMORY = """
import sqlite3
class Careless(sqlite3.Connection):
    def execute(self, statement, *values):
        return super().execute(statement.replace("synchronous = FULL", "synchronous = OFF"), *values)
real = sqlite3.connect
sqlite3.connect = lambda *place, **more: real(*place, factory=Careless, **more)
"""
WRITES_WHAT_FITS = """
import os
real = os.write
def write(descriptor, content):
    try:
        return real(descriptor, content)
    except OSError:
        return len(content)
os.write = write
"""


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let these lines run first in every interpreter that is started from here."""

    def lines(defect: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(defect)
        here = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))

    return lines


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("defect", "found"),
    [(NO_FSYNC, "nothing runs"), (COMMITS_THAT_STAY_IN_MEMORY, r"events \[.*\] are gone")],
    ids=["a brick", "a lost record"],
)
def test_what_a_power_cut_would_break_is_found(plant: Callable[[str], None], defect: str, found: str) -> None:
    plant(defect)
    cuts = rehearsal.rehearse(every=40, orders=1, back_every=10_000)
    assert any(re.search(found, each) for each in (*cuts.bricks, *cuts.lost)), (cuts.bricks, cuts.lost)


def test_an_agent_that_falls_over_its_disk_is_a_brick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def records(folder: Folder) -> None:
        raise ValueError("not JSON")

    monkeypatch.setattr(Folder, "records", records)
    with quiet():
        assert rehearsal.bricked(tmp_path, 1, {1}) == "the agent falls: ValueError: not JSON"


def test_what_a_full_disk_would_break_is_found(plant: Callable[[str], None]) -> None:
    plant(WRITES_WHAT_FITS)
    try:
        _, faults = full_disk.rehearse(full_disk.SIZES_BYTES[32::16])
    except Missing as error:
        pytest.skip(str(error))
    assert any("without a link: nothing runs" in fault for fault in faults), faults


def test_a_bad_version_stops_at_its_stage_and_a_good_one_comes_to_all_whoever_is_killed(tmp_path: Path) -> None:
    with quiet():
        # So many that of each kind of hardware somebody is there whenever a stage chooses whom it reaches.
        found = virtual.run(fleet.Rehearsal(tmp_path, devices=30, kills=4).run)
    assert found.faults == []
    assert (found.bad_state, found.good_state) == ("rolled_back", "completed")
    assert 0 < found.bad_reached < 30
    assert found.kills == 4
    assert found.events > 500
    assert (found.lost, found.twice) == (0, 0)


@pytest.mark.parametrize(("offline_s", "online_s"), [(5.0, 7.0), (60.0, 1.0)])
def test_what_bad_links_carry_adds_up(tmp_path: Path, offline_s: float, online_s: float) -> None:
    found = offline.OfflineFindings()
    with quiet():
        offline.cell(tmp_path, offline_s, online_s, found)
    assert found.faults == []
    assert found.events > 200
    assert found.redelivered > 0  # else nothing was ever lost on its way, and nothing is shown
    assert (found.lost, found.twice) == (0, 0)
