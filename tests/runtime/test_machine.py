"""What machine this is, read from file systems as a PC, a Raspberry Pi and a Jetson have them."""

from __future__ import annotations

from pathlib import Path

from marram.runtime.machine import inspect


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("_DOT_", ".").replace("_DASH_", "-")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_this_machine_says_something() -> None:
    here = inspect()
    assert here.cores >= 1
    assert here.architecture
    assert here.processor


def test_a_jetson_and_its_power_mode(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__cpuinfo="processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: fp asimd asimddp\n",
        proc__meminfo="MemTotal:        7990356 kB\nMemFree: 1 kB\n",
        proc__device_DASH_tree__model="NVIDIA Jetson Orin Nano Developer Kit\0",
        etc__nvpmodel_DOT_conf="# comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU 0\n< POWER_MODEL ID=1 NAME=7W >\n",
        var__lib__nvpmodel__status="pmode:0001 fmode:quiet",
    )
    here = inspect(root)
    assert here.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (here.power_mode, here.power_modes) == ("7W", ("15W", "7W"))
    assert here.memory_bytes == 7990356 * 1024
    assert here.processor == "ARMv8 Processor rev 1 (v8l)"
    assert here.int8 == ("dot product",)


def test_a_raspberry_pi_has_no_power_mode(tmp_path: Path) -> None:
    here = inspect(write(tmp_path, proc__device_DASH_tree__model="Raspberry Pi 4 Model B Rev 1.4\0"))
    assert (here.board, here.power_mode) == ("Raspberry Pi 4 Model B Rev 1.4", "")


def test_a_mode_that_no_table_names_keeps_its_number(tmp_path: Path) -> None:
    assert inspect(write(tmp_path, var__lib__nvpmodel__status="pmode:0008")).power_mode == "mode 8"


def test_an_empty_file_system_is_no_fault(tmp_path: Path) -> None:
    here = inspect(tmp_path)
    assert (here.memory_bytes, here.board, here.int8) == (0, "", ())
    assert here.processor  # what Python itself knows
