"""A tied child ends with its parent, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from marram.system.children import dismiss, guard, tied


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from marram.system.children import guard, tied\n"
        "child = subprocess.Popen(tied([sys.executable, '-c', 'print(1, flush=True); input()']), stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE)\n"
        "kept = guard(child.pid); child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    ends_s = time.monotonic() + 10
    while _runs(child) and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert not _runs(child)


def test_a_child_whose_parent_lives_is_let_be() -> None:
    with subprocess.Popen(tied([sys.executable, "-c", "print(2)"]), stdout=subprocess.PIPE) as child:
        guarding = guard(child.pid)
        assert child.stdout is not None
        assert child.stdout.read() == b"2\n"
    assert child.returncode == 0
    dismiss(guarding)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
