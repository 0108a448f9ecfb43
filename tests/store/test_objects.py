"""Objects: known by their digest, whole or absent, read in ranges; in a folder and in a bucket."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marram.schema.errors import Invalid, Missing, Refused, Retryable
from marram.store import Objects


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_is_put_is_got_by_its_digest(objects: Objects) -> None:
    body = objects.put(b"hello")
    assert (body.sha256, body.size_bytes) == (digest(b"hello"), 5)
    assert objects.get(body.sha256) == b"hello"
    assert objects.put(b"hello") == body
    assert objects.size(body.sha256) == 5
    assert objects.put(b"").size_bytes == 0
    assert objects.get(digest(b"")) == b""


def test_nobody_else_looks_into_the_folder(objects: Objects, tmp_path: Path) -> None:
    assert (tmp_path / "objects").stat().st_mode & 0o077 == 0


def test_many_are_put_at_once(objects: Objects) -> None:
    bodies = objects.put_many([b"a", b"b", b"a"])
    assert [objects.get(b.sha256) for b in bodies] == [b"a", b"b", b"a"]


@given(data=st.binary(max_size=300), offset=st.integers(0, 400), length=st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_range_is_the_slice(objects: Objects, data: bytes, offset: int, length: int) -> None:
    body = objects.put(data)
    assert objects.read(body.sha256, offset, length) == data[offset : offset + length]


def test_a_stream_is_verified_before_anybody_sees_it(objects: Objects, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    chunks = [data[n : n + 100_000] for n in range(0, len(data), 100_000)]
    with pytest.raises(Invalid, match="SHA-256"):
        objects.put_stream(chunks, sha256=digest(b"something else"))
    with pytest.raises(Invalid, match="larger"):
        objects.put_stream(chunks, limit_bytes=1000)
    assert not objects.has(digest(data))
    assert list((tmp_path / "objects" / "staging").iterdir()) == []
    body = objects.put_stream(chunks, sha256=digest(data))
    assert b"".join(objects.stream(body.sha256)) == data


def test_a_stream_that_breaks_off_leaves_nothing(objects: Objects, tmp_path: Path) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"x" * 1000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        objects.put_stream(breaking())
    assert not any(path.is_file() for path in (tmp_path / "objects").rglob("*"))


def test_a_full_disk_is_retryable_and_leaves_nothing_readable(objects: Objects) -> None:
    data = os.urandom(500_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Retryable):
            objects.put(data)
        with pytest.raises(Retryable):
            objects.put_stream([data[:200_000], data[200_000:]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not objects.has(digest(data))
    assert objects.get(objects.put(data).sha256) == data


def test_what_a_power_cut_emptied_is_put_again(objects: Objects, tmp_path: Path) -> None:
    body = objects.put(b"precious")
    [file] = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    file.write_bytes(b"")
    assert objects.put(b"precious") == body
    assert objects.get(body.sha256) == b"precious"


def test_what_a_crash_left_half_written_is_cleared_at_the_next_start(tmp_path: Path) -> None:
    Objects(tmp_path)
    (tmp_path / "staging" / "left").write_bytes(b"half")
    Objects(tmp_path)
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_file_is_taken_over(objects: Objects, tmp_path: Path) -> None:
    for _ in range(2):
        file = tmp_path / "upload"
        file.write_bytes(b"upload")
        objects.adopt(file, digest(b"upload"))
        assert not file.exists()
    assert objects.get(digest(b"upload")) == b"upload"


def test_a_file_is_put(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    assert objects.put_file(tmp_path / "f").sha256 == digest(b"content")


def test_what_is_not_there_is_missing(objects: Objects) -> None:
    for ask in (objects.get, objects.size, lambda d: objects.read(d, 0, 1), lambda d: next(objects.stream(d))):
        with pytest.raises(Missing):
            ask(digest(b"never put"))
    assert not objects.has(digest(b"never put"))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "sha256/../x"])
def test_only_a_digest_is_a_name(objects: Objects, name: str) -> None:
    with pytest.raises(Invalid):
        objects.get(name)


def test_a_range_before_the_start_is_invalid(objects: Objects) -> None:
    with pytest.raises(Invalid):
        objects.read(objects.put(b"x").sha256, -1, 1)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused):
        Objects(tmp_path / "file" / "objects")


def test_what_is_no_store_is_invalid() -> None:
    with pytest.raises(Invalid):
        Objects("nonsense://bucket")


def test_the_check_writes_and_reads(objects: Objects) -> None:
    assert "objects" in objects.check()


def test_a_bucket_keeps_the_same_promises() -> None:
    bucket = Objects("memory:///")  # obstore's own object store without a folder: the code path of S3
    body = bucket.put(b"hello")
    assert bucket.read(body.sha256, 1, 3) == b"ell"
    data = os.urandom(200_000)
    assert bucket.get(bucket.put_stream([data[:100], data[100:]], sha256=digest(data)).sha256) == data
    with pytest.raises(Invalid):
        bucket.put_stream([b"a"], sha256=digest(b"b"))
    with pytest.raises(Missing):
        bucket.get(digest(b"b"))
    bucket.check()
