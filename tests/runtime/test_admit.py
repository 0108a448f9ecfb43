"""What is looked into, opened and asked once before it is taken in: attacks end with their name, models pass."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.lab.attacks import models as attacks
from marram.lab.attacks.models import MODEL_ATTACKS, ModelAttack
from marram.runtime import probe
from marram.runtime.admit import admit, admit_bundle, archives, parent
from marram.runtime.admit import child as admitting
from marram.runtime.admit.archives import look_into
from marram.runtime.admit.pickles import is_pickle
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.onnxfile import outside
from marram.schema.errors import Invalid, Threat, Untrusted
from marram.schema.model import Engine, Input, ModelCard, Output, Task, Variant
from marram.system import landlock

SMALL = attacks.BOUNDS
# Those that only the engine itself meets: they need the child's bounds.
_BOUNDED = {"memory-bomb", "endless-loop"}


@pytest.mark.parametrize("attack", [pytest.param(a, id=a.name) for a in MODEL_ATTACKS if a.name not in _BOUNDED])
def test_an_attack_is_refused_by_its_name(attack: ModelAttack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attack.make(tmp_path / "bundle")
    with pytest.raises(Untrusted) as refused:
        admitting.check(tmp_path / "bundle", lambda at: None)
    assert refused.value.threat is attack.threat, str(refused.value)
    assert not (tmp_path / "pickle-ran").exists() and not (tmp_path / "bundle" / "pickle-ran").exists()


@pytest.mark.parametrize("attack", [pytest.param(a, id=a.name) for a in MODEL_ATTACKS if a.name in _BOUNDED])
def test_what_starves_the_engine_takes_nobody_else_down(attack: ModelAttack, tmp_path: Path) -> None:
    attack.make(tmp_path / "bundle")
    with pytest.raises(Untrusted) as refused:
        admit(tmp_path / "bundle", SMALL)
    assert refused.value.threat is attack.threat, str(refused.value)


def test_the_words_of_a_refusal_come_through_the_process(tmp_path: Path) -> None:
    next(a for a in MODEL_ATTACKS if a.name == "torch-checkpoint").make(tmp_path / "b")
    with pytest.raises(Untrusted, match=r"pickle: archive/data\.pkl in net\.onnx is named as a pickle; .*Export it"):
        admit(tmp_path / "b")


def test_without_the_change_it_is_taken_in(tmp_path: Path) -> None:
    attacks.harmless(tmp_path / "b")
    assert admit(tmp_path / "b") == []


def test_other_things_in_the_folder_are_nobodys_business(tmp_path: Path) -> None:
    attacks.harmless(tmp_path / "b")
    (tmp_path / "b" / "notes.pkl").write_bytes(pickle.dumps({}))
    assert admit_bundle(Bundle.open(tmp_path / "b")) == []


# ---------------------------------------------------------------- real models


def card(task: Task, form: str, entry: Input, *variants: Variant, labels: Any = None, **output: Any) -> ModelCard:
    return ModelCard(
        model="real", task=task, input=entry, output=Output(form=form, **output), variants=list(variants),
        labels=labels, licence="see SOURCES.md", source="the data folder",
    )  # fmt: skip


def taken(shared: Path, folder: Path, made: ModelCard, labels: str | None = None) -> Path:
    folder.mkdir()
    for variant in made.variants:
        shutil.copyfile(shared / "models" / variant.file, folder / variant.file)
    if labels:
        shutil.copyfile(shared / "models" / labels, folder / labels)
    (folder / CARD).write_text(dump_card(made), encoding="utf-8")
    return folder


REAL = {
    "mobilenet-v2-uint8": (
        card(Task.CLASSIFICATION, "softmax", Input(size=[224, 224], mean=[127.5], std=[127.5]),
             Variant(name="litert", engine=Engine.LITERT, file="mobilenet_v2_1.0_224_quant.tflite", precision="uint8"),
             labels="imagenet_labels.txt"), "imagenet_labels.txt"),
    "yunet": (
        card(Task.DETECTION, "yunet", Input(size=[320, 320], layout="NCHW", colour="BGR", fit="letterbox"),
             Variant(name="onnx", engine=Engine.ONNX, file="yunet_n_320_320.onnx"), labels=["face"]), None),
    "ssd": (
        card(Task.DETECTION, "ssd", Input(size=[300, 300], mean=[127.5], std=[127.5]),
             Variant(name="litert", engine=Engine.LITERT, precision="uint8",
                     file="coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"), labels="coco_labelmap.txt"),
        "coco_labelmap.txt"),
}  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("name", list(REAL))
def test_a_real_model_is_taken_in(name: str, shared_data: Path, tmp_path: Path) -> None:
    made, labels = REAL[name]
    assert admit(taken(shared_data, tmp_path / "b", made, labels)) == []


@pytest.mark.shared
def test_labels_and_shapes_that_are_not_the_files_are_refused(shared_data: Path, tmp_path: Path) -> None:
    made, labels = REAL["mobilenet-v2-uint8"]
    folder = taken(shared_data, tmp_path / "b", made, labels)
    names = (folder / "imagenet_labels.txt").read_text().splitlines()
    (folder / "imagenet_labels.txt").write_text("\n".join(names[:-3]) + "\n")
    with pytest.raises(Invalid, match="has 1001 classes, its labels name 998"):
        admit(folder)
    (folder / "imagenet_labels.txt").write_text("\n".join(names) + "\n")
    for change, message in (
        ({"size": [192, 192]}, "the card says"),
        ({"layout": "NCHW"}, "the card says"),
        ({"mean": [0.0], "std": [1.0]}, "pixel values become one"),
    ):
        entry = made.input.model_copy(update=change)
        (folder / CARD).write_text(dump_card(made.model_copy(update={"input": entry})), encoding="utf-8")
        with pytest.raises(Invalid, match=message) as refused:
            admit(folder)
        assert str(tmp_path) not in str(refused.value)  # where it lay for the check is nobody's business


def test_labels_are_compared_with_what_comes_out_where_the_file_does_not_say(tmp_path: Path) -> None:
    """The probe with its output's width left free."""
    free = attacks._onnx(attacks._node(b"Identity", [b"x"], [b"y"]))
    declared = attacks._value(b"y", 1, 3)
    named = attacks._field(1, b"y") + attacks._field(
        2, attacks._field(1, attacks._field(1, 1) + attacks._field(2, b""))
    )
    at = free.rindex(attacks._field(12, declared))
    graph = free[:at] + attacks._field(12, named) + free[at + len(attacks._field(12, declared)) :]
    model = attacks._field(1, 8) + attacks._field(7, _graph(graph)) + attacks._field(8, attacks._field(2, 17))
    attacks._write(tmp_path / "b", model)
    with pytest.raises(Invalid, match="has 4 classes, its labels name 3"):
        admit(tmp_path / "b")


def _graph(model: bytes) -> bytes:
    """The graph inside a model made by `attacks._onnx`, whose length is wrong now."""
    start = model.index(attacks._field(1, attacks._node(b"Identity", [b"x"], [b"y"])))
    end = model.rindex(attacks._field(8, attacks._field(1, b"") + attacks._field(2, 17)))
    return model[start:end]


def test_what_has_no_engine_here_is_checked_as_far_as_it_can_be_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks.harmless(tmp_path / "b")
    monkeypatch.setattr(admitting, "installed", lambda engine: False)
    assert admitting.check(tmp_path / "b", lambda at: None) == [
        "only was not opened: onnxruntime is not installed here"
    ]
    (tmp_path / "b" / attacks.FILE).write_bytes(b"no model at all")
    with pytest.raises(Invalid, match="not an ONNX model"):
        admitting.check(tmp_path / "b", lambda at: None)
    attacks._write(tmp_path / "c", b"not one either", "net.tflite", Engine.LITERT)
    with pytest.raises(Invalid, match=r"not a \.tflite model"):
        admitting.check(tmp_path / "c", lambda at: None)


def test_a_crash_is_said_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "terminate called after throwing an instance of 'std::bad_alloc'"
    for status, said, threat in ((-11, "", Threat.CRASH), (-6, "", Threat.CRASH), (-6, words, Threat.EXHAUSTION),
                                 (-24, "", Threat.EXHAUSTION), (-9, "", Threat.EXHAUSTION)):  # fmt: skip
        fault = parent._fall(status, False, "net.onnx", said, SMALL)
        assert isinstance(fault, Untrusted) and fault.threat is threat, status
    assert isinstance(parent._fall(1, False, "net.onnx", "Traceback\nBoom", SMALL), Invalid)


def test_who_opens_it_sees_the_bundle_and_no_secret_of_the_machine(tmp_path: Path) -> None:
    """`tokenize FILE` stands for whatever an engine may be made to do."""
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "b").mkdir()
    for place in (tmp_path / "b" / "mine.py", tmp_path / "secret.py"):
        place.write_text("x = 1\n")
    box = [sys.executable, "-P", "-m", "marram.runtime.admit.box", str(tmp_path / "b"), "tokenize"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "b" / "none")}
    own = subprocess.run([*box, str(tmp_path / "b" / "mine.py")], capture_output=True, text=True, env=environment)
    assert own.returncode == 0 and "NAME" in own.stdout
    for secret in (tmp_path / "secret.py", Path("/etc/passwd"), Path(f"/proc/{os.getpid()}/environ")):
        refused = subprocess.run([*box, str(secret)], capture_output=True, text=True, env=environment)
        assert refused.returncode != 0 and "Permission denied" in refused.stdout + refused.stderr, secret
    copying = [*box[:-1], "zipfile", "-c", str(tmp_path / "b" / "out.zip"), str(tmp_path / "b" / "mine.py")]
    assert subprocess.run(copying, capture_output=True, env=environment).returncode != 0
    assert not (tmp_path / "b" / "out.zip").exists()


def test_a_real_exported_program_is_opened_in_there(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(4, 3).eval()
    folder = tmp_path / "b"
    attacks._write(folder, b"", "net.pt2", Engine.TORCH)
    torch.export.save(torch.export.export(layer, (torch.zeros(1, 4),)), folder / "net.pt2")
    assert admit(folder) == []


# ---------------------------------------------------------------- pickles, alone


@given(st.recursive(st.none() | st.integers() | st.text() | st.binary() | st.floats(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8),
       st.integers(2, 5))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_pickle_of_plain_data_is_known(data: Any, protocol: int) -> None:
    content = pickle.dumps([data], protocol)
    assert is_pickle(io.BytesIO(content)) and is_pickle(io.BytesIO(content + b"trailing"))


@pytest.mark.parametrize(
    "text", ["cat\ndog\nRabbit\n", "person\nbicycle\ncar\n", "I1\nno\n", "N\n", "(t\nR\n", "0\n1\n2\n", ""]
)
def test_words_are_no_pickle(text: str) -> None:
    assert not is_pickle(io.BytesIO(text.encode()), text=True)


@pytest.mark.shared
def test_no_real_file_is_taken_for_an_attack(shared_data: Path) -> None:
    for file in sorted((shared_data / "models").iterdir()) + sorted((shared_data / "models_tiny").iterdir()):
        look_into(file, file.name, text=file.suffix == ".txt")


@pytest.mark.parametrize("bits", [0x1, 0x40, 0x2000], ids=["encrypted", "strongly", "names masked"])
def test_what_a_scanner_would_pass_over_and_a_loader_read_is_refused(bits: int, tmp_path: Path) -> None:
    body = attacks._zipped({"net/weights": b"weights"})
    (tmp_path / "file").write_bytes(body)
    look_into(tmp_path / "file", "net.pt2")
    listed = body.index(b"PK\x01\x02") + 8  # its flags, where a scanner looks
    (tmp_path / "file").write_bytes(body[:listed] + bits.to_bytes(2, "little") + body[listed + 2 :])
    with pytest.raises(Untrusted, match="marked as encrypted"):
        look_into(tmp_path / "file", "net.pt2")


def test_a_large_member_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not match its checksum is another thing to whoever does not look at that."""
    monkeypatch.setattr(archives, "_MOST_NESTED_BYTES", 1000)
    monkeypatch.setattr(archives, "_HEAD_BYTES", 512)
    body = attacks._zipped({"net/weights": b"w" * 10_000})
    (tmp_path / "file").write_bytes(body)
    look_into(tmp_path / "file", "net.pt2")
    (tmp_path / "file").write_bytes(body.replace(b"w" * 10_000, b"w" * 9_999 + b"x"))
    with pytest.raises(Untrusted, match="cannot be looked into"):
        look_into(tmp_path / "file", "net.pt2")


@pytest.mark.parametrize(
    ("kind", "threat"), [(tarfile.LNKTYPE, Threat.TRAVERSAL), (tarfile.SYMTYPE, Threat.TRAVERSAL), (None, Threat.BOMB)]
)
def test_links_and_masses_in_a_tar_archive_are_refused(
    kind: bytes | None, threat: Threat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 3)
    with tarfile.open(tmp_path / "file", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(2 if kind else 6):
            member = tarfile.TarInfo(f"net/{number}")
            if kind and number:
                member.type, member.linkname = kind, "net/0"
            archive.addfile(member)
    with pytest.raises(Untrusted) as refused:
        look_into(tmp_path / "file", "net.bin")
    assert refused.value.threat is threat


@pytest.mark.parametrize("name", ["/etc/x", "a/../../x", "a\\..\\x", "C:x"])
def test_a_member_that_leaves_the_folder_is_refused_however_it_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(attacks._zipped({name: b"weights"}))
    with pytest.raises(Untrusted) as refused:
        look_into(tmp_path / "file", "net.pt2")
    assert refused.value.threat is Threat.TRAVERSAL


def test_a_member_that_is_named_as_a_pickle_is_refused_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(attacks._zipped({"net/data.pkl": b"weights"}))
    with pytest.raises(Untrusted, match=r"net/data\.pkl in net\.pt2 is named as a pickle"):
        look_into(tmp_path / "file", "net.pt2")


@pytest.mark.parametrize(
    ("stream", "text"),
    [(b"N0" * 6000, False), (b"cos\nsystem\n\xff", False), (b"cos\nsystem\n(S'x'\ntR.\nmore", True)],
    ids=["nothing but opcodes", "broken after it imports", "calls, in a text"],
)
def test_a_pickle_is_known_where_it_does_not_come_to_its_end(stream: bytes, text: bool) -> None:
    assert is_pickle(io.BytesIO(stream), text=text)


def _within(content: bytes, *numbers: int) -> bytes:
    """`content` in messages in each other, the outermost field first."""
    for number in reversed(numbers):
        content = attacks._field(number, content)
    return content


@pytest.mark.parametrize(
    "way",
    [
        (7, 5),
        (7, 15, 1),
        (7, 15, 2),
        (20, 1, 5),
        (20, 2, 5),
        (25, 7, 5, 5),
        (25, 11, 5),
        (7, 1, 5, 10),
        (7, 1, 5, 22, 1),
    ],
)
def test_weights_outside_are_found_wherever_a_model_may_name_them(way: tuple[int, ...], tmp_path: Path) -> None:
    entry = attacks._field(1, b"location") + attacks._field(2, b"/etc/shadow")
    (tmp_path / "net.onnx").write_bytes(attacks._field(7, b"") + _within(entry, *way, 13))
    assert outside(tmp_path / "net.onnx") == {"/etc/shadow"}


def test_a_graph_in_a_graph_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(_within(b"", 7, *(1, 5, 6) * 60))
    with pytest.raises(Invalid, match="not an ONNX model"):
        outside(tmp_path / "net.onnx")


def test_only_what_is_text_by_its_name_is_read_as_text(tmp_path: Path) -> None:
    attacks.harmless(tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.bin").write_bytes(b"cos\nsystem\n" + bytes(16))
    with pytest.raises(Untrusted, match=r"weights\.bin holds a pickle"):
        admitting.check(tmp_path / "bundle", lambda at: None)


def test_only_an_exported_programs_example_inputs_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(attacks._zipped({"net/data/sample_inputs/x": pickle.dumps({"a": 1})}))
    with pytest.raises(Untrusted, match="pickle"):
        look_into(tmp_path / "file", "net.pt2")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused_whatever_they_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        for body in (b"weights", b"others"):
            archive.writestr("net/weights", body)
    with pytest.raises(Untrusted, match="two members of one name"):
        look_into(tmp_path / "file", "net.pt2")


@pytest.mark.parametrize("name", ["net.pkl", "net.PT", "deep/net.joblib"])
def test_what_is_named_as_a_pickle_is_refused_whatever_is_in_it(name: str, tmp_path: Path) -> None:
    """A loader goes by the name; what this one finds there is not for us to guess."""
    (tmp_path / "file").write_bytes(b"weights")
    with pytest.raises(Untrusted, match="named as a pickle"):
        look_into(tmp_path / "file", name)


def test_weights_are_no_pickle_wherever_they_begin() -> None:
    weights = b"".join(struct.pack("<f", (number * 2654435761 % 1000) / 999 - 0.5) for number in range(4096))
    for start in range(0, 4000, 7):
        assert not is_pickle(io.BytesIO(weights[start:]))


def test_an_exported_program_as_torch_writes_it_passes(tmp_path: Path) -> None:
    """Its example inputs are a pickle, always; the engine leaves them out, and nothing else of it may be one."""
    graph = b'{"graph_module": {"graph": {"nodes": []}}}'
    members = {"m/archive_format": b"pt2", "m/models/model.json": graph, "m/data/weights/weight_0": b"\0" * 64}
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        for name, content in {**members, "m/data/sample_inputs/model.pt": pickle.dumps(())}.items():
            archive.writestr(name, content)
    look_into(tmp_path / "net.pt2", "net.pt2")


def test_the_probe_is_what_the_attacks_start_from() -> None:
    assert probe.onnx()[:1] == b"\x08"
