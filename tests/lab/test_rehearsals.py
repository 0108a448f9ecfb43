"""The rehearsals of `make prove`, a sample of each: power cuts, full disks, a fleet, bad links."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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


def test_a_bad_version_stops_at_its_stage_and_a_good_one_comes_to_all_whoever_is_killed(tmp_path: Path) -> None:
    with quiet():
        found = virtual.run(fleet.Rehearsal(tmp_path, devices=20, kills=4).run)
    assert found.faults == []
    assert (found.bad_state, found.good_state) == ("rolled_back", "completed")
    assert 0 < found.bad_reached < 20
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
