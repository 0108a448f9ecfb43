"""Whose fault a full disk is: with disks that are full, and real workers on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marram.edge import blame

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


def test_what_an_app_wrote_is_counted_by_blocks_and_files(tmp_path: Path) -> None:
    work, outbox = tmp_path / "work", tmp_path / "outbox" / "outbox.db"
    assert blame.written_bytes(outbox, work) == 0
    (work / "deep" / "er").mkdir(parents=True)
    outbox.parent.mkdir()
    outbox.write_bytes(bytes(1_000_000))  # bounded by itself, and not the app's
    (outbox.parent / "outbox.db-wal").write_bytes(bytes(1_000_000))
    before = blame.written_bytes(outbox, work)
    (work / "deep" / "er" / "file").write_bytes(bytes(100_000))
    (work / "loop").symlink_to(work)
    (work / "empty").touch()
    (outbox.parent / "mine").write_bytes(bytes(50_000))
    assert 150_000 <= blame.written_bytes(outbox, work) - before <= 190_000
    with (work / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert blame.written_bytes(outbox, work) - before <= 200_000
