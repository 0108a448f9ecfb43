"""A device never fetches itself into a full disk: room is taken before the first byte, the outbox's is kept free."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from marram.edge.bundles import Bundles
from marram.edge.room import Room, fallocate
from marram.schema.errors import Retryable
from marram.schema.model import File


def file(name: str, size: int) -> File:
    return File(path=name, sha256=name * 32, size_bytes=size)


def used(place: Path) -> int:
    return place.stat().st_blocks * 512


def cannot(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not here")


def test_what_is_kept_free_for_the_outbox_is_not_fetched_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    bundles = Bundles(tmp_path, reserve_bytes=6_000_000)
    bundles.make()
    model = file("ab", 4_000_001)
    with pytest.raises(Retryable, match=r"10 MB free, 6 MB of it kept for the outbox"):
        bundles.room.take([model])
    bundles.partial(model).write_bytes(b"x")  # what is here of it already needs no more room
    bundles.room.take([model])
    # Nothing to fetch is nothing that a full disk could stop.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    bundles.room.take([model])
    here = file("cd", 1)
    bundles.partial(here).write_bytes(b"x")
    bundles.room.take([here])


@pytest.mark.parametrize("allocate", [fallocate, cannot], ids=["beyond its end", "in a file beside it"])
def test_room_is_taken_used_and_given_back(tmp_path: Path, allocate: object) -> None:
    room = Room(tmp_path, 0, allocate=allocate)  # type: ignore[arg-type]
    model = file("ab", 1_000_000)
    room.take([model])
    partial = tmp_path / model.sha256
    assert partial.stat().st_size == 0, "its size is what has come"
    assert sum(used(place) for place in tmp_path.iterdir()) >= 1_000_000
    room.use(model, 400_000)
    partial.write_bytes(b"x" * 400_000)
    assert sum(used(place) for place in tmp_path.iterdir()) < 1_100_000
    room.release([model])
    assert [place.name for place in tmp_path.iterdir()] == [model.sha256]
    assert partial.stat().st_size == 400_000 and used(partial) < 500_000


def test_two_that_do_not_fit_together_are_not_both_taken(small_disk: Path) -> None:
    """The file system holds 1 MB."""
    room = Room(small_disk, 100_000)
    first, second = file("aa", 600_000), file("bb", 600_000)
    room.take([first])
    with pytest.raises(Retryable, match="too full"):
        room.take([second])
    assert not (small_disk / second.sha256).exists() or used(small_disk / second.sha256) == 0
    room.release([first])
    room.take([second])
    with pytest.raises(Retryable, match="too full"):
        Room(small_disk, 100_000).take([first])


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_while_it_is_taken_keeps_nothing_of_it(tmp_path: Path, full: int) -> None:
    calls = []

    def second_fails(descriptor: int, offset: int, length: int) -> None:
        calls.append(length)
        if len(calls) == 2:
            raise OSError(full, "full")
        fallocate(descriptor, offset, length)

    room = Room(tmp_path, 0, allocate=second_fails)
    with pytest.raises(Retryable, match="too full"):
        room.take([file("aa", 500_000), file("bb", 500_000)])
    assert sum(used(place) for place in tmp_path.iterdir()) < 10_000


def test_what_two_apps_want_is_given_back_when_both_are_done(tmp_path: Path) -> None:
    room, model = Room(tmp_path, 0), file("ab", 1_000_000)
    room.take([model])
    room.take([model])
    room.release([model])
    assert used(tmp_path / model.sha256) >= 1_000_000
    room.release([model])
    assert used(tmp_path / model.sha256) == 0


def test_what_a_killed_agent_took_is_given_back(tmp_path: Path) -> None:
    for allocate in (fallocate, cannot):
        bundles = Bundles(tmp_path, reserve_bytes=0)
        bundles.make()
        Room(tmp_path / "partial", 0, allocate=allocate).take([file("ab", 1_000_000)])
        Bundles(tmp_path, reserve_bytes=0).make()
        assert sum(used(place) for place in (tmp_path / "partial").iterdir()) == 0
    assert os.listdir(tmp_path / "partial") == ["ab" * 32]  # noqa: PTH208 - names alone
