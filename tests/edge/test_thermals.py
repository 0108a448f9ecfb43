from __future__ import annotations

from pathlib import Path

from marram.edge.thermals import Thermals


def zone(root: Path, number: int, kind: str, temp: str) -> None:
    folder = root / f"class/thermal/thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(kind + "\n")
    (folder / "temp").write_text(temp + "\n")


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    thermals = Thermals(tmp_path)
    assert thermals.temperature_c() is None and thermals.throttled() is None


def test_the_processor_counts_before_the_battery(tmp_path: Path) -> None:
    zone(tmp_path, 0, "battery", "90000")
    zone(tmp_path, 1, "cpu-thermal", "61234")
    zone(tmp_path, 2, "x86_pkg_temp", "64000")
    assert Thermals(tmp_path).temperature_c() == 64.0


def test_without_a_processor_the_hottest_and_nothing_impossible(tmp_path: Path) -> None:
    for number, (kind, temp) in enumerate([("a", "40000"), ("b", "-273000"), ("c", "999000"), ("d", "?"), ("e", "0")]):
        zone(tmp_path, number, kind, temp)
    assert Thermals(tmp_path).temperature_c() == 40.0


def test_a_raspberry_pi_says_what_is_now_and_what_was(tmp_path: Path) -> None:
    place = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    place.parent.mkdir(parents=True)
    for said, throttled in [("0", False), ("50000", False), ("50005", True), ("8", True), ("1", False), ("x", None)]:
        place.write_text(said)
        assert Thermals(tmp_path).throttled() is throttled, said


def test_a_fan_is_no_throttling(tmp_path: Path) -> None:
    for number, (kind, state) in enumerate([("pwm-fan", "3"), ("cpufreq-cpu0", "0")]):
        folder = tmp_path / f"class/thermal/cooling_device{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(kind)
        (folder / "cur_state").write_text(state)
    assert Thermals(tmp_path).throttled() is False
    (tmp_path / "class/thermal/cooling_device1/cur_state").write_text("2")
    assert Thermals(tmp_path).throttled() is True


def test_a_count_that_rises_is_throttling_since_the_last_look(tmp_path: Path) -> None:
    place = tmp_path / "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    place.parent.mkdir(parents=True)
    place.write_text("7")
    thermals = Thermals(tmp_path)
    assert thermals.throttled() is False
    place.write_text("8")
    assert thermals.throttled() is True and thermals.throttled() is False
