"""Whose fault a full disk is: with disks that are full, and real workers on them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marram.edge import blame
from marram.system import files

SEPARATE = ["unshare", "--mount", "--propagation", "private"]
if os.geteuid() != 0:
    SEPARATE[1:1] = ["--user", "--map-root-user"]
CAN_MOUNT = shutil.which("unshare") is not None and subprocess.run([*SEPARATE, "true"], check=False).returncode == 0
mounts = pytest.mark.skipif(not CAN_MOUNT, reason="no file system can be mounted here")
WORK = """
import asyncio, json, sys
from pathlib import Path
from marram.bus.client import Bus
from marram.edge.relay import Relay
from marram.edge.supervisor import Patience, Worker, WorkerSpec

APP = '''app: calling
source: {series: rows.csv, every: 20 ms}
steps:
  - function: handler.py:handle
files: [rows.csv]
'''

async def main(place, handler, fill):
    (place / "outbox").mkdir()
    (place / "work").mkdir()
    app = place.parent / "app"
    app.mkdir()
    (app / "app.yaml").write_text(APP)
    (app / "rows.csv").write_text("x\\n1\\n")
    (app / "handler.py").write_text(handler)
    if fill:
        with open(place / "ballast", "wb", 0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
                    ballast.flush()
            except OSError:
                pass
    bus = await Bus.connect("nats://127.0.0.1:9", "nobody", "nothing")
    spec = WorkerSpec(device="pi-1", app="calling", version=1, folder=app, models={}, cloud=[],
        outbox=place / "outbox" / "outbox.db", work=place / "work",
        log=place.parent / "app.log", held_bytes=0)
    worker = await Worker.start(spec, lambda channel: Relay(bus, channel, ()), Patience())
    end = await worker.exited
    await bus.close()
    print(json.dumps([end.cause, end.filled, end.again, end.reason]))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "full"))
"""


def lived(scratch: Path, handler: str, how: str) -> tuple[str, bool, bool, str]:
    """How a real worker ended on a disk of 24 MB: cause, filled, again, reason."""
    place = scratch / "device"
    place.mkdir()
    (scratch / "work.py").write_text(WORK)
    mounted = 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$@"'
    command = [*SEPARATE, "sh", "-c", mounted, str(place), sys.executable, str(scratch / "work.py"), str(place)]
    done = subprocess.run([*command, handler, how], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    cause, filled, again, reason = json.loads(done.stdout.splitlines()[-1])
    return cause, filled, again, reason


FILLS = """
def fill(place):
    try:
        with open(place, "wb") as ballast:
            while True:
                ballast.write(bytes(4096))
                ballast.flush()
    except OSError:
        pass
"""
QUIET = "def handle(event, context):\n    return event\n"
LIES = "from marram.schema.errors import Retryable\nraise Retryable('the disk is full')\n"


@mounts
@pytest.mark.parametrize(
    ("handler", "how", "cause", "filled", "words"),
    [
        (QUIET, "full", "disk", False, "full"),
        (FILLS + "fill('mine')\n" + QUIET, "", "crash", False, "it filled the disk itself: "),
        (FILLS + "fill('../elsewhere')\n" + QUIET, "", "disk", True, "could not be recorded"),
        (LIES + QUIET, "", "crash", False, "the disk is full"),
    ],
    ids=["of others", "of its own", "somewhere else", "a lie"],
)
def test_a_worker_on_a_full_disk(tmp_path: Path, handler: str, how: str, cause: str, filled: bool, words: str) -> None:
    told = lived(tmp_path, handler, how)
    assert (told[0], told[1]) == (cause, filled)
    assert words in told[3]


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    assert not blame.full(tmp_path / "outbox" / "outbox.db", tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "full"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, True), (errno.EACCES, False)],
    ids=["no space", "quota", "read-only", "closed"],
)
def test_what_a_write_that_fails_says_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, full: bool
) -> None:
    def fails(place: Path, content: bytes) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(files, "write", fails)
    assert blame.full(tmp_path / "outbox.db", tmp_path) is full


def test_the_outboxs_disk_counts_and_that_of_the_work_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, work = tmp_path / "outbox" / "outbox.db", tmp_path / "work"
    outbox.parent.mkdir()
    work.mkdir()
    assert not blame.full(outbox, work)
    assert not any(outbox.parent.iterdir()) and not any(work.iterdir())
    for place in (outbox.parent, work):
        monkeypatch.setattr(blame, "_free_bytes", lambda each, place=place: 0 if each == place else 1 << 40)
        assert blame.full(outbox, work)


def test_what_an_app_wrote_is_counted_by_blocks_and_files(tmp_path: Path) -> None:
    work, outbox = tmp_path / "work", tmp_path / "outbox" / "outbox.db"
    assert blame.written_bytes(outbox, work) == 0
    (work / "deep" / "er").mkdir(parents=True)
    outbox.parent.mkdir()
    outbox.write_bytes(bytes(1_000_000))  # bounded by itself, and not the app's
    (outbox.parent / "outbox.db-wal").write_bytes(bytes(1_000_000))
    before = blame.written_bytes(outbox, work)
    assert before < 100_000
    (work / "deep" / "er" / "file").write_bytes(bytes(100_000))
    (work / "loop").symlink_to(work)
    (work / "empty").touch()
    (outbox.parent / "mine").write_bytes(bytes(50_000))
    assert 150_000 <= blame.written_bytes(outbox, work) - before <= 190_000
    with (work / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert blame.written_bytes(outbox, work) - before <= 200_000


def test_only_what_was_written_since_its_start_is_the_apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "ROOM_BYTES", 100_000)
    monkeypatch.setattr(blame, "_free_bytes", lambda _: 40_000)
    work, outbox = tmp_path / "work", tmp_path / "outbox" / "outbox.db"
    work.mkdir()
    outbox.parent.mkdir()
    (work / "old").write_bytes(bytes(200_000))
    before = blame.written_bytes(outbox, work)
    assert not blame.filled_itself(outbox, work, before)
    (work / "new").write_bytes(bytes(50_000))
    assert not blame.filled_itself(outbox, work, before), "without it there would be too little room all the same"
    (work / "more").write_bytes(bytes(20_000))
    assert blame.filled_itself(outbox, work, before)


def test_empty_files_count_and_counting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, outbox = tmp_path / "work", tmp_path / "outbox" / "outbox.db"
    work.mkdir()
    for number in range(10):
        (work / str(number)).touch()
    assert blame.written_bytes(outbox, work) == 10 * 4096
    monkeypatch.setattr(blame, "_MOST_FILES", 3)
    assert blame.written_bytes(outbox, work) == 3 * 4096
