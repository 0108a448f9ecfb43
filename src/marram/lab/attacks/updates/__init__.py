"""Attacks on signed updates: a malicious cloud, or one whose online keys were stolen, and a device that meets it.

Each is mounted with the real repository and the real verifier: the cloud is `Publisher`, honest until the attack
changes what it serves or takes its keys. What TUF promises for each role and key is in its specification (section
1.5.2), and python-tuf's client is tested for it upstream; here it is shown of a device: its files, its clock, the name
it has for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from marram.lab.attacks.outcome import Outcome
from marram.lab.attacks.updates import endless, freeze, keys, mixing, rollback, unsigned

SUITES = {
    "rollback": rollback.SUITE,
    "freeze": freeze.SUITE,
    "mixing": mixing.SUITE,
    "endless": endless.SUITE,
    "keys": keys.SUITE,
    "unsigned": unsigned.SUITE,
}


def mount_all(folder: Path) -> Iterator[Outcome]:
    """All of them, each with a device of its own below `folder`."""
    for name, suite in SUITES.items():
        yield from suite.mount(folder / name)
