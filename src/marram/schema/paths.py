"""Where Marram keeps things on this machine. `MARRAM_HOME` moves all of it; tests and the demo set it."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$MARRAM_HOME`, else `~/.local/share/marram`."""
    return Path(os.environ.get("MARRAM_HOME") or Path.home() / ".local" / "share" / "marram")


def models() -> Path:
    """The local model library: one folder a model, `models/NAME/VERSION/model.yaml`."""
    return home() / "models"


def edge() -> Path:
    """Default folder of the device agent: credentials, outbox, bundles, last desired state."""
    return home() / "edge"


def cloud() -> Path:
    """Default folder of the embedded cloud: database, objects, broker."""
    return home() / "cloud"


def context() -> Path:
    """Which cloud the commands talk to, and the token they present (0600)."""
    return home() / "context.yaml"
