"""A tied child ends with its parent, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marram.system.children import dismiss, guard, tied


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from marram.system.children import guard, tied\n"
        "waits = 'import signal; print(1, flush=True); signal.pause()'  # whatever becomes of its pipes\n"
        "child = subprocess.Popen(tied([sys.executable, '-c', waits]), stdout=subprocess.PIPE)\n"
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
    left = _runs(child)
    if left:
        os.kill(child, signal.SIGKILL)
    assert not left


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a guard does it")
def test_a_child_whose_parent_ended_before_the_kernel_knew_never_starts() -> None:
    command = tied([sys.executable, "-c", "print('started')"])
    orphan = [str(os.getppid()) if word == str(os.getpid()) else word for word in command]
    assert orphan != command
    assert subprocess.run(orphan, capture_output=True, check=False).stdout == b""


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
