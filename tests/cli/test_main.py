"""The program itself: help without imports, faults as one line and status 2, no traceback ever."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import marram.cli
from marram import __version__


def marram_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marram", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_command_and_imports_none() -> None:
    heavy = ("pydantic", "numpy", "nats", "httpx")
    probe = (
        "import sys, marram.cli; marram.cli.execute(['--help']); "
        f"print([m for m in sys.modules if m.split('.')[0] in {heavy}])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert all(name in done.stdout for name in marram.cli.COMMANDS)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("name", list(marram.cli.COMMANDS))
def test_every_command_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"marram.cli.{name}").app.info is not None
    assert marram.cli.execute([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"marram {name}" in shown
    assert "completion" not in shown  # a shell learns all commands at once: marram --install-completion


def test_version() -> None:
    assert marram_program("--version").stdout == f"marram {__version__}\n"


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    done = marram_program("modle")
    assert done.returncode == 2 and "model" in done.stderr


def test_a_fault_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("app: x\nsource: {camra: 0}\nsteps: [{classify: m}]\n")
    done = marram_program("app", "check", str(tmp_path / "gate.yaml"))
    assert done.returncode == 2
    assert done.stderr == f'{tmp_path}/gate.yaml:2  source: no source "camra"; did you mean "camera"?\n'


def test_a_file_without_end_is_no_app_file() -> None:
    done = marram_program("app", "check", "/dev/zero")
    assert done.returncode == 2 and done.stderr.startswith("/dev/zero: is too large for an app file")


def test_a_fault_of_our_own_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: list[str]) -> int:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(marram.cli, "_dispatch", broken)
    assert marram.cli.execute(["demo"]) == 70
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "ZeroDivisionError" in shown
    log = Path(shown.rsplit(" ", 1)[1].strip())
    assert "Traceback" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("token create --uses 0", "--uses: input should be greater than or equal to 1"),
        ("token create --usess 2", "no such option: --usess; did you mean --uses?"),
        ("results tail --kind smoke", "--kind: 'smoke' is not one of"),
        ("edge join", "URL: is missing"),
        ("cloud root rotate tmestamp", '"tmestamp" is no role; did you mean "timestamp"? There are root,'),
        ("cloud root renew all", '"all" is no document. There are both, root, targets.'),
    ],
)
def test_a_line_that_makes_no_sense_is_answered_in_one_line(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert marram.cli.execute(typed.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1
    command = typed.partition(" --")[0]
    assert f"marram {command} --help says what it takes." in told or " is no " in told
