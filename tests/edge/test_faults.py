from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from tests.edge.world import DEVICE, LONG_S, Cloud, Device, gone, ticking

from marram.bus.codec import BlobAsk
from marram.bus.outbox import Outbox
from marram.schema.device import AppState


def other(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, "app.yaml": files["app.yaml"].replace(b"app: ticking", f"app: {name}".encode())}


def calling(body: str, name: str = "ticking") -> dict[str, bytes]:
    """An app that calls this code for each reading."""
    text = (
        f"app: {name}\nsource: {{series: rows.csv, every: 20 ms, repeat: true}}\n"
        "steps:\n  - function: handler.py:handle\nfiles: [rows.csv]\n"
    )
    handler = f"import os\ndef handle(event, context):\n    {body}\n"
    return {"app.yaml": text.encode(), "handler.py": handler.encode(), "rows.csv": b"x\n1\n"}


async def until_workers(device: Device, count: int, besides: int = 0) -> list[int]:
    async with asyncio.timeout(LONG_S):
        while len(found := [pid for pid in device.workers() if pid != besides]) < count:
            await asyncio.sleep(0.05)
    return found


def nothing_lost_or_twice(cloud: Cloud, device: Device) -> None:
    """Every record made is stored once or still waits; numbers without a gap prove that none was lost."""
    outbox = Outbox(device.folder.outbox)
    waiting = [record.sequence for record in outbox.read(limit=1_000_000, max_bytes=10**9)]
    stream = outbox.stream
    outbox.close()
    numbers: dict[str, list[int]] = defaultdict(list)
    for each, sequence in cloud.stored:
        numbers[each].append(sequence)
    assert set(numbers) <= {stream}
    seen = sorted({*numbers[stream], *waiting})
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 10


async def test_a_clean_stop_loses_nothing(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking(every="2 ms")))
    await device.start()
    await cloud.until_stored(200)
    workers = device.workers()
    assert await device.stop() == 0
    await gone(workers)
    nothing_lost_or_twice(cloud, device)
    assert set(cloud.stored.values()) == {1}
    # With the cloud there, what the workers flushed last was taken too.
    outbox = Outbox(device.folder.outbox)
    assert outbox.depth() == 0
    outbox.close()


async def test_a_killed_worker_comes_back_and_the_other_app_never_notices(cloud: Cloud, device: Device) -> None:
    await device.start()
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await cloud.until_state("ticking", AppState.COMMITTED)
    (first,) = device.workers()
    await cloud.want(cloud.app("ticking", 1, ticking()), cloud.app("second", 1, other("second", ticking())))
    await cloud.until_state("second", AppState.COMMITTED)
    (second,) = [pid for pid in device.workers() if pid != first]
    os.kill(second, signal.SIGKILL)
    report = await cloud.until(lambda r: any(a.name == "second" and a.restarts == 1 for a in r.apps))
    assert next(a for a in report.apps if a.name == "second").reason == "killed by SIGKILL"
    assert second not in await until_workers(device, 1, besides=first)
    assert first in device.workers()
    assert {a.name: a.restarts for a in report.apps} == {"ticking": 0, "second": 1}
    await cloud.until_stored(20)
    await device.stop()
    nothing_lost_or_twice(cloud, device)


async def test_a_killed_agent_takes_its_workers_along_and_goes_on_without_the_cloud(
    cloud: Cloud, device: Device
) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    workers = device.workers()
    await device.stop(signal.SIGKILL)
    await gone(workers)

    await cloud.close()
    await device.start()
    await until_workers(device, 1)
    outbox = Outbox(device.folder.outbox)
    before = outbox.depth()
    async with asyncio.timeout(LONG_S):
        while outbox.depth() < before + 20:
            await asyncio.sleep(0.05)
    outbox.close()
    await cloud.open()
    await cloud.until_stored(20)
    await device.stop()
    nothing_lost_or_twice(cloud, device)


async def test_a_broker_killed_again_and_again_costs_no_record(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking(every="5 ms")))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    for _ in range(4):
        # What was on its way when the last one died may be stored before the next one is there.
        async with asyncio.timeout(LONG_S):
            while (pid := cloud.server.server.pid) is None:
                await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        await cloud.until_stored(60)
    await device.stop()
    nothing_lost_or_twice(cloud, device)


async def test_a_second_agent_is_turned_away(cloud: Cloud, device: Device) -> None:
    await device.start()
    await cloud.until(lambda r: True)
    assert device.process is not None
    again = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "marram", "edge", "run", "--folder", str(device.folder.path),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    _, words = await asyncio.wait_for(again.communicate(), LONG_S)
    assert again.returncode == 2
    assert f"process {device.process.pid}" in words.decode() and "--folder" in words.decode()
    assert "Traceback" not in words.decode()


async def test_a_broken_version_goes_back(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    quick = tmp_path / "quick"
    quick.mkdir()
    # Read by the agent at its start: the pauses of a crash loop, which virtual time shows in full, are most of it.
    (quick / "sitecustomize.py").write_text(
        "import sys\nif 'marram.edge' in sys.orig_argv:\n"
        "    from marram.edge import keeper\n    keeper.TRIAL_PAUSE_S = 0.05\n"
    )
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start(PYTHONPATH=str(quick))
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    broken = [
        ({**ticking(), "app.yaml": b"app: ["}, "not YAML"),
        ({**calling("pass"), "handler.py": b"def handle(event, context):\n    return (\n"}, "handler.py"),
        (calling("os._exit(3)"), "failed 5 times in a row; last: exit status 3"),
    ]
    for version, (files, reason) in enumerate(broken, 2):
        await cloud.want(cloud.app("ticking", version, files))
        reported = await cloud.until_state("ticking", AppState.ROLLED_BACK, version)
        assert reason in reported.reason and "Traceback" not in reported.reason
        await until_workers(device, 1)
        await cloud.until_stored(10)
    # Not tried again by itself, not even by a new agent.
    starts = device.words().count(f"version {version} started")
    await device.stop()
    await device.start()
    reported = await cloud.until_state("ticking", AppState.ROLLED_BACK, version)
    assert reason in reported.reason
    await cloud.until_stored(10)
    assert device.words().count(f"version {version} started") == starts > 0
    # Another version is.
    await cloud.want(cloud.app("ticking", version + 1, ticking(every="10 ms")))
    await cloud.until_state("ticking", AppState.COMMITTED, version + 1)
    await device.stop()
    nothing_lost_or_twice(cloud, device)


async def test_a_model_that_does_not_load_never_stops_what_runs(cloud: Cloud, device: Device) -> None:
    card = (
        "model: net\nversion: 1\ntask: classification\ninput: {size: [8, 8]}\noutput: {form: softmax}\n"
        "variants: [{name: only, engine: litert, file: net.tflite}]\nlicence: x\nsource: x\nlabels: [a, b]\n"
    )
    manifest = cloud.manifest({"model.yaml": card.encode(), "net.tflite": b"TFL3 but no model"})
    app = b"app: ticking\nsource: {images: .}\nsteps:\n  - classify: net\n"
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    workers = device.workers()
    broken = cloud.app("ticking", 2, {"app.yaml": app}, models=[{"name": "net", "version": 1, "manifest": manifest}])
    await cloud.want(broken)
    reported = await cloud.until_state("ticking", AppState.ROLLED_BACK, 2)
    assert "net@1/net.tflite" in reported.reason and "bundles/" not in reported.reason
    assert device.workers() == workers


async def test_a_flipped_byte_on_the_way_is_refused_and_what_runs_runs_on(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    workers = device.workers()

    def flip(ask: BlobAsk, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:]

    cloud.spoil = flip
    await cloud.want(cloud.app("ticking", 2, ticking(every="10 ms")))
    report = await cloud.until(lambda r: any(a.version == 2 and a.reason for a in r.apps))
    # Whoever did that may go away: the version itself is none the worse for it.
    assert report.apps[0].state is AppState.PENDING and report.apps[0].reason.startswith("tampered: ")
    assert "sha256 differs" in report.apps[0].reason
    assert device.workers() == workers
    assert "version 2 started" not in device.words()


async def test_a_version_superseded_while_it_is_fetched(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    workers = device.workers()
    lost = cloud.app("ticking", 2, ticking(every="10 ms"))
    for file in lost.files.files:
        if file.path == "app.yaml":
            del cloud.blobs[file.sha256]
    await cloud.want(lost)
    report = await cloud.until(lambda r: any(a.state is AppState.PENDING and a.reason for a in r.apps))
    assert "no such file" in report.apps[0].reason
    assert device.workers() == workers
    await cloud.want(cloud.app("ticking", 3, ticking(every="11 ms")))
    await cloud.until_state("ticking", AppState.COMMITTED, 3)
    await gone(workers)


@pytest.mark.parametrize("how", ["truncated", "garbled", "emptied"])
async def test_whatever_file_of_the_folder_is_damaged_it_recovers(cloud: Cloud, device: Device, how: str) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    await device.stop()
    chance = random.Random(how)
    damaged = 0
    # Who it is and whom it trusts, it was told once: without that it has to join again.
    identity = device.folder.identity.own.parent
    told = {device.folder.path / "credentials.yaml", *identity.iterdir()}
    for file in sorted(p for p in device.folder.path.rglob("*") if p.is_file() and p not in told):
        content = file.read_bytes()
        if how == "truncated":
            content = content[: len(content) // 2]
        elif how == "garbled":
            content = bytes(byte ^ chance.choice((0, 1, 255)) for byte in content)
        else:
            content = b""
        file.chmod(0o600)
        file.write_bytes(content)
        damaged += 1
    assert damaged >= 6
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    await cloud.until_stored(10)
    assert await device.stop() == 0
    assert "Traceback" not in device.words()


async def test_damaged_credentials_end_with_a_message(cloud: Cloud, device: Device) -> None:
    (device.folder.path / "credentials.yaml").write_text("device: pi-1\nsecret: hidden-0123456789\n")
    await device.start()
    assert device.process is not None
    assert await asyncio.wait_for(device.process.wait(), LONG_S) == 2
    assert "join again" in device.words()
    assert "Traceback" not in device.words() and "hidden" not in device.words()


async def test_a_bug_of_ours_shows_no_traceback(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    # The interpreter imports it at its start: the agent's life ends in an exception that nobody expects.
    (spoilt / "sitecustomize.py").write_text(
        "from marram.edge import agent\n\nasync def run(self):\n    return {}['a bug']\n\nagent.Agent.run = run\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "marram", "edge", "run", "--folder", str(device.folder.path)),
        env={**os.environ, "PYTHONPATH": str(spoilt)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    words, _ = await asyncio.wait_for(process.communicate(), LONG_S)
    assert process.returncode == 70
    line = words.decode()
    kept = device.folder.path / "fault.log"
    assert line.count("\n") == 1 and "Traceback" not in line and "KeyError: 'a bug'" in line and str(kept) in line
    assert "Traceback" in kept.read_text()


async def test_a_full_disk_is_waited_for(cloud: Cloud, device_disk: Path) -> None:
    device = Device(device_disk / "device", cloud)
    filler = device_disk / "filler"
    try:
        filler.write_bytes(bytes(14_000_000))
        await cloud.want(cloud.app("ticking", 1, {**ticking(), "model": os.urandom(5_000_000)}))
        await device.start()
        report = await cloud.until(lambda r: any("too full" in a.reason for a in r.apps))
        assert report.apps[0].state is AppState.PENDING
        filler.unlink()
        await cloud.until_state("ticking", AppState.COMMITTED)
        workers = device.workers()
        fill(filler)
        # Full to the last byte while it runs: nothing of it stops.
        report = await cloud.until(lambda r: "frames" in r.apps[0].stats)
        frames = report.apps[0].stats["frames"]
        await cloud.until(lambda r: r.apps[0].stats["frames"] > frames + 50)
        assert device.workers() == workers
        filler.unlink()
        await cloud.until_stored(20)
        await device.stop()
        # Full when it starts: it waits instead of ending, which would only have it started again and again.
        for leftover in device.folder.outbox.parent.glob("outbox.db-*"):
            leftover.unlink()
        fill(filler)
        await device.start()
        async with asyncio.timeout(LONG_S):
            while "waits for the disk" not in device.words():
                await asyncio.sleep(0.05)
        filler.unlink()
        await cloud.until_stored(20)
        await device.stop()
        assert "Traceback" not in device.words()
    finally:
        if device.process is not None and device.process.returncode is None:
            await device.stop(signal.SIGKILL)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 16))


async def test_a_revoked_device_runs_on_and_says_so(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    workers = device.workers()
    await asyncio.to_thread(cloud.server.set_devices, [])
    async with asyncio.timeout(LONG_S):
        while "refused" not in device.words():
            await asyncio.sleep(0.05)
    assert device.workers() == workers
    assert await device.stop() == 0


async def test_the_agent_holds_no_engine(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    assert device.process is not None
    mapped = Path(f"/proc/{device.process.pid}/maps").read_text()
    for heavy in ("numpy", "onnxruntime", "litert", "torch", "cv2", "aiohttp"):
        assert heavy not in mapped
    assert DEVICE in device.words()


async def test_a_version_that_takes_the_whole_device_down_is_given_up(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    # A worker cannot reach its agent; a kernel that panics because of it can.
    await cloud.want(cloud.app("ticking", 2, ticking("health: {trial: 1 h}")))
    for deaths in range(5):
        async with asyncio.timeout(LONG_S):
            while device.words().count("version 2 started") == deaths:
                await asyncio.sleep(0.02)
        await device.stop(signal.SIGKILL)
        await device.start()
    reported = await cloud.until_state("ticking", AppState.ROLLED_BACK, 2)
    assert "failed 5 times in a row; last: the device went down" in reported.reason
    await cloud.until_stored(10)
    await device.stop()
    nothing_lost_or_twice(cloud, device)
