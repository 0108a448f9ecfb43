"""`marram edge install` and `uninstall`: a joined device becomes a service of this machine, and stops being one.

Each step is told before it is done (`--dry-run`: instead of it), and each may be done again: what is as it should be
stays. A device's folder is moved, never copied: two of it would be two of one identity.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marram.edge.disk import disk_fault
from marram.edge.state import Folder
from marram.edge.unit import GROUPS, NAME, Unit
from marram.schema.errors import Conflict, Missing, Permanent, Refused
from marram.schema.words import file_fault
from marram.system import files

FOLDER = Path("/var/lib/marram/edge")
USER = "marram"


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as far as installing touches it. Tests have one under a folder of their own."""

    root: Path = Path("/")
    tell: Callable[[str], None] = print
    dry: bool = False
    groups: Sequence[str] = field(default_factory=lambda: [group.gr_name for group in grp.getgrall()])

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    def check(self, command: str) -> None:
        """Raises Missing (no systemd here), Refused (not root). A dry run needs neither."""
        if self.dry:
            return
        if not (self.root / "run/systemd/system").is_dir():
            raise Missing(
                "this machine does not run systemd",
                hint="Have its own init system keep `marram edge run`: it stays in the foreground and ends on SIGTERM.",
            )
        if os.geteuid() != 0:
            raise Refused(
                "this needs root", hint=f"sudo {shlex.quote(sys.executable)} -m marram edge {command} (same options)"
            )

    def do(self, *command: str) -> None:
        """Raises Permanent with what it says, where it fails; Missing where there is no such program."""
        self.tell(shlex.join(command))
        if self.dry:
            return
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except FileNotFoundError as error:
            raise Missing(f"there is no {command[0]} on this machine") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise Permanent(said[-1][:300] if said else f"exit status {done.returncode}", where=shlex.join(command))


def install(host: Host, found: Folder, folder: Path = FOLDER, user: str = USER) -> Unit:
    """Have systemd keep the device in `folder`; one that is in `found` so far is moved there.

    Raises Missing (no systemd, no device), Refused (not root, an interpreter that `user` cannot read), Conflict (an
    agent runs), Permanent (a program that failed).
    """
    host.check("install")
    target, source = Folder(folder), None
    if not target.joined():
        if not found.joined():
            raise Missing(
                f"no device has joined a cloud here (neither {folder} nor {found.path})",
                hint=f"Join first: marram edge join URL TOKEN --folder {folder}",
            )
        source = found
    for each in filter(None, (source, target)):
        # A dry run changes nothing, so whoever runs may go on.
        if not host.dry and (holder := each.holder()) is not None and not (host.units / NAME).exists():
            raise Conflict(f"an agent (process {holder}) runs on {each.path}", hint="Stop it first.")
    _check_readable(Path(sys.prefix), user)
    if not _user(user):
        host.do("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(folder.parent),
                "--shell", "/usr/sbin/nologin", user)  # fmt: skip
    if source is not None:
        _move(host, source.path, folder)
    _own(host, folder, user)
    unit = Unit(
        python=sys.executable,
        folder=folder,
        user=user,
        groups=[group for group in GROUPS if group in host.groups],
        in_home=any(Path(sys.prefix).is_relative_to(home) for home in ("/home", "/root", "/run/user")),
        shares_tmp=(host.root / "etc/nv_tegra_release").exists(),
    )
    host.tell(f"write {host.units / NAME}")
    if host.dry:
        host.tell(unit.text())
    else:
        _write(host.units / NAME, unit.text())
    host.do("systemctl", "daemon-reload")
    host.do("systemctl", "enable", "--now", NAME)
    host.do("systemctl", "restart", NAME)
    return unit


def uninstall(host: Host) -> None:
    """Stop the service and take its unit away; the device's folder stays, and may be run by hand or installed again.

    Raises Missing (no systemd, not installed), Refused (not root), Permanent.
    """
    host.check("uninstall")
    if not (host.units / NAME).exists():
        raise Missing(f"no {NAME} is installed here")
    host.do("systemctl", "disable", "--now", NAME)
    host.tell(f"remove {host.units / NAME}")
    if not host.dry:
        (host.units / NAME).unlink()
    host.do("systemctl", "daemon-reload")


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _check_readable(place: Path, user: str) -> None:
    """Raises Refused where others than its owner cannot come to the interpreter's folder."""
    known = _user(user)
    for part in [place, *place.parents]:
        status = part.stat()
        owned = known is not None and status.st_uid == known.pw_uid
        if not owned and not status.st_mode & stat.S_IXOTH:
            raise Refused(
                f"the user {user} cannot read Marram: it lies in {place}, and {part} is closed to others",
                hint="Install Marram where everybody can read it, for example in a virtual environment in /opt/marram.",
            )


def _move(host: Host, source: Path, folder: Path) -> None:
    host.tell(f"move {source} to {folder}")
    if host.dry:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if folder.exists():
            raise Conflict(f"{folder} is there, and is no device's", hint="Look at it, and move it away.")
        try:
            source.rename(folder)
        except OSError:
            # Another file system: whole there before anything goes here.
            arriving = folder.with_name(f".{folder.name}.arriving")
            shutil.rmtree(arriving, ignore_errors=True)
            shutil.copytree(source, arriving, symlinks=True, ignore=shutil.ignore_patterns("agent.*", "bundles"))
            for root, _, names in os.walk(arriving):
                for name in names:
                    files.sync(Path(root) / name)
                files.sync(Path(root))
            arriving.rename(folder)
            files.sync(folder.parent)
            shutil.rmtree(source)
        files.sync(folder.parent)
    except OSError as error:
        raise disk_fault(error, folder) from error


def _own(host: Host, folder: Path, user: str) -> None:
    host.tell(f"give {folder} to {user}, and to nobody else")
    if host.dry or (known := _user(user)) is None:
        return
    try:
        for place in _all(folder):
            os.chown(place, known.pw_uid, known.pw_gid, follow_symlinks=False)
        folder.chmod(0o700)
    except OSError as error:
        raise Permanent(file_fault(error), where=str(folder)) from error


def _all(folder: Path) -> Iterator[Path]:
    yield folder
    for root, folders, names in os.walk(folder):
        yield from (Path(root) / name for name in (*folders, *names))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, text.encode())
        path.chmod(0o644)
    except OSError as error:
        raise Permanent(file_fault(error), where=str(path)) from error
