"""What a worker is given of the agent's surroundings."""

from __future__ import annotations

import re
from pathlib import Path

import marram.runtime
from marram.edge.process import worker_environment


def test_what_chooses_an_engine_reaches_the_worker_that_runs_it() -> None:
    """Every variable that `runtime` reads: set for `marram edge run`, it would otherwise do nothing on a device."""
    sources = Path(marram.runtime.__file__).parent.rglob("*.py")
    read = {name for file in sources for name in re.findall(r'environ\.get\("(MARRAM_\w+)"', file.read_text())}
    assert read >= {"MARRAM_EDGE_TPU", "MARRAM_ONNX_PROVIDERS", "MARRAM_TORCH_DEVICE"}
    given = dict.fromkeys(read, "1") | {"MARRAM_TOKEN": "secret"}
    assert worker_environment(given).keys() & given.keys() == read
