"""Whatever fails, a person reads a line; the traceback is in the file that the line names."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from marram.last_resort import OneLine, ended
from marram.schema.errors import Invalid


def broken() -> int:
    raise ZeroDivisionError("of nothing\nand more")


def test_it_hands_the_status_through() -> None:
    assert ended(lambda: 3) == 3


def test_a_fault_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> int:
        raise Invalid("is no app", where="app.yaml:3", hint="Mend it.")

    told: list[str] = []
    assert ended(wrong, tell=told.append) == ended(wrong) == 2
    assert told == ["app.yaml:3: is no app. Mend it."]
    assert capsys.readouterr().err == "app.yaml:3: is no app. Mend it.\n"


def test_a_bug_is_a_line_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the file is replaced, not added to: what fails at each start does not fill the disk
        assert ended(broken, details=tmp_path / "fault.log") == 70
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1 and str(tmp_path / "fault.log") in shown and "ZeroDivisionError" in shown
        assert (tmp_path / "fault.log").read_text().count("Traceback") == 1


def test_a_disk_that_refuses_the_file_hides_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(broken, details=tmp_path / "absent" / "fault.log") == 70
    assert capsys.readouterr().err.startswith("unexpected ZeroDivisionError: of nothing. This is")


def test_what_fails_beside_the_main_thread_is_a_line_too() -> None:
    program = """
import logging, threading
from marram.last_resort import ended

class Finaliser:
    def __del__(self):
        raise KeyError("gone")

def live():
    thread = threading.Thread(target=lambda: 1 / 0, name="decoder")
    thread.start()
    thread.join()
    Finaliser()
    try:
        [][1]
    except IndexError:
        logging.getLogger("asyncio").exception("a task failed\\nfuture: <Task …>")
    return 0

raise SystemExit(ended(live))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and "Traceback" not in done.stderr
    assert "decoder" in lines[0] and "ZeroDivisionError" in lines[0]
    assert "KeyError: 'gone'" in lines[1]
    assert "a task failed" in lines[2] and "IndexError" in lines[2]


def test_nothing_of_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.excepthook, sys.unraisablehook, logging.raiseExceptions
    ended(lambda: 0)
    assert (threading.excepthook, sys.unraisablehook, logging.raiseExceptions) == before


def test_one_handlers_line_leaves_anothers_traceback() -> None:
    try:
        broken()
    except ZeroDivisionError as error:
        info = type(error), error, error.__traceback__
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it %s", ("failed",), info)
    line = OneLine("%(message)s").format(record)
    assert line.startswith("it failed: ZeroDivisionError: of nothing (test_last_resort.py:") and "\n" not in line
    assert "Traceback" in logging.Formatter().format(record)
    assert OneLine("%(message)s").format(record) == line


def test_the_clouds_terminal_has_a_line_and_its_file_the_rest(tmp_path: Path) -> None:
    program = f"""
import logging
from pathlib import Path
from marram.cli.cloud import _log
_log(Path({str(tmp_path / "cloud.log")!r}), False)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("marram.cloud").exception("the handler failed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("\n") == 1
    assert "the handler failed: ZeroDivisionError: division by zero" in done.stderr
    kept = (tmp_path / "cloud.log").read_text()
    assert "the handler failed" in kept and "Traceback" in kept
