"""`marram run`, as a program: what it prints, how it ends, what it says when something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from PIL import Image as Pillow

from marram.cli import execute as command

CARD = """
model: colours
task: classification
input: {size: [8, 8], layout: NCHW}
output: {form: logits}
variants: [{name: onnx, engine: onnx, file: model.onnx}]
labels: [red, green, blue]
licence: Apache-2.0
source: made by the tests
"""
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app, its model and five pictures."""
    base = tmp_path_factory.mktemp("app")
    (base / "colours").mkdir()
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["p"], ["m"]), helper.make_node("Flatten", ["m"], ["l"])],
        "colours",
        [helper.make_tensor_value_info("p", real, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("l", real, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(base / "colours" / "model.onnx"))
    (base / "colours" / "model.yaml").write_text(CARD)
    (base / "photos").mkdir()
    for number, name in enumerate(["red", "green", "blue", "red", "green"]):
        Pillow.new("RGB", (20, 20), COLOURS[name]).save(base / "photos" / f"{number}.png")
    (base / "app.yaml").write_text(
        "app: colours\nsource: {images: photos}\nsteps:\n  - classify: ./colours\n    top: 2\n"
    )
    (base / "alerts.yaml").write_text(
        "app: colours\nsource: {images: photos}\nsteps:\n  - classify: ./colours\n"
        '  - alert: result.label == "blue"\nsend: alerts\n'
    )
    (base / "endless.yaml").write_text(
        "app: colours\nsource: {images: photos, every: 20 ms, repeat: true}\nsteps: [{classify: ./colours}]\n"
    )
    return base


def test_each_result_is_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", str(folder / "app.yaml")]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[:3] == ["0", "0.png", "red"]
    assert "·" in lines[0] and lines[0].rstrip().endswith(("ms", "s"))
    assert shown.err.splitlines()[-1].startswith("5 frames · ")
    assert shown.err.splitlines()[-1].endswith("0 skipped · 0 errors")


def test_json_is_one_object_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", str(folder / "app.yaml"), "--json", "--limit", "3"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["label"] for result in results] == ["red", "green", "blue"]
    assert all(result["kind"] == "result" and len(result["top"]) == 2 for result in results)


def test_alerts_are_lines_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", str(folder / "alerts.yaml"), "--json"]) == 0
    shown = capsys.readouterr()
    kinds = [json.loads(line)["kind"] for line in shown.out.splitlines()]
    assert sorted(kinds) == ["alert"] * 2 + ["result"] * 5  # raised, recovered
    assert " 1 alerts " in shown.err


def test_quiet_prints_the_summary_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", str(folder / "app.yaml"), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("5 frames")


def test_another_folder_is_relative_to_where_one_stands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    Pillow.new("RGB", (20, 20), COLOURS["blue"]).save(tmp_path / "mine" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert command(["run", str(folder / "app.yaml"), "--images", "mine"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["0", "a.png", "blue"]


def test_duration_ends_what_has_no_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", str(folder / "endless.yaml"), "--duration", "300 ms", "--quiet"]) == 0
    assert "frames" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "words"), [
    (["nowhere.yaml"], "no such file nowhere.yaml"),
    (["APP", "--duration", "10"], '--duration: "10" has no unit; write 10 ms or 0.01 s'),
    (["APP", "--images", "a", "--camera", "0"], "an app has one source"),
    (["APP", "--camera", "-1"], "-1 is no camera"),
    (["APP", "--images", "/nowhere"], "no folder /nowhere"),
    (["APP", "--video", "/nowhere.mp4"], "no file /nowhere.mp4"),
    (["WRONG"], 'wrong.yaml:3  steps[0]: no step "clasify"; did you mean "classify"?'),
])  # fmt: skip
def test_faults_are_one_line_and_exit_2(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("app: a\nsource: {images: photos}\nsteps: [{clasify: ./colours}]\n")
    paths = {"APP": str(folder / "app.yaml"), "WRONG": str(wrong)}
    assert command(["run", *(paths.get(argument, argument) for argument in arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert "Traceback" not in shown.err


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "marram", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_with_the_summary(folder: Path, number: signal.Signals, status: int) -> None:
    with start(str(folder / "endless.yaml")) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert " frames · " in errors
    assert "Traceback" not in errors


def test_a_reader_that_goes_away_ends_it(folder: Path) -> None:
    with start(str(folder / "endless.yaml"), "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(60)
    assert process.returncode == 0
    assert "Traceback" not in errors and "Broken" not in errors
