"""Children of a rehearsal: they end when told, when their parent dies, and tell why they failed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marram.lab.children import Child, marram, stop_all
from marram.schema.errors import NotReady, Permanent

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def test_a_child_ends_when_asked(tmp_path: Path) -> None:
    children = [Child(f"child {n}", SLEEP, tmp_path / f"{n}.log", os.environ) for n in range(2)]
    for child in children:
        child.check()
    stop_all(children)
    for child in children:
        with pytest.raises(NotReady, match="it ended"):
            child.check()
        child.stop()


def test_one_that_does_not_listen_is_made_to(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child("deaf", [sys.executable, "-c", code], tmp_path / "log", os.environ)
    while "up" not in (tmp_path / "log").read_text():
        child.check()
    child.stop(timeout_s=0.1)
    assert child.process.returncode == -signal.SIGKILL


def test_one_that_fails_says_why(tmp_path: Path) -> None:
    child = Child("gate", marram("app", "check", "gone.yaml"), tmp_path / "log", os.environ)
    with pytest.raises(Permanent, match=r"no such file gone\.yaml"):
        child.wait(30)


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    child = Child("slow", SLEEP, tmp_path / "log", os.environ)
    with pytest.raises(Permanent, match="longer than"):
        child.wait(0.05)
    assert child.process.poll() is not None


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    child = Child("nobody", ["/nowhere/program"], tmp_path / "log", os.environ)
    with pytest.raises(Permanent, match="No such file"):
        child.wait(10)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd to wait for a process not one's own")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, time; from marram.lab.children import Child;"
        f"c = Child('c', {SLEEP!r}, pathlib.Path({str(tmp_path / 'log')!r}), os.environ); print(c.pid, flush=True);"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    while "up" not in (tmp_path / "log").read_text():  # the launcher has asked for it by then
        assert parent.poll() is None
    watch = os.pidfd_open(child)
    try:
        parent.kill()
        parent.wait()
        assert select.select([watch], [], [], 10)[0], "the child outlived its parent"
    finally:
        os.close(watch)
        parent.stdout.close()
