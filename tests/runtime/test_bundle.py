"""Bundles and their cards: what is right opens, what is wrong names file, field and fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marram.runtime import library
from marram.runtime.bundle import Bundle, dump_card, parse_card
from marram.schema.errors import Invalid, Missing, Threat, Untrusted

Write = Callable[..., Path]


def test_opens_with_labels_and_files(write_bundle: Write) -> None:
    folder = write_bundle(
        labels="names/labels.txt",
        files={"model.tflite": b"x", "names/labels.txt": "ant\n béa \n\ncat\n\n".encode(), "notes.txt": b"not of it"},
    )
    bundle = Bundle.open(folder)
    assert bundle.reference == "tiny@1"
    assert bundle.labels == ("ant", "béa", "", "cat")
    assert bundle.files() == ["model.yaml", "model.tflite", "names/labels.txt"]
    assert bundle.file(bundle.card.variants[0]) == folder / "model.tflite"
    assert bundle.size_bytes(bundle.variant("fp32")) == 1


def test_a_card_survives_writing_and_reading(write_bundle: Write) -> None:
    card = Bundle.open(write_bundle(version=7, input={"mean": [1.5], "std": [2.0]})).card
    assert parse_card(dump_card(card)) == card


def test_what_is_absent_is_missing(write_bundle: Write, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Missing, match=r"has no model\.yaml"):
        Bundle.open(tmp_path / "empty")
    with pytest.raises(Missing, match=r'variants\[0\]\.file: no such file "model\.tflite"'):
        Bundle.open(write_bundle(files={}))
    with pytest.raises(Missing, match=r'labels: no such file "labels\.txt"'):
        Bundle.open(write_bundle(labels="labels.txt"))


@pytest.mark.parametrize(
    ("card", "fault"),
    [
        ({"task": "clasification"}, r"task: input should be"),
        ({"licence": None}, r"licence: is missing"),
        ({"lables": ["x"]}, r'lables: no such field; did you mean "labels"\?'),
        ({"input": {"sise": [3]}}, r'input\.sise: no such field; did you mean "size"\?'),
        ({"output": {"form": "softmacs"}}, r"output\.form: input should be"),
        (
            {"output": {"form": "ssd"}},
            r'output\.form: "ssd" does not answer classification; use one of logits, softmax',
        ),
        ({"input": {"kind": "image", "size": [4]}}, r"input\.size: an image has two"),
        ({"input": {"size": [0]}}, r"input\.size: lengths are 1 or more"),
        ({"input": {"mean": [1, 2]}}, r"input\.mean: one number, or one for each of 4 channels"),
        ({"input": {"std": [0]}}, r"input\.std: 0 would divide by zero"),
        ({"model": "Not A Name"}, r'model: "Not A Name" is not a name'),
        ({"version": 0}, r"version: input should be greater"),
        ({"variants": []}, r"variants: list should have at least 1"),
        ({"variants": [{"name": "a", "engine": "tensorflow", "file": "x"}]}, r"variants\[0\]\.engine: input should be"),
        ({"variants": [{"name": "a", "engine": "onnx", "file": "f"}] * 2}, r"variants: two variants have one name"),
        ({"variants": [{"name": "a", "engine": "onnx", "fyle": "f"}]}, r'fyle: no such field; did you mean "file"'),
    ],
)
def test_a_wrong_card_names_file_field_and_fault(write_bundle: Write, card: dict[str, object], fault: str) -> None:
    folder = write_bundle(**card)
    with pytest.raises(Invalid, match=fault) as raised:
        Bundle.open(folder)
    assert str(raised.value).startswith(str(folder / "model.yaml"))


def test_a_card_that_names_a_file_outside_is_refused_as_that(write_bundle: Write) -> None:
    """Whatever else is wrong with it."""
    folder = write_bundle(version=0, variants=[{"name": "a", "engine": "litert", "file": "../x"}])
    with pytest.raises(Untrusted, match=r'model\.yaml:\d+  variants\[0\]\.file: "\.\./x" must be') as raised:
        Bundle.open(folder)
    assert raised.value.threat is Threat.TRAVERSAL


def test_a_fault_in_a_card_names_its_line(write_bundle: Write) -> None:
    text = "model: m\ntask: regression\nlicence: x\nsource: y\noutput: {form: value}\ninput:\n  sise: [4]\n"
    with pytest.raises(Invalid) as raised:
        parse_card(f"{text}variants:\n  - {{name: a, engine: onnx, file: a.onnx}}\n", "m.yaml")
    assert 'm.yaml:7  input.sise: no such field; did you mean "size"?' in str(raised.value).splitlines()
    with pytest.raises(Invalid, match=r"m\.yaml:7  input\.size: lengths are 1 or more"):
        text = text.replace("sise: [4]", "size: [0]")
        parse_card(f"{text}variants:\n  - {{name: a, engine: onnx, file: a.onnx}}\n", "m.yaml")


def test_every_fault_is_named_at_once(write_bundle: Write) -> None:
    with pytest.raises(Invalid) as raised:
        Bundle.open(write_bundle(task="x", licence=None))
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "a: [", "\ttabs: no", ""])
def test_what_is_no_mapping_is_invalid(text: str) -> None:
    with pytest.raises(Invalid, match=r"some\.yaml"):
        parse_card(text, "some.yaml")


def test_binary_cards_and_labels_are_invalid(write_bundle: Write) -> None:
    folder = write_bundle(labels="l.txt", files={"model.tflite": b"x", "l.txt": b"\xff\xfe\x00"})
    with pytest.raises(Invalid, match=r"l\.txt: cannot be read \(not UTF-8 text\)"):
        Bundle.open(folder)
    (folder / "model.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Invalid, match=r"model\.yaml: cannot be read"):
        Bundle.open(folder)


def test_an_unknown_variant_says_which_there_are(write_bundle: Write) -> None:
    bundle = Bundle.open(write_bundle())
    with pytest.raises(Missing, match='no variant "fp23"; did you mean "fp32"'):
        bundle.variant("fp23")
    with pytest.raises(Missing, match='no variant "x"; it has fp32'):
        bundle.variant("x")


def test_reading_bundles_needs_no_numpy_and_no_engine() -> None:
    code = (
        "import sys, marram.runtime.bundle, marram.runtime.library;"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'onnxruntime', 'ai_edge_litert', 'torch', 'cv2', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_part_opens_as_a_part_and_nowhere_else(write_bundle: Write) -> None:
    variants = [{"name": "a", "engine": "onnx", "file": "a.onnx"}, {"name": "b", "engine": "onnx", "file": "b.onnx"}]
    folder = write_bundle(variants=variants, files={"b.onnx": b"1"})
    part = Bundle.open(folder, partial=True)
    assert [variant.name for variant in part.card.variants] == ["b"] and part.files() == ["model.yaml", "b.onnx"]
    with pytest.raises(Missing, match='no variant "a"; it has b'):
        part.variant("a")
    for anywhere in (Bundle.open, library.add):
        with pytest.raises(Missing, match=r'variants\[0\]\.file: no such file "a\.onnx"'):
            anywhere(folder)
    (folder / "b.onnx").unlink()
    with pytest.raises(Missing, match=r"a\.onnx"):
        Bundle.open(folder, partial=True)
