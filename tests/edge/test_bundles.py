from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from marram.edge import bundles as module
from marram.edge.bundles import Bundles, bundle_key, check_size
from marram.schema.errors import Invalid, Permanent, Retryable, Untrusted
from marram.schema.model import File, Manifest


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    made = Bundles(tmp_path, reserve_bytes=0)
    made.make()
    return made


def manifest(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        files=[
            File(path=path, sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
            for path, body in files.items()
        ]
    )


def bring(bundles: Bundles, files: dict[str, bytes]) -> Manifest:
    listed = manifest(files)
    for file, body in zip(listed.files, files.values(), strict=True):
        bundles.partial(file).write_bytes(body)
        bundles.accept(file)
    return listed


FILES = {"app.yaml": b"app: a", "lib/code.py": b"x = 1", "lib/empty": b""}


def test_a_bundle_is_installed_whole(bundles: Bundles) -> None:
    listed = bring(bundles, FILES)
    folder = bundles.install(listed)
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert bundles.install(listed) == folder
    assert bundles.missing([listed]) == []


def test_every_flipped_byte_is_refused_before_it_is_installed(bundles: Bundles) -> None:
    body = b"weights of a model"
    (file,) = manifest({"model.tflite": body}).files
    for index in range(len(body)):
        spoiled = bytearray(body)
        spoiled[index] ^= 0x20
        bundles.partial(file).write_bytes(spoiled)
        with pytest.raises(Untrusted, match=r"^tampered: model\.tflite.*sha256"):
            bundles.accept(file)
        assert not bundles.partial(file).exists()
        assert bundles.lacks(file)
    bundles.partial(file).write_bytes(body[:-1])
    with pytest.raises(Untrusted):
        bundles.accept(file)


def test_damage_on_disk_is_found_and_fetched_again(bundles: Bundles) -> None:
    listed = bring(bundles, FILES)
    folder = bundles.install(listed)
    for damage in (b"app: b", b"app", b""):
        blob = bundles._blobs / listed.files[0].sha256
        blob.chmod(0o600)
        blob.write_bytes(damage)
        with pytest.raises(Retryable, match=r"app\.yaml is missing or was damaged"):
            bundles.install(listed)
        assert not folder.exists()
        assert [f.path for f in bundles.missing([listed])] == ["app.yaml"]
        bring(bundles, {"app.yaml": FILES["app.yaml"]})
        assert (bundles.install(listed) / "app.yaml").read_bytes() == FILES["app.yaml"]


def test_a_file_of_the_folder_that_was_replaced_or_deleted_comes_back(bundles: Bundles) -> None:
    listed = bring(bundles, FILES)
    folder = bundles.install(listed)
    (folder / "app.yaml").unlink()
    (folder / "app.yaml").write_bytes(b"app: z")
    assert (bundles.install(listed) / "app.yaml").read_bytes() == b"app: a"
    (folder / "lib" / "code.py").unlink()
    assert (bundles.install(listed) / "lib" / "code.py").read_bytes() == b"x = 1"


def test_without_hard_links_files_are_copied(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", no_links)
    listed = bring(bundles, FILES)
    folder = bundles.install(listed)
    assert (folder / "lib" / "code.py").read_bytes() == b"x = 1"
    (folder / "app.yaml").write_bytes(b"app: b")
    assert (bundles.install(listed) / "app.yaml").read_bytes() == b"app: a"


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a", "a")])
def test_contradicting_lists_are_refused(bundles: Bundles, paths: tuple[str, str]) -> None:
    bring(bundles, {"x": b"1", "y": b"2"})
    one, two = manifest({"x": b"1", "y": b"2"}).files
    files = [one.model_copy(update={"path": paths[0]}), two.model_copy(update={"path": paths[1]})]
    with pytest.raises(Invalid, match="twice, or as a file and a folder"):
        bundles.install(Manifest.model_construct(files=files))  # what no message of a cloud can say
    assert not list(bundles._bundles.iterdir())


def test_sweeping_keeps_what_is_needed(bundles: Bundles) -> None:
    old, new = bring(bundles, {"a": b"old", "b": b"same"}), bring(bundles, {"a": b"new", "b": b"same"})
    kept, gone = bundles.install(new), bundles.install(old)
    bundles.partial(File(path="c", sha256="cd" * 32, size_bytes=5)).write_bytes(b"12")
    bundles.sweep([new])
    assert kept.is_dir() and not gone.exists()
    assert sorted(p.name for p in bundles._blobs.iterdir()) == sorted(f.sha256 for f in new.files)
    assert not list(bundles._partial.iterdir())
    assert bundles.install(new) == kept


def test_leftovers_of_a_cut_are_cleared(bundles: Bundles) -> None:
    (bundles._bundles / ".half").mkdir()
    bundles.make()
    assert not list(bundles._bundles.iterdir())


def test_the_disk_is_looked_at_first(small_disk: Path) -> None:
    bundles = Bundles(small_disk, reserve_bytes=0)
    bundles.make()
    small, big = File(path="a", sha256="aa" * 32, size_bytes=1000), File(path="b", sha256="bb" * 32, size_bytes=10**7)
    bundles.room.take([small])
    with pytest.raises(Retryable, match=r"10 MB to fetch.*Free some space"):
        bundles.room.take([small, big])


def test_a_bundle_may_be_too_large() -> None:
    huge = Manifest(files=[File(path="a", sha256="aa" * 32, size_bytes=5_000_000_000)])
    with pytest.raises(Permanent, match="5 GB"):
        check_size(huge, 4_000_000_000)


def test_the_key_is_of_content_not_of_order() -> None:
    listed = manifest(FILES)
    assert bundle_key(listed) == bundle_key(Manifest(files=listed.files[::-1]))
    assert bundle_key(listed) != bundle_key(Manifest(files=listed.files[1:]))
