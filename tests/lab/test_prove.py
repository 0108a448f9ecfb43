"""`make prove` finds what is broken, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marram.lab import prove
from marram.lab.attacks import models
from marram.schema.errors import Missing

TWO = [each for each in models.MODEL_ATTACKS if each.name in ("pickle-text", "card-path-up")]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MODEL_ATTACKS", TWO)
    monkeypatch.setattr(prove, "ATTACKS", {"models": prove.ATTACKS["models"]})


def line(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The last line on standard output, and what was said beside it."""
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    return json.loads(told.out), told.err


def test_what_holds_is_one_line_and_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert prove.main(["attacks", "--small"]) == 0
    figures, _ = line(capsys)
    assert figures == {"attacks": 2, "accepted": 0, "reasons": 2, "faults": 0}


def test_a_victim_that_lets_one_in_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "admit", lambda folder, bounds: [])
    assert prove.main(["attacks"]) == 1
    figures, said = line(capsys)
    assert (figures["attacks"], figures["accepted"], figures["faults"]) == (2, 1, 1)
    assert "not so: model: pickle-text: it came in" in said


def test_what_cannot_be_played_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing(folder: Path, small: bool) -> prove.Found:
        raise Missing("strace is not installed")

    monkeypatch.setitem(prove.SUITES, "crash", nothing)
    assert prove.main(["crash"]) == 1
    figures, said = line(capsys)
    assert figures == {"faults": 1}
    assert "not so: crash could not be played: strace is not installed" in said


def test_a_wrong_suite_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prove.main(["nonsense"])
    assert ended.value.code == 2
    assert "no suite nonsense; there are crash, disk, attacks, fleet, offline" in capsys.readouterr().err
