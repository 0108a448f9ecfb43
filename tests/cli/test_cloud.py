"""`marram cloud`, as a process of its own."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")
def test_it_takes_as_many_files_as_it_may(tmp_path: Path) -> None:
    low = min(300, HARD)
    command = ["-m", "marram", "cloud", "--port", "0", "--folder", str(tmp_path / "cloud")]
    program = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({low}, {HARD}))
os.execv(sys.executable, [sys.executable, *{command}])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={"MARRAM_HOME": str(tmp_path)}
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("console")
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        soft = next(line.split()[3] for line in limits if line.startswith("Max open files"))
        assert int(soft) == min(65_536, HARD)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
