"""`serve:` on a device: an app's own models answer other programs there, beside the app, in its sandbox."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from tests.edge.test_before import ROWS, bundle
from tests.edge.world import LONG_S, Cloud, gone
from tests.edge.world import Device as Agent

from marram.edge.served import Served, check_installed
from marram.runtime import probe
from marram.schema.app import Serve
from marram.schema.device import AppState, Reported
from marram.schema.errors import Invalid

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def serving() -> dict[int, int]:
    """The processes that serve for workers of this machine: process -> its worker."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if b"marram.edge.serving" in arguments:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return found


async def test_an_apps_models_answer_beside_it(cloud: Cloud, device: Agent) -> None:
    http, grpc = free_ports()
    app = (
        "app: ticking\nsource: {series: rows.csv, every: 20 ms, repeat: true}\n"
        f"serve: {{http: {http}, grpc: {grpc}}}\n"
        "steps: [{classify: net}]\nfiles: [rows.csv]\n"
    ).encode()
    net = {"name": "net", "version": 1, "manifest": cloud.manifest(bundle("a", "b", "c"))}
    await cloud.want(cloud.app("ticking", 1, {"app.yaml": app, "rows.csv": ROWS}, models=[net]))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    where = f"http://127.0.0.1:{http}/v2, grpc 127.0.0.1:{grpc}"

    def serves(reported: Reported) -> bool:
        return any(each.stats.get("serve") == where for each in reported.apps)

    before = next(each for each in (await cloud.until(serves)).apps).stats["frames"]
    for module, port in ((tritonclient.http, http), (tritonclient.grpc, grpc)):
        await ask(module, port)
    # It is killed: the pipeline never notices, and it comes back.
    (worker,) = device.workers()
    (pid,) = [each for each, parent in serving().items() if parent == worker]
    os.kill(pid, signal.SIGKILL)
    reported = await cloud.until(lambda r: any("SIGKILL" in str(each.stats.get("serve")) for each in r.apps))
    await cloud.until(serves)
    await ask(tritonclient.http, http)
    assert device.workers() == [worker]
    assert reported.apps[0].state is AppState.COMMITTED and reported.apps[0].stats["frames"] > before
    (pid,) = [each for each, parent in serving().items() if parent == worker]
    await device.stop()
    await gone([pid])


async def ask(module: Any, port: int) -> None:
    sent = module.InferInput("x", list(X.shape), "FP32")
    sent.set_data_from_numpy(X)
    async with module.aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = await client.infer("net", [sent])
        np.testing.assert_allclose(answer.as_numpy("y"), np.maximum(X @ probe.WEIGHTS.T + probe.BIAS, 0), rtol=1e-5)


async def test_a_port_in_use_is_told_and_tried_again(tmp_path: Path) -> None:
    for name, content in bundle("a", "b", "c").items():
        (tmp_path / name).write_bytes(content)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        served = Served(Serve(http=port), [(str(tmp_path), "quick")])
        try:
            await until(lambda: "cannot listen" in served.words)
            assert served.words.startswith(f"not now: cannot listen on 127.0.0.1:{port}")
            taken.close()
            await until(lambda: served.words == f"http://127.0.0.1:{port}/v2")
            await ask(tritonclient.http, port)
        finally:
            await asyncio.to_thread(served.close)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))  # nobody listens there any more


async def test_an_app_that_runs_without_a_device_serves_too(tmp_path: Path) -> None:
    port, _ = free_ports()
    (tmp_path / "net").mkdir()
    for name, content in bundle("a", "b", "c").items():
        (tmp_path / "net" / name).write_bytes(content)
    (tmp_path / "rows.csv").write_bytes(ROWS)
    (tmp_path / "app.yaml").write_text(
        "app: ticking\nsource: {series: rows.csv, every: 20 ms, repeat: true}\n"
        f"serve: {port}\nsteps: [{{classify: ./net}}]\nfiles: [rows.csv]\n"
    )
    arguments = ("-m", "marram", "run", str(tmp_path / "app.yaml"), "--quiet")
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(LONG_S):
            while f"serve: http://127.0.0.1:{port}/v2" not in (line := (await process.stderr.readline()).decode()):
                assert line, "it ended"
        await ask(tritonclient.http, port)
        (pid,) = [each for each, parent in serving().items() if parent == process.pid]
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), LONG_S) == 130
        await gone([pid])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.02)


def test_what_the_device_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    check_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("grpc") else real(name))
    with pytest.raises(Invalid, match=r"needs grpc, which this device does not have"):
        check_installed()
