"""The rehearsal of power cuts itself: what it records, what it knows of disks, and that it finds careless programs."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from marram.lab.powercut.disk import Cut, cuts
from marram.lab.powercut.recording import Operation, record

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def _record(tmp_path: Path, program: str) -> list[Operation]:
    folder, script = tmp_path / "disk", tmp_path / "program.py"
    folder.mkdir()
    script.write_text(textwrap.dedent(program))
    operations = record([sys.executable, str(script), str(folder)], folder, os.environ)
    # The recording is true: all of it, replayed, is what lies on the real disk now.
    *_, last = cuts(operations)
    real = {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}
    whole = Cut(len(operations), "", real)
    assert any(cut.digest == whole.digest for cut in cuts(operations) if cut.at <= last.at and cut.how == "all of it")
    return operations


def test_a_careless_replacement_is_found_and_a_careful_one_holds(tmp_path: Path) -> None:
    program = """
        import os, sys
        from pathlib import Path
        from marram.lab.powercut.recording import mark
        from marram.system import files
        folder = Path(sys.argv[1])
        files.write(folder / "careful", b"old" * 1000)
        files.write(folder / "careless", b"old" * 1000)
        mark("old is there")
        files.write(folder / "careful", b"new" * 1000)
        temporary = folder / "temporary"
        temporary.write_bytes(b"new" * 1000)  # no fsync
        temporary.replace(folder / "careless")
    """
    operations = _record(tmp_path, program)
    there = next(index for index, operation in enumerate(operations) if operation.mark == "old is there")
    after = [cut for cut in cuts(operations) if cut.at > there]
    sound = {b"old" * 1000, b"new" * 1000}
    assert {cut.files.get("careful") for cut in after} == sound
    broken = {cut.files.get("careless") for cut in after} - sound
    assert b"" in broken  # the name came, the content did not
    assert bytes(3000) in broken  # the length came, the content did not
    assert any(content is not None and 0 < len(content) < 3000 for content in broken)  # torn


def test_names_are_as_durable_as_their_folder(tmp_path: Path) -> None:
    program = """
        import os, sys
        from pathlib import Path
        from marram.system.files import sync
        folder = Path(sys.argv[1])
        (folder / "a").mkdir(); sync(folder)
        with open(folder / "a" / "x", "wb") as file:
            file.write(b"1"); file.flush(); os.fsync(file.fileno())
        os.link(folder / "a" / "x", folder / "a" / "y")
        sync(folder / "a")
        os.rename(folder / "a", folder / "b")
        (folder / "b" / "y").unlink()
    """
    found = list(cuts(_record(tmp_path, program), orders=20))
    names = {tuple(sorted(cut.files)) for cut in found}
    assert ("a", "a/x", "a/y") in names  # neither the rename nor the removal
    assert ("b", "b/x") in names
    assert ("a", "a/x") in names  # the removal without the rename
    assert ("b", "b/x", "b/y") in names
    assert not any("a" in each and "b" in each for each in names)  # a rename is one act


def test_threads_and_children_are_followed(tmp_path: Path) -> None:
    program = """
        import os, subprocess, sys, threading
        from pathlib import Path
        folder = Path(sys.argv[1])
        def work(name):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
            for turn in range(20):
                os.pwrite(descriptor, bytes([turn]) * 10, turn * 10)
            os.close(descriptor)
        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
        [t.start() for t in threads]; [t.join() for t in threads]
        subprocess.run(["/bin/sh", "-c", f"echo one > {folder}/c; echo two >> {folder}/c"], check=True)
    """
    operations = _record(tmp_path, program)
    assert sum(operation.what == "write" for operation in operations) == 82


def test_sqlite_keeps_what_it_acknowledged_through_every_cut(tmp_path: Path) -> None:
    program = """
        import sqlite3, sys
        from marram.lab.powercut.recording import mark
        database = sqlite3.connect(sys.argv[1] + "/x.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE t (n INTEGER)")
        for n in range(6):
            database.execute("INSERT INTO t VALUES (?)", (n,))
            mark(f"acknowledged {n}")
        database.close()
    """
    import sqlite3

    operations = _record(tmp_path, program)
    looked = 0
    for number, cut in enumerate(cuts(operations)):
        acknowledged = sum(operation.mark.startswith("ack") for operation in operations[: cut.at])
        place = tmp_path / f"cut-{number}"
        place.mkdir()
        cut.write(place)
        if acknowledged:
            with sqlite3.connect(place / "x.db") as database:
                rows = [row[0] for row in database.execute("SELECT n FROM t ORDER BY n")]
            assert rows[:acknowledged] == list(range(acknowledged)), (cut.at, cut.how)
            looked += 1
        shutil.rmtree(place)
    assert looked > 30
