"""`make prove`: power cuts, full disks, attacks, a fleet, bad links: all of them mounted, one JSON line at the end.

Each suite tells what it finds as it goes; what should not have been is printed in words, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from marram.lab import fleet, offline, virtual
from marram.lab.attacks import bundles, identities, models, updates
from marram.lab.attacks.outcome import Outcome
from marram.lab.attacks.updates import damage
from marram.lab.powercut import full_disk
from marram.lab.powercut import rehearsal as powercut
from marram.lab.scratch import quiet, scratch
from marram.schema.errors import MarramError

# What one suite found: figures for the line, faults in words.
Found = tuple[dict[str, Any], list[str]]
# Figures that several suites have.
_ADDED = ("bricks", "lost", "twice")


def crash(folder: Path, small: bool) -> Found:
    """Every power cut of a deployment."""
    cuts = powercut.rehearse(every=40 if small else 2)
    figures = {"crash_points": cuts.points, "bricks": len(cuts.bricks) + len(cuts.stuck), "lost": len(cuts.lost)}
    return figures, [*cuts.bricks, *cuts.stuck, *cuts.lost]


def disk(folder: Path, small: bool) -> Found:
    """A deployment on a disk that becomes full, at every write."""
    disks, faults = full_disk.rehearse(full_disk.SIZES_BYTES[:: 16 if small else 1])
    return {"full_disks": disks, "bricks": len(faults)}, faults


# Attacks of one kind, each on the real victim.
ATTACKS: dict[str, Callable[[Path, bool], Iterable[Outcome]]] = {
    "updates": lambda folder, small: updates.mount_all(folder),
    "signed documents flipped": lambda folder, small: damage.flipped(folder, 100 if small else 1000),
    "garbage for documents": lambda folder, small: damage.garbage(folder, 50 if small else 500),
    "bundles flipped": lambda folder, small: bundles.flipped(folder, 200 if small else 2000),
    "paths": lambda folder, small: bundles.traversals(),
    "models": lambda folder, small: models.mount_all(folder),
    "identities": lambda folder, small: identities.mount_all(folder),
}


def attacks(folder: Path, small: bool) -> Found:
    """Every attack."""
    outcomes: list[Outcome] = []
    for kind, mount in ATTACKS.items():
        outcomes += mount(folder / kind.replace(" ", "-"), small)
    accepted = [outcome for outcome in outcomes if not outcome.refused]
    reasons = {outcome.reason for outcome in outcomes if outcome.refused}
    figures = {"attacks": len(outcomes), "accepted": len(accepted), "reasons": len(reasons)}
    return figures, [f"{outcome.name}: {outcome.words}" for outcome in accepted]


def whole_fleet(folder: Path, small: bool) -> Found:
    """A bad rollout and a good one, the controller killed on the way."""
    devices, kills = (20, 3) if small else (200, 10)
    found = virtual.run(fleet.Rehearsal(folder, devices, kills).run)
    figures = {
        "devices": found.devices,
        "controller_kills": found.kills,
        "bad_rollout": found.bad_state,
        "bad_reached": found.bad_reached,
        "good_rollout": found.good_state,
        "lost": found.lost,
        "twice": found.twice,
    }
    return figures, found.faults


def bad_links(folder: Path, small: bool) -> Found:
    """The offline matrix."""
    found = offline.rehearse(folder, list(offline.cells())[:: 4 if small else 1])
    figures = {
        "offline_cells": found.cells,
        "offline_events": found.events,
        "redelivered": found.redelivered,
        "lost": found.lost,
        "twice": found.twice,
    }
    return figures, found.faults


SUITES: dict[str, Callable[[Path, bool], Found]] = {
    "crash": crash,
    "disk": disk,
    "attacks": attacks,
    "fleet": whole_fleet,
    "offline": bad_links,
}


def main(arguments: list[str]) -> int:
    """The exit status: 0 where nothing was found that should not be."""
    parser = argparse.ArgumentParser(prog="make prove", description=__doc__, allow_abbrev=False)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of {', '.join(SUITES)}; default: all")
    parser.add_argument("--small", action="store_true", help="a sample of each: a minute instead of ten")
    wanted = parser.parse_args(arguments)
    if unknown := set(wanted.suites) - set(SUITES):
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    line: dict[str, Any] = {}
    faults: list[str] = []
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    for name in wanted.suites or SUITES:
        begun_s = time.perf_counter()
        try:
            with quiet(), scratch() as folder:
                figures, found = SUITES[name](folder, wanted.small)
        except MarramError as error:  # no strace, no right to mount …: what was not shown is not so
            figures, found = {}, [f"{name} could not be played: {error}"]
        for key, value in figures.items():
            line[key] = line.get(key, 0) + value if key in _ADDED else value
        faults += found
        print(f"{name:<8} {time.perf_counter() - begun_s:4.0f} s  {figures}", file=sys.stderr)
    for fault in faults:
        print(f"not so: {fault}", file=sys.stderr)
    print(json.dumps({**line, "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
