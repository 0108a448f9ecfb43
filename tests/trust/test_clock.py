from __future__ import annotations

from pathlib import Path

import pytest

from marram.trust.clock import Clock, Sources

YEAR_S = 365 * 86_400.0


class Machine:
    """Its clocks."""

    def __init__(self) -> None:
        self.wall_s, self.uptime_s, self.boot = 1000.0, 50.0, "first"

    def clock(self, file: Path) -> Clock:
        return Clock(file, Sources(lambda: self.wall_s, lambda: self.uptime_s, lambda: self.boot))


def test_without_evidence_the_wall_clock_is_all_there_is(tmp_path: Path) -> None:
    clock = Machine().clock(tmp_path / "clock")
    assert clock.now_s() == 1000 and clock.floor_s() == 0
    clock.keep()
    assert not (tmp_path / "clock").exists()


def test_evidence_and_uptime_raise_the_floor_and_the_wall_clock_never_does(tmp_path: Path) -> None:
    machine, file = Machine(), tmp_path / "clock"
    clock = machine.clock(file)
    clock.saw(2e9)
    assert clock.now_s() == 2e9
    machine.uptime_s += 3600
    assert clock.now_s() == 2e9 + 3600
    clock.saw(2e9 + 10)  # older than what is known by now
    assert clock.floor_s() == 2e9 + 3600
    machine.wall_s = 2e9 + YEAR_S
    assert clock.now_s() == machine.wall_s
    clock.keep()
    machine.wall_s = 0
    assert machine.clock(file).now_s() == 2e9 + 3600


def test_the_floor_outlives_the_process_and_the_machines_restart(tmp_path: Path) -> None:
    machine, file = Machine(), tmp_path / "clock"
    clock = machine.clock(file)
    clock.saw(2e9)
    clock.keep()
    machine.uptime_s += 100
    assert machine.clock(file).floor_s() == 2e9 + 100
    machine.uptime_s, machine.boot = 7.0, "second"
    assert machine.clock(file).floor_s() == 2e9 + 7
    machine.boot = ""  # a system that does not tell: less is known, nothing wrong
    assert machine.clock(file).floor_s() == 2e9


@pytest.mark.parametrize("boot", ["first", ""])
def test_an_uptime_that_went_back_never_lowers_the_floor(tmp_path: Path, boot: str) -> None:
    machine, file = Machine(), tmp_path / "clock"
    machine.boot = boot
    clock = machine.clock(file)
    clock.saw(2e9)
    clock.keep()
    machine.uptime_s -= 40
    again = machine.clock(file)
    assert again.floor_s() == 2e9
    machine.uptime_s += 50  # ten seconds more than when it was kept
    assert again.floor_s() == 2e9 + 10


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"floor_s": "x"}', b'{"floor_s": 1e300, "uptime_s": 1, "boot": ""}', b"[" * 100_000,
                b'{"floor_s": -5, "uptime_s": 0, "boot": "first"}',
                b'{"floor_s": 5, "uptime_s": -1e300, "boot": "first"}',
                b'{"floor_s": NaN, "uptime_s": 0, "boot": "first"}']
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clock").write_bytes(content)
    assert Machine().clock(tmp_path / "clock").now_s() == 1000
