"""The local library: installing is all or nothing, a version never changes, a reference finds or says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marram.runtime import library
from marram.schema.errors import Conflict, Invalid, Missing, Permanent

Write = Callable[..., Path]


def test_added_bundles_are_found_by_name_version_and_path(write_bundle: Write, marram_home: Path) -> None:
    for version in (1, 2, 10):
        library.add(write_bundle(version=version))
    assert library.names() == ["tiny"]
    assert library.versions("tiny") == [1, 2, 10]
    assert library.resolve("tiny", Path("/nowhere")).card.version == 10
    assert library.resolve("tiny@2", Path("/nowhere")).folder == marram_home / "models" / "tiny" / "2"
    folder = write_bundle("beside")
    assert library.resolve("./beside", folder.parent).card.model == "beside"
    assert library.resolve("bundles/beside", folder.parent.parent).card.model == "beside"


def test_only_the_bundles_own_files_are_copied(write_bundle: Write) -> None:
    folder = write_bundle(files={"model.tflite": b"m", "secret.key": b"s"})
    there = library.add(folder).folder
    assert sorted(p.name for p in there.iterdir()) == ["model.tflite", "model.yaml"]


def test_the_same_again_is_no_fault_other_content_is(write_bundle: Write) -> None:
    library.add(write_bundle())
    library.add(write_bundle())
    with pytest.raises(Conflict, match="tiny@1 is in the library with other content"):
        library.add(write_bundle(labels=["other"]))
    assert library.get("tiny").labels == ("ant", "bee", "cat")
    assert library.add(write_bundle(labels=["other"]), replace=True).labels == ("other",)


def test_a_bundle_that_is_none_leaves_nothing(write_bundle: Write) -> None:
    with pytest.raises(Missing):
        library.add(write_bundle(files={}))
    assert library.names() == []


def test_a_half_written_install_is_not_seen(write_bundle: Write, marram_home: Path) -> None:
    library.add(write_bundle())
    left = marram_home / "models" / "tiny" / ".adding-abc" / "bundle"  # as a power cut leaves it
    left.mkdir(parents=True)
    (marram_home / "models" / "tiny" / "7").mkdir()
    (marram_home / "models" / ".building-x").mkdir()
    assert library.names() == ["tiny"]
    assert library.versions("tiny") == [1]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tinny", 'no model "tinny"; did you mean "tiny"? `marram model list` shows all.'),
        ("efficientnet-lite9", 'did you mean "efficientnet-lite'),
        ("zzz", 'no model "zzz". `marram model list` shows all.'),
        ("efficientnet-lite0", "`marram model build efficientnet-lite0` makes it."),
        ("tiny@4", 'no version 4 of model "tiny" here; there is 1'),
        ("tiny@stable", '"tiny@stable" is a channel of a cloud'),
        ("./gone", "gone: no such folder"),
    ],
)
def test_what_is_not_there_says_the_next_step(write_bundle: Write, reference: str, message: str) -> None:
    library.add(write_bundle())
    with pytest.raises(Missing) as fault:
        library.resolve(reference, Path())
    assert message in str(fault.value)


@pytest.mark.parametrize("reference", ["Tiny", "tiny@", "tiny@X", "tiny@0", "tiny@-1", "", "a b"])
def test_malformed_references_are_invalid(reference: str) -> None:
    with pytest.raises(Invalid):
        library.resolve(reference, Path())


def test_a_disk_that_refuses_is_said_plainly(write_bundle: Write, marram_home: Path) -> None:
    folder = write_bundle()
    (marram_home / "models").write_text("a file where a folder belongs")
    with pytest.raises(Permanent, match="cannot write the model"):
        library.add(folder)
