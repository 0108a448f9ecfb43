"""`python -m marram.runtime.loads ENGINE`: really load an engine, run a small model on it; exit status 0 where it can.

For who must not import an engine itself, the device's agent: one that takes its process down (an instruction that this
processor does not have) takes down this one. What it prints last is why it fails.
"""

from __future__ import annotations

import sys

from marram.runtime.engines import PLUGINS
from marram.schema.model import Engine


def main(name: str) -> int:
    """The exit status."""
    rows = [row for row in PLUGINS[Engine(name)].describe() if row.present]
    if any(row.ok for row in rows):
        return 0
    print(rows[0].detail if rows else "it is not installed")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
