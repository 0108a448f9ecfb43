"""Bundles that no registry may take in: each made by one known way of getting code, or a way out, past a check.

Nothing here is ever loaded by us; the payloads would only make a folder. Several ways are those by which scanners were
got past (the advisories on picklescan and modelscan name them): a flag, a checksum or a second name that makes a
scanner look away from what a loader reads.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from marram.lab.attacks.outcome import Outcome, attempt
from marram.registry.registry import Registry
from marram.runtime import probe
from marram.runtime.admit import Bounds, admit
from marram.runtime.bundle import CARD, dump_card
from marram.schema.errors import Permanent, Threat
from marram.schema.model import Engine, Input, ModelCard, Output, Task, Variant
from marram.store import Objects, open_store

# Enough for the tiny models here, little enough that what is endless ends soon.
BOUNDS = Bounds(memory_bytes=1_000_000_000, cpu_s=2, wall_s=60)
# What a payload makes where it runs.
RAN = "pickle-ran"
FILE = "net.onnx"


@dataclass(frozen=True, slots=True)
class ModelAttack:
    """`make(folder)` writes the bundle; adding it must be refused as `threat`. `how`: what it relies on."""

    name: str
    how: str
    threat: Threat
    make: Callable[[Path], None]


def card(file: str = FILE, engine: Engine = Engine.ONNX) -> ModelCard:
    """Of the probe's model: four readings in, three classes out."""
    return ModelCard(
        model="attack",
        task=Task.CLASSIFICATION,
        input=Input(kind="tensor", size=[4]),
        output=Output(form="logits"),
        variants=[Variant(name="only", engine=engine, file=file)],
        labels=["a", "b", "c"],
        licence="Apache-2.0",
        source="made to be refused",
    )


def harmless(folder: Path) -> None:
    """The bundle that each attack changes in one place: it is taken in."""
    _write(folder, probe.onnx())


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (Path(RAN),))


def _evil(protocol: int = 4) -> bytes:
    return pickle.dumps(_Payload(), protocol)


def _write(
    folder: Path, content: bytes, file: str = FILE, engine: Engine = Engine.ONNX, more: dict[str, bytes] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(dump_card(card(file, engine)), encoding="utf-8")
    (folder / file).write_bytes(content)
    for name, extra in (more or {}).items():
        (folder / name).write_bytes(extra)


def _zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _torch(**members: bytes) -> bytes:
    """As `torch.save` writes it."""
    return _zipped({"archive/data.pkl": _evil(2), "archive/version": b"3\n", **members})


def _exported(name: str, content: bytes) -> bytes:
    """As `torch.export.save` writes it, with one member more."""
    graph = b'{"graph_module": {"graph": {"nodes": []}}}'
    return _zipped({"m/archive_format": b"pt2", "m/models/model.json": graph, f"m/{name}": content})


def _npy(descr: str, body: bytes) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': (1,), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


def _flagged(archive: bytes, bits: int) -> bytes:
    """The archive with flag bits set in its central directory alone."""
    changed = bytearray(archive)
    at = changed.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + 8] |= bits
        at = changed.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


def _renamed(archive: bytes, old: bytes, new: bytes) -> bytes:
    """The archive with a member's name changed in its central directory alone."""
    at = archive.rfind(old)
    return archive[:at] + new + archive[at + len(old) :]


def _wrong_checksum(archive: bytes) -> bytes:
    changed = bytearray(archive)
    at = changed.find(b"PK\x01\x02")
    changed[at + 16] ^= 0xFF
    return bytes(changed)


def _twice() -> bytes:
    """Two members of one name: harmless first, the pickle second."""
    archive = _zipped({"archive/data.bin": b"harmless", "archive/data.bim": _evil(2)})
    return archive.replace(b"archive/data.bim", b"archive/data.bin")


def _tarred(name: str, content: bytes, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 0 if link else len(content)
        if link:
            entry.type, entry.linkname = tarfile.SYMTYPE, link
        archive.addfile(entry, None if link else io.BytesIO(content))
    return buffer.getvalue()


def _linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("m/weights")
        entry.create_system, entry.external_attr = 3, 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


# ---------------------------------------------------------------- a little of protobuf, for ONNX


def _field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _value(name: bytes, *shape: int) -> bytes:
    dims = b"".join(_field(1, _field(1, length)) for length in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _onnx(*nodes: bytes, initializers: tuple[bytes, ...] = ()) -> bytes:
    """A model of `nodes`, from x [1, 4] to y [1, 3]."""
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"g")
    graph += b"".join(_field(5, each) for each in initializers)
    graph += _field(11, _value(b"x", 1, 4)) + _field(12, _value(b"y", 1, 3))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 17))


def _node(kind: bytes, takes: list[bytes], gives: list[bytes], *attributes: bytes) -> bytes:
    parts = [*(_field(1, name) for name in takes), *(_field(2, name) for name in gives), _field(4, kind)]
    return b"".join([*parts, *(_field(5, attribute) for attribute in attributes)])


def _numbers(name: bytes, *values: int) -> bytes:
    """A one-dimensional int64 tensor."""
    raw = struct.pack(f"<{len(values)}q", *values)
    return _field(1, len(values)) + _field(2, 7) + _field(8, name) + _field(9, raw)


def external(location: str) -> bytes:
    """A model whose weights lie at `location`."""
    entry = _field(1, b"location") + _field(2, location.encode())
    weights = _field(1, 4) + _field(1, 3) + _field(2, 1) + _field(8, b"w") + _field(13, entry) + _field(14, 1)
    return _onnx(_node(b"MatMul", [b"x", b"w"], [b"y"]), initializers=(weights,))


def external_in_a_branch(location: str) -> bytes:
    """The same, in a tensor that only a constant of a nested graph holds."""
    entry = _field(1, b"location") + _field(2, location.encode())
    weights = _field(1, 3) + _field(2, 1) + _field(8, b"w") + _field(13, entry) + _field(14, 1)
    constant = _node(b"Constant", [], [b"c"], _field(1, b"value") + _field(5, weights) + _field(20, 4))
    branch = _field(1, constant) + _field(2, b"b") + _field(12, _value(b"c", 3))
    both = [_field(1, name) + _field(6, branch) + _field(20, 5) for name in (b"then_branch", b"else_branch")]
    return _onnx(_node(b"If", [b"x"], [b"y"], *both))


def memory_bomb() -> bytes:
    """A file of 200 bytes whose one operator makes a tensor of some terabytes."""
    fill = _node(b"ConstantOfShape", [b"s"], [b"huge"])
    total = _node(b"ReduceSum", [b"huge"], [b"one"], _field(1, b"keepdims") + _field(3, 0) + _field(20, 2))
    add = _node(b"Add", [b"x", b"one"], [b"y"])
    return _onnx(fill, total, add, initializers=(_numbers(b"s", 1_000_000, 1_000_000),))


def endless_loop() -> bytes:
    """A loop of 2^62 turns."""
    turn = _node(b"Identity", [b"go"], [b"on"]) + b""
    keep = _node(b"Add", [b"sum", b"sum"], [b"more"])
    inputs = [_scalar(b"i", 7), _scalar(b"go", 9), _value(b"sum", 1, 4)]
    body = _field(1, turn) + _field(1, keep) + _field(2, b"body")
    body += b"".join(_field(11, each) for each in inputs)
    body += _field(12, _scalar(b"on", 9)) + _field(12, _value(b"more", 1, 4))
    loop = _node(b"Loop", [b"turns", b"", b"x"], [b"y"], _field(1, b"body") + _field(6, body) + _field(20, 5))
    turns = _field(2, 7) + _field(8, b"turns") + _field(9, struct.pack("<q", 1 << 62))
    return _onnx(loop, initializers=(turns,))


def _scalar(name: bytes, kind: int) -> bytes:
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, b"")))


# ---------------------------------------------------------------- the attacks

_HEX_INT = b"I0x10\n0cpathlib\nPath\n(S'pickle-ran'\ntR."
_PROTOCOL_0 = b"cpathlib\nPath\n(S'pickle-ran'\ntR."
_BROKEN = b"\x80\x04cpathlib\nPath\n(S'pickle-ran'\ntR\xff\xff\xff and then nothing an unpickler knows"
_PADDED = b"\x80\x04" + b"N0" * 200_000 + _evil()[2:]


def _content(content: Callable[[], bytes], file: str = FILE, engine: Engine = Engine.ONNX) -> Callable[[Path], None]:
    return lambda folder: _write(folder, content(), file, engine)


def _beside(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: _write(folder, external(f"{FILE}.data"), more={name: content()})


def _labelled(content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _write(folder, probe.onnx(), more={"labels.txt": content})
        named = card().model_copy(update={"labels": "labels.txt"})
        (folder / CARD).write_text(dump_card(named), encoding="utf-8")

    return make


def _card_names(path: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _write(folder, probe.onnx())
        text = (folder / CARD).read_text(encoding="utf-8")
        (folder / CARD).write_text(text.replace(f"file: {FILE}", f"file: {path}"), encoding="utf-8")

    return make


def _nested_bomb() -> bytes:
    inner = _zipped({"m/zeros": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    for _ in range(4):
        inner = _zipped({"m/inner.zip": inner})
    return inner


_P, _B, _T, _E = Threat.PICKLE, Threat.BOMB, Threat.TRAVERSAL, Threat.EXHAUSTION
MODEL_ATTACKS: list[ModelAttack] = [
    *(
        ModelAttack(f"pickle-protocol-{number}", "a pickle called a model", _P, _content(lambda n=number: _evil(n)))  # type: ignore[misc]
        for number in range(6)
    ),
    ModelAttack("pickle-by-name", "weights that torch.load would read", _P, _content(_torch, "net.pt", Engine.TORCH)),
    ModelAttack("pickle-as-safetensors", "the name of a safe format", _P, _content(_evil, "net.safetensors")),
    ModelAttack("pickle-broken", "the payload runs before the damage", _P, _content(lambda: _BROKEN)),
    ModelAttack("pickle-text", "protocol 0 is plain text", _P, _content(lambda: _PROTOCOL_0)),
    ModelAttack("pickle-hex-integer", "an argument that strict parsers refuse", _P, _content(lambda: _HEX_INT)),
    ModelAttack("pickle-padded", "the payload behind 400,000 opcodes", _P, _content(lambda: _PADDED)),
    ModelAttack("pickle-as-labels", "a file nobody suspects", _P, _labelled(_PROTOCOL_0)),
    ModelAttack("pickle-as-external-data", "weights beside the model", _P, _beside(f"{FILE}.data", _evil)),
    ModelAttack("torch-checkpoint", "a zip archive with data.pkl", _P, _content(_torch)),
    ModelAttack("torch-renamed-member", "the pickle is not called .pkl", _P,
                _content(lambda: _zipped({"archive/config.json": _evil(2)}))),
    ModelAttack("torch-encrypted-flag", "scanners stop at flags that loaders ignore", _P,
                _content(lambda: _flagged(_zipped({"archive/data.bin": _evil(2)}), 1))),
    ModelAttack("torch-wrong-checksum", "scanners stop at a CRC that loaders ignore", _P,
                _content(lambda: _wrong_checksum(_zipped({"archive/data.bin": _evil(2)})))),
    ModelAttack("torch-two-names", "the directory's name is not the member's", _P,
                _content(lambda: _renamed(_zipped({"archive/data.bin": _evil(2)}), b"data.bin", b"note.txt"))),
    ModelAttack("torch-name-twice", "which member is read depends on the reader", _P, _content(_twice)),
    ModelAttack("torch-in-an-archive", "an archive in an archive", _P,
                _content(lambda: _zipped({"m/inner.bin": _torch()}))),
    ModelAttack("model-with-archive-behind", "one file, a model from its start, an archive from its end", _P,
                _content(lambda: probe.onnx() + _torch())),
    ModelAttack("exported-program-with-pickle", "a weight that is a pickle", _P,
                _content(lambda: _exported("data/weights/weight_0", _evil()), "net.pt2", Engine.TORCH)),
    ModelAttack("numpy-objects", "an array of objects is a pickle", _P,
                _content(lambda: _npy("|O", _evil()))),
    ModelAttack("numpy-objects-in-npz", "the same, in an archive", _P,
                _content(lambda: _zipped({"w.npy": _npy("|O", _evil())}))),
    ModelAttack("joblib-zlib", "joblib compresses", _P, _content(lambda: zlib.compress(_evil()))),
    ModelAttack("joblib-gzip", "joblib compresses", _P, _content(lambda: gzip.compress(_evil(), mtime=0))),
    ModelAttack("joblib-bz2", "joblib compresses", _P, _content(lambda: bz2.compress(_evil()))),
    ModelAttack("joblib-xz", "joblib compresses", _P, _content(lambda: lzma.compress(_evil()))),
    ModelAttack("seven-zip", "an archive that scanners cannot open", _P,
                _content(lambda: b"7z\xbc\xaf\x27\x1c\x00\x04" + _evil())),
    ModelAttack("tar-with-pickle", "torch.load reads old tar files", _P, _content(lambda: _tarred("pickle", _evil(2)))),
    ModelAttack("zip-bomb", "200 MB of zeros in 200 kB", _B,
                _content(lambda: _zipped({"m/zeros": bytes(200_000_000)}, zipfile.ZIP_DEFLATED))),
    ModelAttack("zip-bomb-nested", "archives in archives", _B, _content(_nested_bomb)),
    ModelAttack("zip-bomb-members", "20,000 members", _B,
                _content(lambda: _zipped({f"m/{number}": b"" for number in range(20_000)}))),
    ModelAttack("zip-path-up", "a member that leaves the folder", _T,
                _content(lambda: _zipped({"m/../../../x": b"x"}))),
    ModelAttack("zip-path-absolute", "a member at an absolute path", _T, _content(lambda: _zipped({"/etc/x": b"x"}))),
    ModelAttack("zip-link", "a member that is a link", _T, _content(_linked)),
    ModelAttack("tar-link", "a member that is a link", _T, _content(lambda: _tarred("w", b"", "/etc/passwd"))),
    ModelAttack("onnx-data-up", "weights read from outside of the bundle", _T,
                _content(lambda: external("../../../../etc/passwd"))),
    ModelAttack("onnx-data-absolute", "weights at an absolute path", _T, _content(lambda: external("/etc/passwd"))),
    ModelAttack("onnx-data-in-a-branch", "the path hides in a nested graph", _T,
                _content(lambda: external_in_a_branch("../secret"))),
    ModelAttack("card-path-up", "the card names a file outside", _T, _card_names("../../etc/passwd")),
    ModelAttack("card-path-absolute", "the card names a file outside", _T, _card_names("/etc/passwd")),
    ModelAttack("memory-bomb", "one operator makes terabytes", _E, _content(memory_bomb)),
    ModelAttack("endless-loop", "a graph that never ends", _E, _content(endless_loop)),
]  # fmt: skip


def mount_all(folder: Path) -> Iterator[Outcome]:
    """Bring each bundle to a registry of its own, as `marram model add` does: nothing of it may come in, or run."""
    if _bring(harmless, folder / "harmless") != ["it came in"]:
        raise Permanent("the registry does not take in what is harmless: that it refuses attacks shows nothing")
    for attack in MODEL_ATTACKS:
        harm: list[str] = []
        bring = partial(_bring, attack.make, folder / attack.name, harm)
        outcome = attempt(f"model: {attack.name}", attack.threat, bring)
        yield replace(outcome, reason=None, words=", ".join(harm)) if harm else outcome


def _bring(make: Callable[[Path], None], folder: Path, harm: list[str] | None = None) -> list[str]:
    """Have a fresh registry take a bundle in; what came of it, in `harm` too, however it ends."""
    harm = [] if harm is None else harm
    make(folder / "bundle")
    store = open_store(folder / "registry.db")

    def admits(checked: Path) -> list[str]:
        try:
            return admit(checked, BOUNDS)
        finally:
            if (checked / RAN).exists():
                harm.append("its payload ran")

    registry = Registry(store.models, Objects(folder / "objects"), scratch=folder, admits=admits)
    try:
        registry.add_folder(folder / "bundle")
    finally:
        if registry.list():
            harm.append("it came in")
        store.close()
    return harm
