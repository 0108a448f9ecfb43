from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.edge.deploy import AppRecord
from marram.edge.state import Credentials, Folder, write_atomic
from marram.schema.device import AppState, Desired, DesiredApp
from marram.schema.errors import Conflict, Invalid, Missing, Permanent, Retryable
from marram.schema.model import File, Manifest

APP = DesiredApp(
    name="gate", version=3, files=Manifest(files=[File(path="app.yaml", sha256="ab" * 32, size_bytes=120)])
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "edge")
    folder.make()
    return folder


def credentials() -> Credentials:
    return Credentials(device="pi-1", brokers=["nats://127.0.0.1:4222"], cloud="http://cloud:8080")


def test_credentials_come_back_and_nobody_else_reads_them(folder: Folder) -> None:
    folder.save_credentials(credentials())
    assert folder.credentials() == credentials()
    assert (folder.path / "credentials.yaml").stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o077 == 0


def test_without_credentials_the_message_says_how_to_join(folder: Folder) -> None:
    with pytest.raises(Missing, match=r"not joined.*marram edge join URL TOKEN"):
        folder.credentials()


def test_damaged_credentials_are_told(folder: Folder) -> None:
    file = folder.path / "credentials.yaml"
    folder.save_credentials(credentials())
    whole = file.read_bytes()
    refused = 0
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        try:
            assert folder.credentials().device == "pi-1"  # only the last lines are gone, which are not needed
        except Invalid as error:
            refused += 1
            assert str(file) in str(error) and "join again" in str(error)
    assert refused > len(whole) // 2
    for garbage in (b"\xff\xfe\x00", b"[" * 5000, b"device: [1", b"null", b"device: x\nsecret: 1\nbrokers: 3\n"):
        file.write_bytes(garbage)
        with pytest.raises(Invalid, match="cannot be read"):
            folder.credentials()


def test_a_file_cut_anywhere_is_as_good_as_absent(folder: Folder) -> None:
    folder.save_desired(Desired(version=7, apps=[APP]))
    folder.save_record(AppRecord(target=APP, state=AppState.COMMITTED, committed=APP))
    for file, read, absent in (
        (folder.path / "desired.json", folder.desired, None),
        (folder.path / "apps" / "gate.json", folder.records, {}),
    ):
        whole = file.read_bytes()
        assert read() != absent
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            assert read() == absent, f"cut at {length}"
            assert not file.exists() and file.with_suffix(".damaged").exists()
        file.write_bytes(whole)
        assert read() != absent


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_garbled_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = Folder(tmp_path_factory.mktemp("garbled"))
    folder.make()
    desired = Desired(version=7, apps=[APP])
    folder.save_desired(desired)
    file = folder.path / "desired.json"
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    # Never another desired state than the one written, whichever byte it was.
    assert folder.desired() in (None, desired)


def test_leftovers_of_a_cut_are_cleared(folder: Folder) -> None:
    (folder.path / ".desired.json.123.tmp").write_bytes(b"half")
    folder.make()
    assert not list(folder.path.glob(".*.tmp"))


def test_a_writer_killed_at_any_time_leaves_old_or_new(tmp_path: Path) -> None:
    file = tmp_path / "state"
    writer = (
        "import sys; from pathlib import Path; from marram.edge.state import write_atomic\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; write_atomic(Path(sys.argv[1]), b'%d ' % n * 4000)\n"
        "    print(n, flush=True)\n"
    )
    for kill_after in range(1, 13):
        process = subprocess.Popen([sys.executable, "-c", writer, str(file)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(kill_after):
            process.stdout.readline()
        process.kill()
        acknowledged = [kill_after, *(int(line) for line in process.stdout if line.endswith("\n"))]
        process.wait()
        process.stdout.close()
        numbers = file.read_bytes().split()
        assert len(numbers) == 4000 and len(set(numbers)) == 1
        assert int(numbers[0]) in (acknowledged[-1], acknowledged[-1] + 1)


def test_a_second_agent_is_told_who_is_there(folder: Folder) -> None:
    with folder.lock():
        assert Folder(folder.path).holder() == os.getpid()
        with pytest.raises(Conflict, match=rf"process {os.getpid()}\).*--folder"), Folder(folder.path).lock():
            pass
    assert folder.holder() is None


def test_a_killed_agents_lock_ends_with_it(folder: Folder) -> None:
    holder = (
        "import sys; from pathlib import Path; from marram.edge.state import Folder\n"
        "with Folder(Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    with pytest.raises(Conflict, match=str(process.pid)), folder.lock():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    with folder.lock():
        pass


def test_a_full_disk_is_retryable_and_keeps_the_old(small_disk: Path) -> None:
    file = small_disk / "state"
    write_atomic(file, b"old")
    with pytest.raises(Retryable, match=r"disk is full.*goes on by itself"):
        write_atomic(file, bytes(4_000_000))
    assert file.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [file]


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Permanent, match="file"):
        Folder(tmp_path / "file" / "edge").make()


def test_what_stands_where_a_part_of_the_folder_belongs_is_named(folder: Folder) -> None:
    (folder.path / "work").rmdir()
    (folder.path / "work").write_text("")
    with pytest.raises(Permanent) as caught:
        folder.make()
    assert caught.value.where == str(folder.path / "work")


def test_records_of_removed_apps_are_gone(folder: Folder) -> None:
    folder.save_record(AppRecord(target=APP))
    assert set(folder.records()) == {"gate"}
    folder.remove_record("gate")
    folder.remove_record("gate")
    assert folder.records() == {}


def test_a_record_under_another_name_is_not_believed(folder: Folder) -> None:
    folder.save_record(AppRecord(target=APP))
    (folder.path / "apps" / "gate.json").rename(folder.path / "apps" / "other.json")
    assert folder.records() == {}
