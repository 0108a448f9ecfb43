"""What is known of an app before it runs: every fault at its field, what is seldom meant as a note, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marram.pipeline.check import examine, look_ahead
from marram.pipeline.findings import Findings, at
from marram.runtime import library, machine
from marram.runtime.bundle import Bundle
from marram.schema.app import parse_app
from marram.schema.errors import Invalid, Missing
from marram.schema.event import EventKind

PHOTOS = "source: {images: photos}\n"
CAMERA = "source: {camera: 7}\n"
ANY = "steps: [{filter: 'true'}]\n"
Look = Callable[[str], Findings]


@pytest.fixture
def look(tmp_path: Path, colours: Path) -> Look:
    """Look ahead at an app (without `app:`); `./colours` lies beside it."""
    shutil.copytree(colours, tmp_path / "colours")

    def ahead(text: str) -> Findings:
        return look_ahead(parse_app("app: test\n" + text), tmp_path)

    return ahead


def said(errors: Any) -> list[str]:
    return [str(error) for error in errors]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PHOTOS + "steps: [{filter: result.label = 'x'}]", "steps[0].filter: `result.label = 'x'` is not a condition"),
        (PHOTOS + "steps: [{alert: resalt.label == 'x'}]", 'steps[0].alert: no variable "resalt"'),
        (PHOTOS + "steps: [{keep: 'true'}]", "steps[0].keep: `raw: never` lets nothing"),
        ("source: {series: a.csv}\nraw: redacted\nsteps: [{keep: 'true'}]", "readings cannot be redacted"),
        (
            PHOTOS + "raw: redacted\nsteps: [{keep: 'true'}, {redact: faces}]",
            "steps[0].keep: `raw: redacted` lets only redacted pictures leave the device, and the step that redacts",
        ),
        (PHOTOS + "steps: [{redact: detections}]", "steps[0].redact: covers what a `detect` step"),
        (PHOTOS + "steps: [{redact: faces, model: ./colours}]", "steps[0].model: ./colours does classification"),
        (PHOTOS + "steps: [{classify: efficientnet-lite9}]", 'steps[0].classify: no model "efficientnet-lite9"'),
        (PHOTOS + "steps: [{classify: zebra}]", "`marram model list` shows all"),
        (PHOTOS + "steps: [{classify: 'A B'}]", 'steps[0].classify: "A B" names no model'),
        (PHOTOS + "steps: [{detect: ./colours}]", "steps[0].detect: colours is a model for classification. Use"),
        (PHOTOS + "steps: [{classify: ./colours, variant: int9}]", 'model.yaml: no variant "int9"; it has onnx'),
        (PHOTOS + "steps: [{classify: ./absent}]", "absent: no such folder"),
        (PHOTOS + "steps: [{classify: ./colours, cloud: ./absent}]", "steps[0].cloud: "),
        ("source: {mqtt: a/b}\nsteps: [{classify: ./colours}]", "steps[0].classify: colours takes pictures"),
        (PHOTOS + "steps: [{classify: ./colours, cloud: x, place: cloud}]", "steps[0].cloud: the cloud may not answer"),
        (PHOTOS + "steps: [{function: handler.py:f}]", 'steps[0].function: no file "handler.py" beside the app'),
        (PHOTOS + ANY + "files: [photos]", 'files[0]: "photos" is a folder'),
        (PHOTOS + ANY + "files: [tabel.csv]", 'files[0]: no file "tabel.csv" beside the app. Did'),
        (PHOTOS + "steps: [{classify: ./colours, cloud: x, cascade: learnt}]", "steps[0].cloud: the cloud may not"),
        (PHOTOS + "steps: [{classify: ./colours, region: detections}]", "steps[0].region: no step before this one"),
        (
            PHOTOS + "steps: [{classify: ./colours, cloud: x, budget: {power: 1 W}}]",
            "steps[0].budget: power is not counted",
        ),
        (
            PHOTOS + "steps: [{classify: ./colours, cloud: x, budget: {money: 1/day}, costs: {edge: 1 W}}]",
            "steps[0].budget: money is not counted",
        ),
        ("source: {mqtt: 'a/b#'}\nsteps: [{filter: 'true'}]", "source.mqtt: "),
        ("source: {mqtt: a, broker: 'http://x'}\nsteps: [{filter: 'true'}]", "source.broker: "),
        ("source: {series: table.csv, columns: [b]}\n" + ANY, 'source.series: table.csv has no column'),
        (PHOTOS + ANY + "sinks: [{mqtt: 'a/#'}]", "sinks[0].mqtt: "),
        (PHOTOS + ANY + "sinks: [{jsonl: a}, {video: a.txt}]", 'sinks[1].video: ".txt" is no'),
        (PHOTOS + ANY + "sinks: [{preview: 99999}]", "sinks[0].preview: 99999 is no port"),
        (PHOTOS + "peers: yes\nsteps: [{classify: ./colours}]", "peers: `raw: never` lets nothing"),
        (
            "source: {series: table.csv}\nraw: redacted\npeers: yes\n" + ANY,
            "peers: `raw: redacted` lets only pictures leave",
        ),
        (PHOTOS + "steps: [{function: broken.py:f}]", "steps[0].function: broken.py:2  SyntaxError: "),
        (PHOTOS + "steps: [{function: good.py:f, mqtt: ':x'}]", "steps[0].mqtt: "),
    ],
)  # fmt: skip
def test_a_fault_is_told_at_its_field(look: Look, tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "table.csv").write_text("a\n1\n")
    (tmp_path / "good.py").write_text("def f(event, context): ...\n")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    found = look(text)
    assert len(found.faults) == 1
    assert fault in str(found.faults[0])


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (PHOTOS + ANY, 'source.images: no folder "photos" on this machine'),
        ("source: {images: colours}\n" + ANY, "source.images: no pictures in "),
        ("source: {video: a.mp4}\nsteps: [{filter: 'true'}]", 'source.video: no file "a.mp4" on this machine'),
        (CAMERA + ANY + "limits: {power: 6 W}", "limits.power: not enforced"),
        (CAMERA + "steps: [{classify: ./colours, cloud: ./colours}]", "steps[0].cloud: is never asked: `raw"),
        (
            CAMERA + "raw: allowed\nsteps: [{classify: ./colours, cloud: zebra}]",
            'steps[0].cloud: no model "zebra" on this machine; the cloud has to have it',
        ),
        (
            CAMERA + "raw: redacted\nsteps: [{function: good.py:f}, {keep: 'true'}]",
            "steps[0].function: is the only step that could redact",
        ),
        (CAMERA + "raw: allowed\npeers: yes\n" + ANY, "peers: no other device is ever asked: no step has the choice"),
        (
            CAMERA + "raw: allowed\npeers: yes\nsteps: [{classify: ./colours, cloud: ./colours, place: cloud}]",
            "peers: no other device is ever asked",
        ),
        (
            CAMERA + "raw: allowed\npeers: yes\nsteps: [{classify: ./colours}, "
            "{classify: ./colours, cloud: ./colours, cascade: learnt}]",
            "steps[1].cascade: no other device answers this step: its own edge does first",
        ),
        (CAMERA + "steps: [{classify: ./colours, split: no}]", "steps[0].split: says nothing here: the step has no"),
        (
            CAMERA + "raw: allowed\nsteps: [{classify: ./colours, cloud: ./colours, hedge: 3 %}]",
            "steps[0].hedge: says nothing here: without a `deadline`",
        ),
        (
            CAMERA + "raw: allowed\nsteps: [{classify: ./colours, cloud: ./colours, place: cheapest}]",
            "steps[0].place: nothing costs anything here",
        ),
        (CAMERA + "steps: [{function: good.py:ef}]", 'steps[0].function: no "ef" is seen in good.py; did'),
        (
            CAMERA + "steps: [{function: good.py:f, requires: [no-such-package]}]",
            "needs the package no-such-package, which is not installed here (the device needs it)",
        ),
    ],
)  # fmt: skip
def test_what_may_be_right_elsewhere_is_a_note(look: Look, tmp_path: Path, text: str, note: str) -> None:
    (tmp_path / "good.py").write_text("def ff(event, context): ...\nf = ff\n")
    found = look(text)
    assert said(found.faults) == []
    assert len(found.notes) == 1
    assert note in str(found.notes[0])


@pytest.mark.parametrize("step", ["{classify: efficientnet-lite0}", "{classify: ./colours, cloud: efficientnet-lite2}"])
def test_a_model_that_can_be_built_is_no_fault(look: Look, step: str) -> None:
    found = look(f"source: {{camera: 0}}\nraw: allowed\nsteps: [{step}]")
    assert said(found.faults) == [] and said(found.notes) == []
    assert "`marram model build efficientnet-lite" in said(found.unbuilt)[0]


def test_every_fault_is_found_at_once(look: Look) -> None:
    found = look(PHOTOS + "steps: [{classify: zebra}, {filter: x y}, {keep: 'true'}]\nfiles: [a.txt]")
    assert [error.where for error in found.faults] == [
        "files[0]",
        "steps[1].filter",
        "steps[2].keep",
        "steps[0].classify",
    ]


def test_a_region_is_a_part_of_a_picture(look: Look) -> None:
    found = look("source: {mqtt: a/b}\nsteps: [{score: ./colours, region: [0, 0, 1, 1]}]")
    assert "steps[0].region: is a part of a picture, and the source gives readings. Leave it away." in said(
        found.faults
    )
    detected = PHOTOS + "steps: [{detect: x}, {classify: ./colours, region: detections}]"
    assert not any("region" in each for each in said(look(detected).faults))


def test_a_good_app_has_neither_faults_nor_notes(look: Look, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("from elsewhere import *\n")
    found = look(
        "source: {camera: 0}\nraw: allowed\nsinks: [{jsonl: out.jsonl}, {mqtt: a/b}, {preview: auto}, {video: a.mp4}]\n"
        "steps: [{classify: ./colours, cloud: ./colours}, {function: handler.py:f}, {keep: result.confidence < 0.4}]"
    )
    assert (said(found.faults), said(found.unbuilt), said(found.notes)) == ([], [], [])


def test_power_modes_are_named_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nvpmodel.conf").write_text("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=MAXN >\n")
    app = parse_app("app: x\nsource: {camera: 0}\nsteps: [{filter: 'true'}]\nlimits: {power: 6 W}")
    without = examine(app, tmp_path)
    assert said(without.notes) == ["limits.power: not enforced on this machine: no power mode to set"]
    jetson = machine.inspect(tmp_path)
    monkeypatch.setattr(machine, "inspect", lambda: jetson)
    assert "set its power mode yourself (15W, MAXN)" in said(examine(app, tmp_path).notes)[0]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (None, "steps[0].classify: bad"),
        ("steps[0].deadline", "steps[0].deadline: bad"),
        ("steps[0].classify", "steps[0].classify: bad"),
        ("source: images: photos", "steps[0].classify: bad"),
        ("/m/model.yaml  output", "steps[0].classify: /m/model.yaml  output: bad"),
        ("source.jpg", "steps[0].classify: bad"),
    ],
)
def test_an_error_names_the_field_or_a_finer_one(where: str | None, line: str) -> None:
    with pytest.raises(Invalid) as caught, at(("steps", 0, "classify")):
        raise Invalid("bad", where=where)
    assert str(caught.value) == line


# ---------------------------------------------------------------- the same rules hold where the app is built


@pytest.mark.parametrize(
    ("text", "kind", "where"),
    [
        ("source: {images: nowhere}\nsteps: [{classify: MODEL}]", Missing, "source.images"),
        ("source: {images: PHOTOS}\nsteps: [{classify: zebra}]", Missing, "steps[0].classify"),
        ("source: {images: PHOTOS}\nsteps: [{filter: 'x y'}]", Invalid, "steps[0].filter"),
        ("source: {images: PHOTOS}\nsteps: [{detect: MODEL}]", Invalid, "steps[0].detect"),
        ("source: {images: PHOTOS}\nsteps: [{filter: 'true'}]\nsinks: [{video: a.txt}]", Invalid, "sinks[0].video"),
        ("source: {images: PHOTOS}\nsteps: [{function: a.py:f}]", Missing, "steps[0].function"),
        ("source: {images: PHOTOS}\nraw: redacted\nsteps: [{keep: 'true'}]", Missing, "raw"),
    ],
)
def test_building_raises_what_checking_finds(build: Any, photos: Path, text: str, kind: type, where: str) -> None:
    with pytest.raises(kind) as caught:
        build(text.replace("PHOTOS", str(photos)))
    assert caught.value.where == where


def test_raw_redacted_alone_covers_faces_before_anything_leaves(build: Any, photos: Path, seer: Path) -> None:
    library.add(seer)
    pipeline, seen = build(
        f"source: {{images: {photos}}}\nraw: redacted\nsteps: [{{classify: MODEL, cloud: big}}, {{keep: 'true'}}]"
    )
    pipeline.run()
    assert len(seen.labels) == 9
    samples = [event for event in seen.events if event.kind is EventKind.SAMPLE]
    # Each picture is there three times, and kept once.
    assert len(samples) == 3 and all(sample.data["redacted"] for sample in samples)
    assert all(frame.redacted for frame in seen.frames)


def test_a_detector_that_came_from_elsewhere_is_used(build: Any, photos: Path, seer: Path) -> None:
    asked: list[str] = []

    def resolve(reference: str, base: Path) -> Bundle:
        asked.append(reference)
        return Bundle.open(seer if reference == "blazeface" else Path(reference))

    text = f"source: {{images: {photos}}}\nraw: redacted\nsteps: [{{classify: MODEL}}, {{keep: 'true'}}]"
    pipeline, _ = build(text, resolve=resolve)
    pipeline.close()
    assert sorted(Path(each).name for each in asked) == ["blazeface", "colours"]  # each once
