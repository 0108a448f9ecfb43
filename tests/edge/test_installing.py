"""A device as a systemd service: the unit, what `install` does to a machine and what it refuses, what systemd hears."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from marram.edge import installing
from marram.edge.installing import Host
from marram.edge.notify import Notifier
from marram.edge.state import Credentials, Folder
from marram.edge.unit import NAME, Unit
from marram.schema.errors import Conflict, Missing, Permanent, Refused
from marram.system import files

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
# The most that `systemd-analyze security` may say (10: everything open); docs/devices.md has the figure.
MOST_EXPOSED = 2.0


def unit(tmp_path: Path) -> Path:
    made = tmp_path / NAME
    made.write_text(Unit(sys.executable, installing.FOLDER, "marram", ["video", "render"]).text())
    return made


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    said = subprocess.run(["systemd-analyze", "verify", str(unit(tmp_path))], capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@needs_systemd
def test_it_is_as_little_exposed_as_the_documentation_says(tmp_path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit(tmp_path))]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= MOST_EXPOSED
    assert f"**{found[1]}**" in (Path(__file__).parents[2] / "docs/devices.md").read_text()


def test_the_unit_says_what_matters(tmp_path: Path) -> None:
    text = unit(tmp_path).read_text()
    for line in (
        "Restart=always", "StartLimitIntervalSec=0", "Type=notify", "Delegate=memory pids cpu", "OOMPolicy=continue",
        "NoNewPrivileges=yes", "ProtectSystem=strict", "StateDirectory=marram", "WantedBy=multi-user.target",
        "SupplementaryGroups=video render", "CapabilityBoundingSet=", "ReadWritePaths=/var/lib/marram/edge",
    ):  # fmt: skip
        assert f"\n{line}\n" in text
    elsewhere = Unit("/home/pi/venv/bin/python", Path("/data/edge"), "marram", in_home=True, shares_tmp=True).text()
    assert "StateDirectory" not in elsewhere
    assert "ProtectHome=read-only" in elsewhere
    assert "PrivateTmp=no" in elsewhere


class Machine:
    """A machine under a folder: programs that only say that they were called."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.told, self.calls = root, list[str](), root / "calls"
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "bin").mkdir()
        for name in ("systemctl", "useradd"):
            program = root / "bin" / name
            program.write_text(f'#!/bin/sh\necho {name} "$@" >> {self.calls}\n')
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        # The tests' interpreter may lie where nobody else can read.
        monkeypatch.setattr(sys, "prefix", "/usr")
        self.host = Host(root, self.told.append, groups=["video", "gpio", "users"])
        self.device = Folder(root / "home/marram/edge")
        self.device.make()
        self.device.save_credentials(Credentials(device="pi", brokers=["tls://x:1"]))

    @property
    def unit(self) -> str:
        return (self.root / "etc/systemd/system" / NAME).read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Machine(tmp_path, monkeypatch)


def test_it_moves_the_device_and_has_systemd_keep_it(machine: Machine, tmp_path: Path) -> None:
    place = tmp_path / "var/edge"
    machine.device.path.chmod(0o755)
    installing.install(machine.host, machine.device, place, "nobody")
    assert not machine.device.path.exists()
    assert Folder(place).credentials().device == "pi"
    assert place.stat().st_mode & 0o777 == 0o700
    assert f"--folder {place}\n" in machine.unit
    assert "User=nobody\nSupplementaryGroups=video gpio\n" in machine.unit
    assert (tmp_path / "etc/systemd/system" / NAME).stat().st_mode & 0o777 == 0o644
    assert machine.calls.read_text().splitlines() == [
        "systemctl daemon-reload", f"systemctl enable --now {NAME}", f"systemctl restart {NAME}",
    ]  # fmt: skip
    # Again: what is there stays.
    installing.install(machine.host, machine.device, place, "nobody")
    assert Folder(place).credentials().device == "pi"
    installing.uninstall(machine.host)
    assert not (tmp_path / "etc/systemd/system" / NAME).exists()
    assert Folder(place).joined()
    with pytest.raises(Missing, match=r"no marram-edge\.service is installed here"):
        installing.uninstall(machine.host)


def test_onto_another_file_system_it_is_whole_there_before_the_old_one_goes(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail at any moment of it: one of the two is the device, whole."""
    place, source = tmp_path / "var/edge", machine.device.path
    arriving = tmp_path / "var/.edge.arriving"
    arriving.mkdir(parents=True)
    (arriving / "stale").touch()  # of an earlier try
    done: list[tuple[str, Path]] = []
    rename, rmtree, sync = Path.rename, shutil.rmtree, files.sync

    def renamed(self: Path, target: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        done.append(("rename", target))
        return rename(self, target)

    def removed(path: Path, **options: bool) -> None:
        done.append(("remove", path))
        rmtree(path, **options)

    def synced(path: Path) -> None:
        done.append(("sync", path))
        sync(path)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    monkeypatch.setattr(files, "sync", synced)
    names = {each.relative_to(source) for each in source.rglob("*") if each.name not in ("agent.lock", "bundles")}
    installing.install(machine.host, machine.device, place, "nobody")
    arrived = done.index(("rename", place))
    before = {path for what, path in done[:arrived] if what == "sync"}
    assert {arriving, *(arriving / name for name in names)} <= before
    assert done[arrived + 1 : arrived + 3] == [("sync", place.parent), ("remove", source)]
    assert Folder(place).joined() and not source.exists() and not (place / "stale").exists()


def test_what_a_link_leads_to_is_given_to_nobody(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app may have left a link in its working folder, to what is not the device's."""
    given: dict[str, bool] = {}

    def chown(place: Path, user: int, group: int, *, follow_symlinks: bool) -> None:
        given[place.name] = follow_symlinks

    monkeypatch.setattr(os, "chown", chown)
    (machine.device.path / "shadow").symlink_to("/etc/shadow")
    installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")
    assert given["shadow"] is False and given["edge"] is False


def test_it_makes_the_user(machine: Machine, tmp_path: Path) -> None:
    installing.install(machine.host, machine.device, tmp_path / "edge", "nobody-yet")
    assert machine.calls.read_text().startswith("useradd --system --user-group --no-create-home")


def test_a_dry_run_changes_nothing_and_needs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    shutil.rmtree(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    host = Host(tmp_path, machine.told.append, dry=True)
    installing.install(host, machine.device, tmp_path / "edge", "nobody")
    assert sorted(tmp_path.rglob("*")) == before
    assert any("Restart=always" in each for each in machine.told)
    machine.told.clear()
    with machine.device.lock():  # its agent runs, and may go on
        installing.install(host, machine.device, tmp_path / "edge", "nobody")
    assert any("Restart=always" in each for each in machine.told)


def test_what_is_missing_is_said(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match=r"no device has joined .* Join first: marram edge join"):
        installing.install(machine.host, Folder(tmp_path / "nothing"), tmp_path / "edge", "nobody")
    (tmp_path / "bin/systemctl").write_text("#!/bin/sh\necho Failed to connect to bus >&2\nexit 1\n")
    with pytest.raises(Permanent, match="systemctl daemon-reload: Failed to connect to bus"):
        installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    tmp_path.chmod(0o700)
    with pytest.raises(Refused, match=r"user nobody cannot read Marram.*/opt/marram"):
        installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused, match=r"this needs root. sudo .* -m marram edge install"):
        installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(Missing, match="does not run systemd"):
        installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")


def test_a_device_that_runs_is_not_moved_from_under_its_agent(machine: Machine, tmp_path: Path) -> None:
    with machine.device.lock(), pytest.raises(Conflict, match=rf"an agent \(process {os.getpid()}\) runs on"):
        installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "other").touch()
    with pytest.raises(Conflict, match="is there, and is no device's"):
        installing.install(machine.host, machine.device, tmp_path / "edge", "nobody")
    assert machine.device.joined()


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
async def test_systemd_hears_that_it_lives(tmp_path: Path, abstract: bool) -> None:
    name = f"@marram-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if abstract else name)
        manager.setblocking(False)
        given = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
        notifier = Notifier(given)
        assert given == {"HOME": "/"}
        notifier.ready()
        living = asyncio.create_task(notifier.live())
        heard = [await asyncio.get_running_loop().sock_recv(manager, 100) for _ in range(4)]
        living.cancel()
        notifier.stopping()
        assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]


async def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    notifier.ready()
    await notifier.live()
