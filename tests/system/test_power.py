"""What a power cut would show and no killed process can: in which order content and names reach the disk."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from marram.edge.bundles import Bundles
from marram.schema.model import File, Manifest
from marram.system import files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a descriptor's file is told by Linux's /proc")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What was synced and renamed, in order; of a file both are told by its inode's place at that time."""
    told: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        told.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        told.append(("rename", path.resolve()))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return told


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_is_told(
    tmp_path: Path, steps: list[tuple[str, Path]]
) -> None:
    files.write(tmp_path / "record", b"content")
    (first, fresh), second, third = steps
    assert (first, fresh.parent) == ("sync", tmp_path) and fresh.name.startswith(".record.")
    assert (second, third) == (("rename", fresh), ("sync", tmp_path))


def test_a_fetched_file_and_a_bundle_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, steps: list[tuple[str, Path]]
) -> None:
    bundles = Bundles(tmp_path)
    bundles.make()
    assert steps == [("sync", tmp_path)] * 3  # the folders' own names
    steps.clear()
    file = File(path="sub/table.bin", sha256=hashlib.sha256(b"rows").hexdigest(), size_bytes=4)
    bundles.partial(file).write_bytes(b"rows")
    bundles.accept(file)
    partial, blobs = bundles.partial(file), tmp_path / "blobs"
    assert steps == [("sync", partial), ("rename", partial), ("sync", blobs)]
    steps.clear()
    folder = bundles.install(Manifest(files=[file]))
    ((_, made),) = [step for step in steps if step[0] == "rename"]
    before, after = steps[: steps.index(("rename", made))], steps[steps.index(("rename", made)) + 1 :]
    assert {("sync", made), ("sync", made / "sub")} <= set(before)
    assert after == [("sync", folder.parent)]
