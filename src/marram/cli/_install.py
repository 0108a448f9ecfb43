"""`marram edge install` and `uninstall`, as they are typed."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import Annotated

import typer

from marram.edge import installing
from marram.edge.state import Folder
from marram.edge.unit import NAME
from marram.schema import paths

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, the unit file included; do nothing.")]


def install(
    user: Annotated[str, typer.Option(help="The user it runs as; made where there is none.")] = installing.USER,
    folder: Annotated[
        Path, typer.Option(help="Where the device lives from then on; moved there where it lives in your home.")
    ] = installing.FOLDER,
    dry_run: DryRun = False,
) -> None:
    """Have systemd run this device: from boot on, started again whatever ends it, with no rights but those it needs."""
    host = installing.Host(dry=dry_run)
    installing.install(host, _found(), folder.absolute(), user)
    if not dry_run:
        print(f"runs, and starts at boot: systemctl status {NAME}")
        print(
            f"its words: journalctl -u {NAME}    its state: sudo {Path(sys.argv[0]).name} edge status --folder {folder}"
        )


def uninstall(dry_run: DryRun = False) -> None:
    """Stop the service and take it away. The device's folder stays."""
    installing.uninstall(installing.Host(dry=dry_run))
    if not dry_run:
        print(f"removed; the device itself stays: sudo marram edge run --folder {installing.FOLDER}")


def _found() -> Folder:
    """The device of whoever types: under `sudo` that is another than root."""
    caller = os.environ.get("SUDO_USER")
    if caller and "MARRAM_HOME" not in os.environ:
        try:
            return Folder(Path(pwd.getpwnam(caller).pw_dir) / ".local/share/marram/edge")
        except KeyError:
            pass
    return Folder(paths.edge())
