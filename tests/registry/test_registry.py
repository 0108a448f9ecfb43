"""The registry: a version is its content for ever; what is incomplete, inconsistent or a pickle never gets in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.registry import Registry, bundle_digest, manifest_of
from marram.runtime.bundle import Bundle, dump_card
from marram.schema.errors import Conflict, Invalid, Missing, Threat, Untrusted
from marram.schema.model import File, Input, Manifest, ModelCard, Output, Task, Variant
from marram.store import AuditFilter, Objects, Store, auditing, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "cloud.db")
    yield opened
    opened.close()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


@pytest.fixture
def registry(store: Store, objects: Objects) -> Registry:
    return Registry(store.models, objects, admits=lambda folder: [])  # what is admitted: test_admit.py


def card(version: int = 1, file: str = "net.onnx") -> ModelCard:
    return ModelCard(
        model="net",
        version=version,
        task=Task.CLASSIFICATION,
        input=Input(size=[8, 8]),
        output=Output(form="softmax"),
        variants=[Variant(name="fp32", engine="onnx", file=file)],
        labels="labels.txt",
        licence="MIT",
        source="made for this test",
    )


def bundle(folder: Path, weights: bytes = b"weights", version: int = 1, file: str = "net.onnx") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(dump_card(card(version, file)))
    (folder / file).write_bytes(weights)
    (folder / "labels.txt").write_text("cat\ndog\n")
    return folder


def upload(objects: Objects, folder: Path) -> Manifest:
    """What a client does before it registers."""
    manifest = manifest_of(folder, Bundle.open(folder).files())
    for file in manifest.files:
        objects.put_file(folder / file.path)
    return manifest


def test_a_bundle_is_registered_and_comes_back_as_it_was(registry: Registry, tmp_path: Path) -> None:
    row = registry.add_folder(bundle(tmp_path / "b"), lineage={"recipe": "digits"})
    assert (row.name, row.version, row.lineage) == ("net", 1, {"recipe": "digits", "unchecked": []})
    folder = registry.materialise("net", 1, tmp_path / "out")
    for name in ("model.yaml", "net.onnx", "labels.txt"):
        assert (folder / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Bundle.open(folder).labels == ("cat", "dog")


def test_the_same_content_again_is_the_same_version(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    first = registry.add_folder(bundle(tmp_path / "b"))
    assert registry.add_folder(tmp_path / "b") == first
    assert registry.add(card(), upload(objects, tmp_path / "b")) == first
    assert len(registry.list()) == 1


def test_other_content_under_a_taken_version_is_a_conflict(registry: Registry, tmp_path: Path) -> None:
    registry.add_folder(bundle(tmp_path / "b"))
    with pytest.raises(Conflict, match="net 1 has other content"):
        registry.add_folder(bundle(tmp_path / "c", b"other"))
    assert registry.add_folder(tmp_path / "c", version=2).version == 2
    with pytest.raises(Conflict, match="is net 2 already"):
        registry.add_folder(tmp_path / "c", version=3)


def test_without_a_version_the_next_free_one_is_given(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    for number, weights in enumerate((b"1", b"2", b"3"), start=1):
        manifest = upload(objects, bundle(tmp_path / str(number), weights))
        row = registry.add(card(), manifest)
        assert (row.version, row.card.version) == (number, number)
    assert [r.version for r in registry.list("net")] == [3, 2, 1]
    assert registry.get("net").version == 3
    assert registry.get("net", 2).version == 2


def test_many_who_register_at_once_get_a_version_each(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    manifests = [upload(objects, bundle(tmp_path / str(n), str(n % 4).encode())) for n in range(8)]
    threads = [threading.Thread(target=registry.add, args=(card(), m)) for m in manifests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.version for r in registry.list("net")) == [1, 2, 3, 4]  # two of each content


def test_an_unknown_model_says_what_there_is(registry: Registry, tmp_path: Path) -> None:
    registry.add_folder(bundle(tmp_path / "b"))
    with pytest.raises(Missing, match="no version 7; there is 1"):
        registry.get("net", 7)
    with pytest.raises(Missing, match='did you mean "net"'):
        registry.get("nets")


def test_a_file_that_was_not_uploaded_is_missing(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    manifest = manifest_of(bundle(tmp_path / "b"), ["model.yaml", "net.onnx", "labels.txt"])
    with pytest.raises(Missing, match="was not uploaded"):
        registry.add(card(), manifest)


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [("model.yaml", "no model.yaml"), ("net.onnx", 'no file "net.onnx"'), ("labels.txt", 'no file "labels.txt"')],
)
def test_an_incomplete_bundle_is_invalid(
    registry: Registry, objects: Objects, tmp_path: Path, leave_out: str, message: str
) -> None:
    manifest = upload(objects, bundle(tmp_path / "b"))
    with pytest.raises(Invalid, match=message):
        registry.add(card(), Manifest(files=[f for f in manifest.files if f.path != leave_out]))


def test_a_card_that_is_not_the_bundles_is_invalid(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    manifest = upload(objects, bundle(tmp_path / "b"))
    with pytest.raises(Invalid, match="differ"):
        registry.add(card().model_copy(update={"licence": "another"}), manifest)


def test_a_wrong_size_a_double_file_and_no_labels_are_invalid(
    registry: Registry, objects: Objects, tmp_path: Path
) -> None:
    manifest = upload(objects, bundle(tmp_path / "b"))
    longer = [File(path=f.path, sha256=f.sha256, size_bytes=f.size_bytes + 1) for f in manifest.files]
    with pytest.raises(Invalid, match="bytes long"):
        registry.add(card(), Manifest(files=longer))
    (tmp_path / "b" / "labels.txt").write_text("\n \n")
    with pytest.raises(Invalid, match="no label"):
        registry.add(card(), upload(objects, tmp_path / "b"))
    (tmp_path / "b" / "labels.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(Invalid, match="UTF-8"):
        registry.add(card(), manifest_and_put(objects, tmp_path / "b"))


def manifest_and_put(objects: Objects, folder: Path) -> Manifest:
    manifest = manifest_of(folder, ["model.yaml", "net.onnx", "labels.txt"])
    for file in manifest.files:
        objects.put_file(folder / file.path)
    return manifest


def test_a_file_that_nothing_names_is_not_taken_along(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    manifest = upload(objects, folder)
    (folder / "readme.md").write_text("hello")
    extra = manifest_of(folder, ["readme.md"])
    objects.put_file(folder / "readme.md")
    with pytest.raises(Invalid, match=r'nothing in model.yaml names "readme.md"'):
        registry.add(card(), Manifest(files=[*manifest.files, *extra.files]))


def test_what_is_not_admitted_is_not_there_and_what_was_not_checked_is_remembered(
    store: Store, objects: Objects, tmp_path: Path
) -> None:
    def refuses(folder: Path) -> list[str]:
        assert {file.name for file in folder.iterdir()} == {"model.yaml", "net.onnx", "labels.txt"}
        raise Untrusted("no", threat=Threat.PICKLE)

    strict = Registry(store.models, objects, admits=refuses)
    with pytest.raises(Untrusted):
        strict.add_folder(bundle(tmp_path / "b"))
    assert strict.list() == []
    lax = Registry(store.models, objects, admits=lambda folder: ["fp32 was not opened"])
    assert lax.add_folder(tmp_path / "b").lineage["unchecked"] == ["fp32 was not opened"]


def test_a_channel_is_a_version_until_it_is_moved(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        registry.add_folder(bundle(tmp_path / str(number), str(number).encode(), number))
    assert registry.tag("net", "stable", 1) is None
    assert registry.resolve("net@stable").version == 1
    assert registry.resolve("net").version == 2
    assert registry.tag("net", "stable", 2) == 1
    assert registry.resolve("net@stable").version == 2 == registry.channels("net")["stable"]
    with pytest.raises(Missing, match="no version 9"):
        registry.tag("net", "stable", 9)
    with pytest.raises(Missing, match='no channel "stabel"; did you mean "stable"'):
        registry.resolve("net@stabel")
    with pytest.raises(Invalid, match="a version or a channel"):
        registry.resolve("net@0x1!")
    assert registry.untag("net", "stable") == 2
    with pytest.raises(Missing, match='no channel "stable"'):
        registry.resolve("net@stable")
    with pytest.raises(Missing, match='no channel "stable"'):
        registry.untag("net", "stable")


def test_moving_a_channel_leaves_a_row_in_the_audit_log_and_moving_it_nowhere_none(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    registry.add_folder(bundle(tmp_path / "1", b"1", 1))
    for _ in range(2):
        with auditing("user:ann", "model.tag", "net@stable", version=1):
            registry.tag("net", "stable", 1)
    (row,) = store.audit.list(AuditFilter(action="model.tag"))
    assert (row.actor, row.detail["version"], row.detail["before"]) == ("user:ann", 1, None)


def test_a_damaged_object_is_never_handed_out(registry: Registry, objects: Objects, tmp_path: Path) -> None:
    registry.add_folder(bundle(tmp_path / "b"))
    for file in (tmp_path / "objects").rglob("*"):
        if file.is_file() and file.read_bytes() == b"weights":
            file.write_bytes(b"Weights")
    with pytest.raises(Invalid, match="damaged"):
        registry.materialise("net", 1, tmp_path / "out")
    assert not (tmp_path / "out" / "net" / "1").exists()


def test_a_half_made_folder_is_made_anew(registry: Registry, tmp_path: Path) -> None:
    registry.add_folder(bundle(tmp_path / "b"))
    folder = registry.materialise("net", 1, tmp_path / "out")
    (folder / ".digest").unlink()
    (folder / "net.onnx").write_bytes(b"half")
    assert (registry.materialise("net", 1, tmp_path / "out") / "net.onnx").read_bytes() == b"weights"


def test_a_version_that_another_process_makes_meanwhile_is_left_to_whoever_reads_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_folder(bundle(tmp_path / "net"))
    made: list[int] = []
    bring = registry._bring

    def beside(manifest: Manifest, folder: Path) -> None:
        monkeypatch.setattr(registry, "_bring", bring)
        made.append(registry.materialise("net", 1, tmp_path / "out").stat().st_ino)
        bring(manifest, folder)

    monkeypatch.setattr(registry, "_bring", beside)
    assert [registry.materialise("net", 1, tmp_path / "out").stat().st_ino] == made


def test_a_digest_is_of_the_content_not_of_the_order(tmp_path: Path) -> None:
    names = ["model.yaml", "net.onnx", "labels.txt"]
    manifest = manifest_of(bundle(tmp_path / "b"), names)
    assert bundle_digest(manifest) == bundle_digest(Manifest(files=manifest.files[::-1]))
    other = manifest_of(bundle(tmp_path / "c", b"other"), names)
    assert bundle_digest(manifest) != bundle_digest(other)
    *rest, last = sorted(manifest.files, key=lambda file: file.path)
    renamed = [*rest, last.model_copy(update={"path": f"{last.path}.bak"})]
    assert bundle_digest(manifest) != bundle_digest(Manifest(files=renamed))
    with pytest.raises(Invalid, match="cannot be read"):
        manifest_of(tmp_path, ["nothing"])
