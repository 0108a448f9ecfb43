"""`marram run`, as a program: what it prints, how it ends, what it says when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from PIL import Image as Pillow

from marram.cli import execute as command
from marram.cli.run import summary

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
    assert " 1 alert " in shown.err


def test_what_a_function_gives_cannot_flood_or_move_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loud.py").write_text('def tell(event, context):\n    return {"said": "\\x1b[2J" + "y" * 200_000}\n')
    (folder / "rows.csv").write_text("a\n1\n")
    (folder / "loud.yaml").write_text("app: loud\nsource: {series: rows.csv}\nsteps: [{function: loud.py:tell}]\n")
    assert command(["run", str(folder / "loud.yaml")]) == 0
    shown = capsys.readouterr()
    assert shown.out.split(maxsplit=2)[2].startswith("said=�[2Jyyy")  # and not "nothing found": nothing was looked for
    assert len(shown.out) < 1100
    assert shown.err.startswith("1 frame · ")


def test_the_summary_tells_the_rate_of_the_whole_run() -> None:
    counted = {"frames": 30, "fps": 2.5, "p50_ms": None, "p95_ms": None, "skipped": 0, "errors": 1, "last_error": "x"}
    counted |= {"alerts": 0, "samples": 1, "dropped": 2}
    said = "30 frames · 0.5/s · 0 skipped · 1 sample · 2 dropped · 1 error (last: x)"
    assert summary(counted, 60.0) == said


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
    (["APP", "--duration", "10"], '--duration: "10" has no unit; write 10 s or 10 ms'),
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
    assert re.match(r"\d+ frames? · ", errors)
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


# ---------------------------------------------------------------- what is wrong is one line, with its place


def fault(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a run which must fail says."""
    assert command(["run", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err and shown.err.count("\n") == 1
    return shown.err.rstrip()


@pytest.fixture
def mine(folder: Path, tmp_path: Path) -> Path:
    """A copy of the app, its model and its pictures, to spoil."""
    shutil.copytree(folder, tmp_path / "mine")
    return tmp_path / "mine"


def page(mine: Path, text: str) -> str:
    (mine / "app.yaml").write_text(text)
    return str(mine / "app.yaml")


def test_an_unknown_model_names_its_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = page(mine, "app: a\nsource: {images: photos}\nsteps:\n  - classify: efficientnet-lite9\n")
    assert fault(capsys, app) == (
        f'{app}:4  steps[0].classify: no model "efficientnet-lite9"; did you mean "efficientnet-lite0"? '
        "`marram model list` shows all."
    )


def test_a_corrupt_model_names_its_file_and_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mine / "colours" / "model.onnx"
    model.write_bytes(model.read_bytes()[:40] + b"\x00garbage")
    app = str(mine / "app.yaml")
    assert fault(capsys, app).startswith(f"{app}:4  steps[0].classify: {model}: ")


def test_a_card_that_does_not_fit_its_file_names_both_shapes(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "colours" / "model.yaml").write_text(CARD.replace("[8, 8]", "[9, 9]"))
    app = str(mine / "app.yaml")
    said = fault(capsys, app)
    assert said.startswith(f"{app}:4  steps[0].classify: ")
    assert "the card says [1, 3, 9, 9], the file [1, 3, 8, 8]" in said and "model.yaml" in said


@pytest.fixture
def readings(mine: Path) -> Path:
    """A model of four numbers, and rows of three."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("x", real, [1, 1, 4])],
        [helper.make_tensor_value_info("y", real, [1])],
    )
    (mine / "mean").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(mine / "mean" / "model.onnx"))
    (mine / "mean" / "model.yaml").write_text(
        "model: mean\ntask: regression\ninput: {kind: tensor, size: [1, 4]}\noutput: {form: value}\n"
        "variants: [{name: onnx, engine: onnx, file: model.onnx}]\nlicence: Apache-2.0\nsource: made by the tests\n"
    )
    (mine / "rows.csv").write_text("a,b,c\n" + "1,2,3\n" * 6)
    return mine


def test_numbers_of_a_wrong_shape_end_the_run_with_the_last_error(
    readings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = page(readings, "app: a\nsource: {series: rows.csv}\nsteps:\n  - estimate: ./mean\n")
    said = fault(capsys, app)
    assert said.startswith(f"{app}: nothing was answered (6 errors). The last: ")
    assert "takes [1, 4] numbers, got [1, 3]" in said
    (readings / "rows.csv").write_text("a,b,c,d\n" + "1,2,3,4\n" * 6)
    assert command(["run", app, "--quiet"]) == 0
    assert capsys.readouterr().err.startswith("6 frames")


def test_readings_for_a_model_of_pictures_are_refused_at_once(
    readings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = page(readings, "app: a\nsource: {series: rows.csv}\nsteps:\n  - classify: ./colours\n")
    assert f"{app}:4  steps[0].classify: colours takes pictures, and the source gives readings" in fault(capsys, app)


def test_some_errors_among_answers_are_counted_not_a_fault(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "photos" / "1.png").write_bytes(b"no picture")
    assert command(["run", str(mine / "app.yaml"), "--quiet"]) == 0
    assert "4 frames" in capsys.readouterr().err


def test_a_corrupt_video_names_itself(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    (mine / "a.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(5000))
    app = page(mine, "app: a\nsource: {video: a.mp4}\nsteps: [{classify: ./colours}]\n")
    assert fault(capsys, app).startswith(f"{app}:2  source.video: {mine / 'a.mp4'} is not a video that can be read")
    assert fault(capsys, app, "--video", str(mine / "a.mp4")).startswith("--video: ")


def test_a_truncated_video_names_itself(mine: Path, capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    pytest.importorskip("cv2")
    whole = (shared_data / "video" / "car-detection.mp4").read_bytes()
    (mine / "a.mp4").write_bytes(whole[: len(whole) // 2])
    app = page(mine, "app: a\nsource: {video: a.mp4}\nsteps: [{classify: ./colours}]\n")
    status = command(["run", app, "--quiet"])
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err and shown.err.count("\n") == 1
    # Where the index came last nothing plays; where it came first, what is there plays and the rest is told.
    assert (status, "not a video that can be read" in shown.err) in [(2, True), (0, False)]
    assert status == 2 or "damaged or cut off" in shown.err


def test_an_absent_camera_names_itself(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    app = page(mine, "app: a\nsource: {camera: 97}\nsteps: [{classify: ./colours}]\n")
    said = fault(capsys, app)
    assert "cannot open camera 97: no such device here (found: " in said
    assert said.endswith("Is it plugged in? Try `source: {images: photos/}` meanwhile.")


def test_a_broker_that_does_not_answer_names_itself(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        app = page(mine, f"app: a\nsource: {{mqtt: a/b, broker: '{address}'}}\nsteps: [{{filter: 'true'}}]\n")
        assert fault(capsys, app) == (
            f"no MQTT broker answers at {address} (connection refused). Is it running, and is the address right?"
        )


def test_what_may_not_leave_is_told_and_the_app_runs(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = page(
        mine,
        "app: a\nsource: {images: photos}\nsteps: [{classify: ./colours, cloud: ./colours}]\nlimits: {power: 6 W}\n",
    )
    assert command(["run", app, "--quiet"]) == 0
    assert "steps[0].cloud: is never asked: `raw: never`" in caplog.text
    assert "limits.power: not enforced on this machine" in caplog.text
