"""Files that are whole whatever happens, and a file that one process holds."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from marram.schema.errors import Conflict
from marram.system import files


def test_what_is_written_is_for_its_owner_alone_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    files.write(place, b"one")
    place.chmod(0o644)
    files.write(place, b"two")
    assert place.read_bytes() == b"two"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [place]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "record"
    files.write(place, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(place, b"new")
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_system_that_writes_less_than_asked_for_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: whole(descriptor, bytes(content)[:3]))
    files.write(tmp_path / "record", b"0123456789")
    assert (tmp_path / "record").read_bytes() == b"0123456789"


def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    """The writer is killed in the middle of its work, again and again: what lies there is one of what it wrote."""
    place = tmp_path / "record"
    files.write(place, b"0" * 20_000)
    code = (
        "import sys, pathlib; from marram.system import files\n"
        "n = 0\n"
        "while True:\n"
        "    n = (n + 1) % 10; files.write(pathlib.Path(sys.argv[1]), b'%d' % n * 20_000)\n"
        "    print('.', flush=True)\n"
    )
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b".\n"
            writer.send_signal(signal.SIGKILL)
        content = place.read_bytes()
        assert len(content) == 20_000 and len(set(content)) == 1


def test_one_process_holds_a_file_and_is_named_to_the_others(tmp_path: Path) -> None:
    place = tmp_path / "lock"
    place.write_text("12345678901\n")  # a longer number than any, of a holder that is gone
    code = (
        "import sys, pathlib; from marram.system.files import hold\n"
        "hold(pathlib.Path(sys.argv[1]), ValueError); print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
        with pytest.raises(Conflict, match=f"process {holder.pid} has it"):
            files.hold(place, lambda pid: Conflict(f"process {pid} has it"))
        assert len(os.listdir("/proc/self/fd")) == open_files  # noqa: PTH208 - names alone
        holder.kill()
    os.close(files.hold(place, Conflict))  # what its holder's death left behind holds nobody up
    with pytest.raises(FileNotFoundError):
        files.hold(tmp_path / "nowhere" / "lock", Conflict)


def test_a_new_folders_name_is_on_the_disk_with_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    synced.clear()
    files.make_folder(tmp_path / "a" / "b")
    assert synced == []
