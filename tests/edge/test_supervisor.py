from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edge.world import LONG_S, ticking

from marram.bus.client import Bus
from marram.bus.outbox import Outbox
from marram.edge.logfile import LogFile
from marram.edge.process import resident_bytes, worker_environment
from marram.edge.relay import Relay
from marram.edge.supervisor import Cause, Patience, Worker, WorkerSpec
from marram.schema.errors import Retryable

Start = Callable[..., Awaitable[Worker]]


def calling(body: str, limits: str = "") -> dict[str, bytes]:
    """An app that calls this function body for each reading."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    text = (
        "app: calling\nsource: {series: rows.csv, every: 20 ms, repeat: true}\n"
        f"steps:\n  - function: handler.py:handle\nsend: nothing\nfiles: [rows.csv]\n{limits}\n"
    )
    handler = f"import os, sys, time, threading\n\ndef handle(event, context):\n{indented}\n"
    return {"app.yaml": text.encode(), "handler.py": handler.encode(), "rows.csv": b"x\n1\n"}


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a worker on these files; with a bus that never connects."""
    bus = await Bus.connect("nats://127.0.0.1:9", "nobody", "nothing")
    workers: list[Worker] = []

    async def begin(files: dict[str, bytes], patience: Patience | None = None, **more: Any) -> Worker:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        spec = WorkerSpec(
            device="pi-1", app="ticking", version=1, folder=folder, models={}, cloud=[], outbox=tmp_path / "outbox.db",
            work=tmp_path / "work", log=tmp_path / "app.log", **more,
        )  # fmt: skip
        worker = await Worker.start(spec, lambda channel: Relay(bus, channel, ()), patience or Patience())
        workers.append(worker)
        return worker

    yield begin
    for worker in workers:
        await worker.stop()
    await bus.close()


async def proven(worker: Worker) -> None:
    while not worker.stats.get("frames"):
        worker.news.clear()
        await asyncio.wait_for(worker.news.wait(), LONG_S)


async def end(worker: Worker) -> Any:
    return await asyncio.wait_for(asyncio.shield(worker.exited), LONG_S)


async def test_it_runs_and_stops_clean(start: Start) -> None:
    worker = await start(ticking())
    await proven(worker)
    assert worker.stats["frames"] > 0
    await worker.stop()
    assert worker.exited.result().reason == "stopped"
    assert worker.process.returncode == 0
    await worker.stop()


async def test_a_held_worker_runs_only_when_told(start: Start) -> None:
    worker = await start(ticking(), verify=True)
    await asyncio.wait_for(worker.verified.wait(), LONG_S)
    assert not worker.stats
    worker.go()
    await proven(worker)


async def test_what_it_made_last_is_on_the_disk_before_it_ends(start: Start, tmp_path: Path) -> None:
    files = calling("return {'value': 1.0}")
    files["rows.csv"] = b"x\n" + b"1\n" * 3000
    files["app.yaml"] = files["app.yaml"].replace(b", every: 20 ms, repeat: true", b"").replace(b"nothing", b"results")
    assert (await end(await start(files))).finished
    with contextlib.closing(Outbox(tmp_path / "outbox.db")) as outbox:
        assert outbox.depth() == 3000


async def test_a_source_that_ends_is_a_finish(start: Start) -> None:
    files = ticking()
    files["app.yaml"] = files["app.yaml"].replace(b", repeat: true", b"")
    worker = await start(files)
    assert (await end(worker)).finished


@pytest.mark.parametrize(
    ("files", "words", "again"),
    [
        ({"app.yaml": b"app: [", "rows.csv": b""}, r"app\.yaml.*not YAML", False),
        ({**ticking(), "rows.csv": b""}, r"rows\.csv", None),
        ({**ticking(), "app.yaml": ticking()["app.yaml"].replace(b"rows.csv", b"none.csv")}, r"none\.csv", True),
        ({**calling("pass"), "handler.py": b"import nothing_like_it\n"}, "nothing_like_it", None),
        (calling("os._exit(7)"), "exit status 7", True),
        (calling("print('out of luck', file=sys.stderr)\nos._exit(7)"), "exit status 7: out of luck", True),
        (calling("os.kill(os.getpid(), 11)"), "SIGSEGV: Fatal Python error: Segmentation fault", True),
        (calling("os.kill(os.getpid(), 9)"), "killed by SIGKILL", True),
        (
            calling("print('all is well', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)"),
            "killed by SIGKILL; its last words: all is well",
            True,
        ),
    ],
    ids=[
        "not yaml",
        "empty series",
        "no series",
        "no import",
        "exits",
        "says why",
        "segfault",
        "killed",
        "killed from outside",
    ],
)
async def test_why_it_ended(start: Start, files: dict[str, bytes], words: str, again: bool | None) -> None:
    ended = await end(await start(files))
    assert re.search(words, ended.reason), ended.reason
    assert not ended.finished
    assert again is None or ended.again is again
    assert "Traceback" not in ended.reason


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("raw: redacted\nsteps: [{keep: 'true'}]\n", '3  raw: model "blazeface" did not come with the app'),
        ("steps:\n  - redact: faces\n", '4  steps[0].redact: model "blazeface" did not come'),
        ("steps:\n  - classify: zebra\n", '4  steps[0].classify: model "zebra" did not come'),
        ("steps:\n  - filter: a b\n", "4  steps[0].filter: `a b` is not a condition"),
    ],
)
async def test_what_is_wrong_with_a_deployed_app_names_its_line(start: Start, rest: str, words: str) -> None:
    text = f"app: calling\nsource: {{images: .}}\n{rest}"
    worker = await start({"app.yaml": text.encode()}, verify=True)
    verified = asyncio.create_task(worker.verified.wait())
    await asyncio.wait({verified, asyncio.ensure_future(worker.exited)}, return_when=asyncio.FIRST_COMPLETED)
    verified.cancel()
    worker.go()  # what only the run finds; models were found before
    ended = await end(worker)
    assert f"ticking/app.yaml:{words}" in ended.reason
    assert not ended.again


async def test_limits_that_nothing_enforces_are_in_the_log(start: Start, tmp_path: Path) -> None:
    worker = await start(calling("pass", "limits: {power: 6 W}"))
    await proven(worker)
    await worker.stop()
    assert "limits.power: not enforced on this machine" in (tmp_path / "app.log").read_text()


async def test_a_missing_camera_may_come_later(start: Start) -> None:
    app = b"app: cam\nsource: {camera: 63}\nsteps:\n  - function: handler.py:handle\n"
    ended = await end(await start({**calling("pass"), "app.yaml": app}))
    assert ended.again and "camera" in ended.reason


async def test_outgrowing_the_memory_limit_ends_it(start: Start) -> None:
    grow = "handle.kept = getattr(handle, 'kept', b'') + bytes(range(256)) * 40_000"
    worker = await start(calling(grow), memory_bytes=200_000_000)
    ended = await end(worker)
    assert "its limit is 200 MB" in ended.reason and ended.cause is Cause.MEMORY


async def test_memory_of_its_children_counts(start: Start) -> None:
    child = (
        "import subprocess\nif not hasattr(handle, 'child'):\n"
        "    code = 'kept = bytes(range(256)) * 1_200_000; input()'\n"
        "    handle.child = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE)\n"
    )
    worker = await start(calling(child), memory_bytes=300_000_000)
    assert "its limit is 300 MB" in (await end(worker)).reason


async def test_one_huge_allocation_fails_inside(start: Start) -> None:
    worker = await start(calling("handle.kept = bytearray(8_000_000_000)"), memory_bytes=200_000_000)
    await asyncio.wait_for(counted_error(worker), LONG_S)
    assert "MemoryError" in worker.stats["last_error"]
    assert not worker.exited.done()


async def counted_error(worker: Worker) -> None:
    while not worker.stats.get("errors"):
        await asyncio.sleep(0.05)


async def test_a_frozen_process_is_a_hang(start: Start) -> None:
    worker = await start(ticking(), Patience(silent_s=5))
    await proven(worker)
    worker.process.send_signal(signal.SIGSTOP)
    assert "not a sign of life" in (await end(worker)).reason


async def test_a_step_that_never_comes_back_is_a_hang(start: Start) -> None:
    worker = await start(calling("while True: time.sleep(0.01)"), Patience(busy_s=2))
    assert "at work on one frame" in (await end(worker)).reason


async def test_never_getting_ready_is_a_hang(start: Start) -> None:
    worker = await start(ticking(), Patience(verify_s=1))
    worker.process.send_signal(signal.SIGSTOP)
    assert "not ready 1 s after its start" in (await end(worker)).reason


async def test_never_opening_its_source_is_a_hang(start: Start) -> None:
    worker = await start(ticking(), Patience(verify_s=8), verify=True)
    await asyncio.wait_for(worker.verified.wait(), LONG_S)
    worker.process.send_signal(signal.SIGSTOP)
    worker.go()
    assert "not open after 8 s" in (await end(worker)).reason


async def test_words_that_are_no_text_reach_the_operator(start: Start) -> None:
    worker = await start(calling("raise ValueError(os.fsdecode(b'caf\\xe9'))"))
    await asyncio.wait_for(counted_error(worker), LONG_S)
    assert "ValueError: caf?" in worker.stats["last_error"]
    assert not worker.exited.done()


async def test_its_figures_are_bounded(start: Start) -> None:
    worker = await start(ticking())
    await proven(worker)
    huge = {f"key{n}": n for n in range(5000)} | {"k" * 1000: 1}
    worker._take({"t": "stats", "stats": {"last_error": "x" * 10**6, "list": [1], b"bytes": 1, **huge}})
    assert len(worker.stats) <= 100 and len(worker.stats["last_error"]) == 500
    assert "list" not in worker.stats and b"bytes" not in worker.stats
    worker._take({"t": "stats", "stats": "none"})
    assert worker.stats == {}


async def test_one_that_ignores_the_stop_is_killed(start: Start) -> None:
    stubborn = "import signal\nfor n in (15, 2): signal.pthread_sigmask(signal.SIG_BLOCK, [n])\nwhile True: pass"
    worker = await start(calling(stubborn), Patience(stop_s=1))
    await asyncio.wait_for(worker.verified.wait(), LONG_S)
    await worker.stop()
    assert worker.process.returncode is not None


async def test_its_children_end_with_it(start: Start, tmp_path: Path) -> None:
    body = (
        "import subprocess\nif not os.path.exists('child'):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n    open('child', 'w').write(str(child.pid))\n"
    )
    worker = await start(calling(body))
    await proven(worker)
    child = int((tmp_path / "work" / "child").read_text())
    assert Path(f"/proc/{child}").exists()
    worker.process.kill()
    assert (await end(worker)).reason == "killed by SIGKILL"  # that its child holds its output open hides nothing
    await gone_or_zombie(child)


async def test_a_child_left_behind_makes_no_hang_of_a_finish(start: Start) -> None:
    """Taken for a hang it would be started again, and record all of its source twice."""
    files = calling("import subprocess\nsubprocess.Popen(['sleep', '600'])")
    files["app.yaml"] = files["app.yaml"].replace(b", repeat: true", b"")
    worker = await start(files)
    found = await end(worker)
    assert (found.finished, found.reason) == (True, "its source came to its end")


async def gone_or_zombie(pid: int) -> None:
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{pid} lives")


async def test_nonsense_on_the_channel_ends_it(start: Start) -> None:
    body = "import socket\nfor fd in range(3, 30):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass"
    assert "nonsense" in (await end(await start(calling(body)))).reason


async def test_a_flood_of_words_costs_a_bounded_file(start: Start, tmp_path: Path) -> None:
    worker = await start(calling("while True: sys.stdout.write('x' * 99 + chr(10))"), Patience(busy_s=4))
    await end(worker)
    assert 0 < sum(file.stat().st_size for file in tmp_path.glob("app.log*")) < 2_200_000


async def test_it_sees_no_secret_and_no_terminal(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARRAM_TOKEN", "do-not-tell")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    body = (
        "seen = [dict(os.environ), sys.stdin.read(), os.getcwd(), sorted(os.listdir('/proc/self/fd'))]\n"
        "os.path.exists('seen') or open('seen', 'w').write(repr(seen))"
    )
    await proven(await start(calling(body)))
    seen = (tmp_path / "work" / "seen").read_text()
    assert "do-not-tell" not in seen
    assert str(tmp_path / "work") in seen


def test_a_worker_loads_only_what_every_app_needs_and_user_code_all_it_wants() -> None:
    program = """
import sys
import marram.edge.worker
unwanted = ("asyncio", "nats", "httpx", "paho", "ssl", "_hashlib", "email", "importlib.metadata", "cv2", "torch")
print([name for name in unwanted if name in sys.modules])
import hashlib, hmac, importlib.metadata, secrets, ssl
assert hashlib.pbkdf2_hmac("sha256", b"x", b"y", 1).hex() and hmac.new(b"k", b"m", "sha256").hexdigest()
assert hashlib.new("sha256", b"x").hexdigest() and secrets.compare_digest(secrets.token_hex(4), "no") is False
assert "_hashlib" in sys.modules and importlib.metadata.version("pydantic")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_environment_is_a_short_list() -> None:
    given = {"PATH": "/bin", "HOME": "/root", "LC_ALL": "C", "MARRAM_HOME": "/x", "SSH_AUTH_SOCK": "/s", "A_KEY": "k"}
    assert set(worker_environment(given)) == {
        "PATH", "LC_ALL", "HOME", "MALLOC_ARENA_MAX", "PYTHONFAULTHANDLER"
    }  # fmt: skip


def test_resident_memory_of_this_process() -> None:
    assert 10_000_000 < resident_bytes(os.getpid()) < 4_000_000_000
    assert resident_bytes(2**22 + 1) == 0


async def test_a_full_disk_loses_words_only(small_disk: Path) -> None:
    log = LogFile(small_disk / "app.log", limit_bytes=10_000_000)
    reader = asyncio.StreamReader()
    reader.feed_data(b"y" * 3_000_000 + b"\nlast words\n")
    reader.feed_eof()
    await log.pump(reader)
    assert log.last_words() == "last words"


async def test_a_file_where_the_working_folder_belongs_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(Retryable, match=f"{tmp_path}/work: file exists"):
        await start(ticking())
