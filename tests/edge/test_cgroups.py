"""Control groups: a hierarchy as systemd delegates it, in files; and the kernel's own where this machine has one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.edge import cgroups
from marram.edge.cgroups import Groups
from marram.edge.sandbox import isolation

UNIT = "system.slice/marram-edge.service"


@pytest.fixture
def delegated(tmp_path: Path) -> Path:
    """What the kernel shows of a group that was delegated to us."""
    base = tmp_path / UNIT
    (base / "agent").mkdir(parents=True)
    (base / "cgroup.controllers").write_text("cpu io memory pids\n")
    (base / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (base / "cgroup.subtree_control").write_text("")
    (base / "agent" / "cpu.weight").write_text("100")
    return base


def test_the_agent_steps_aside_and_divides_its_group(tmp_path: Path, delegated: Path) -> None:
    groups = Groups.open(tmp_path, UNIT)
    assert groups is not None
    assert (delegated / "agent/cgroup.procs").read_text() == str(os.getpid())
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (delegated / "agent/cpu.weight").read_text() == "300"
    assert isolation(groups).endswith("; cgroup: memory, pids, cpu")


def test_each_version_of_an_app_has_its_limits(tmp_path: Path, delegated: Path) -> None:
    groups = Groups.open(tmp_path, UNIT)
    assert groups is not None
    place = groups.place("gate", 3)
    place.mkdir()
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.weight"):
        (place / name).write_text("")
    assert cgroups.make(place, 100_000_000)
    limits = {file.name: file.read_text() for file in place.iterdir()}
    assert limits == {
        "memory.max": "126000000", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "512",
        "cpu.weight": "100",
    }  # fmt: skip
    assert cgroups.make(place, None)
    assert (place / "memory.max").read_text() == "max"
    assert groups.place("gate", 4) != place


def test_use_and_end_are_read_from_it(tmp_path: Path) -> None:
    assert cgroups.used_bytes(tmp_path) is None
    assert not cgroups.out_of_memory(tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 400\ninactive_file 300\n")
    assert cgroups.used_bytes(tmp_path) == 700
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not cgroups.out_of_memory(tmp_path)
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert cgroups.out_of_memory(tmp_path)


@pytest.mark.parametrize(
    "spoilt", ["cgroup.procs", "cgroup.controllers", "cgroup.subtree_control"], ids=["shared", "bare", "absent"]
)
def test_what_is_not_ours_alone_is_left_alone(tmp_path: Path, delegated: Path, spoilt: str) -> None:
    if spoilt == "cgroup.procs":
        (delegated / spoilt).write_text(f"1\n{os.getpid()}\n")
    elif spoilt == "cgroup.controllers":
        (delegated / spoilt).write_text("hugetlb\n")
    else:
        (delegated / spoilt).unlink()
    assert Groups.open(tmp_path, UNIT) is None
    assert not (delegated / "agent/cgroup.procs").exists()
    assert Groups.open(tmp_path, "") is None
    assert Groups.open(tmp_path, "/no/such") is None


def test_the_whole_machines_group_is_never_divided(tmp_path: Path, delegated: Path) -> None:
    for name in ("cgroup.controllers", "cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).write_text((delegated / name).read_text())
    assert Groups.open(tmp_path, "/") is None
    assert not (tmp_path / "agent").exists()


def test_where_it_cannot_be_divided_the_agent_steps_back(tmp_path: Path, delegated: Path) -> None:
    (delegated / "cgroup.subtree_control").unlink()
    (delegated / "cgroup.subtree_control").mkdir()  # cannot be written
    assert Groups.open(tmp_path, UNIT) is None
    assert (delegated / "cgroup.procs").read_text() == str(os.getpid()), "it moved there and back"


@pytest.fixture
def kernels() -> Iterator[Path]:
    """A group of the kernel's."""
    for root in (cgroups.ROOT, cgroups.ROOT / "unified"):
        place = root / f"marram-test-{os.getpid()}"
        if (root / "cgroup.controllers").exists() and os.access(root, os.W_OK):
            try:
                place.mkdir()
            except OSError:
                continue
            yield place
            cgroups.end(place)
            return
    pytest.skip("no cgroup v2 that we may write here")


def test_whatever_an_app_has_started_ends_with_it(kernels: Path) -> None:
    # A process that left its session is in no process group of ours any more.
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (kernels / "cgroup.procs").write_text(str(child.pid))
    assert (kernels / "cgroup.procs").read_text().split() == [str(child.pid)]
    cgroups.end(kernels)
    assert child.wait(10) == -9
