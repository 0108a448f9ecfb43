"""`marram runtime` and `marram model` as a person runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marram import cli
from marram.runtime import probe
from marram.runtime.contract import Accelerator
from marram.runtime.engines import PLUGINS
from marram.schema.model import Engine

Write = Callable[..., Path]


def test_runtime_shows_a_table_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed: quick, and a row to see
    assert cli.execute(["runtime"]) == 0
    text = capsys.readouterr().out
    for word in ("litert", "XNNPACK", "onnx", "reference", "PASS", "Edge TPU", "PyTorch is not installed"):
        assert word in text
    assert cli.execute(["runtime", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["cores"] >= 1
    rows = {(row["engine"], row["device"]): row for row in document["accelerators"]}
    assert rows["litert", "CPU (XNNPACK)"]["ok"]
    assert rows["onnx", "CPU"]["ok"]
    assert not rows["torch", "CPU"]["present"]


def test_runtime_fails_where_an_engine_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [Accelerator("torch", "CPU", False, "answered nonsense")]
    monkeypatch.setattr(PLUGINS[Engine.TORCH], "describe", lambda: broken)
    assert cli.execute(["runtime"]) == 2
    assert "FAIL" in capsys.readouterr().out


def test_a_probe_that_answers_wrongly_fails() -> None:
    class Wrong:
        def run(self, tensors: list) -> list:
            return [probe.OUTPUT + 1]

        def close(self) -> None:
            pass

    row = probe.attempt("litert", "CPU", lambda file, threads=1: Wrong(), probe.tflite, lambda: "v")  # type: ignore[arg-type, return-value]
    assert not row.ok
    assert row.present
    assert "is right" in row.detail


def test_model_add_list_show(capsys: pytest.CaptureFixture[str], write_bundle: Write, marram_home: Path) -> None:
    assert cli.execute(["model", "list"]) == 0
    assert "marram model build efficientnet-lite0" in capsys.readouterr().out
    folder = write_bundle(description="a tiny one")
    assert cli.execute(["model", "add", str(folder)]) == 0
    assert f"tiny@1  fp32 536 B  in {marram_home}" in capsys.readouterr().out
    assert cli.execute(["model", "list"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert cli.execute(["model", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"][0]["model"] == "tiny"
    assert "efficientnet-lite0" in document["buildable"]
    assert cli.execute(["model", "show", "tiny@1"]) == 0
    text = capsys.readouterr().out
    assert "a tiny one" in text and "Apache-2.0" in text and "3 labels" in text
    assert cli.execute(["model", "show", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == 3


def test_one_damaged_model_hides_no_other(
    capsys: pytest.CaptureFixture[str], write_bundle: Write, marram_home: Path
) -> None:
    for name in ("good", "bad"):
        cli.execute(["model", "add", str(write_bundle(name))])
    (marram_home / "models" / "bad" / "1" / "model.tflite").unlink()
    capsys.readouterr()
    assert cli.execute(["model", "list", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert "damaged" in rows["bad"]["variants"]
    assert rows["good"]["task"] == "classification"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "tinny"], 'did you mean "tiny"'),
        (["show", "blazeface"], "marram model build blazeface"),
        (["build", "resnet"], "nobody knows how to build"),
        (["add", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_faults_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], write_bundle: Write, arguments: list[str], message: str
) -> None:
    cli.execute(["model", "add", str(write_bundle())])
    capsys.readouterr()
    assert cli.execute(["model", *arguments]) == 2
    fault = capsys.readouterr().err
    assert message in fault
    assert "Traceback" not in fault
    assert len(fault.strip().splitlines()) == 1
