"""`marram serve` as a person starts it: ready, asked, ended; and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from tests.cli.fleet import Terminal
from tests.serving.oip.scene import layer, write_bundle

from marram.runtime import library, probe
from marram.schema.device import DeviceInfo


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A bundle's folder."""
    entry = {"kind": "tensor", "size": [4]}
    return write_bundle(
        tmp_path / "bundle", "tiny", probe.tflite(), "model.tflite", input=entry, labels=["a", "b", "c"]
    )


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The process and what it said, by the first word of each line."""
    command = [sys.executable, "-m", "marram", "serve", *arguments, "--http", "0", "--grpc", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        said: dict[str, str] = {}
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            word, _, rest = line.strip().partition(" ")
            said[word] = rest.strip()
            if word == "Ctrl-C":
                break
        assert "Ctrl-C" in said, process.stderr.read()
        yield process, said
    finally:
        process.kill()
        process.wait()


def test_it_answers_and_ends(tiny: Path) -> None:
    library.add(tiny)
    row = np.array([1, 2, 3, 4], np.float32)
    with serving("tiny") as (process, said):
        assert said["serving"].split() == ["tiny@1", "litert"]
        body = {"content": row.tobytes(), "headers": {"Inference-Header-Content-Length": "0"}}
        url = said["try"].split()[-1]
        answer = httpx.post(url, **body).json()  # type: ignore[arg-type]
        np.testing.assert_allclose(answer["outputs"][0]["data"], layer(row[None])[0], rtol=1e-6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def test_for_other_machines_it_makes_a_token_and_outlives_its_engines(tiny: Path) -> None:
    with serving(str(tiny), "--host", "0.0.0.0") as (process, said):
        url = said["http"].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models/tiny").status_code == 401
        token = said["token"].split()[0]
        assert httpx.get(f"{url}/models/tiny", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert "reads all of it" in said["tls"]
        (engine,) = [each for each in psutil.Process(process.pid).children() if "engine" in " ".join(each.cmdline())]
        engine.kill()
        engine.wait(20)
        ask = {"Authorization": f"Bearer {token}", "Inference-Header-Content-Length": "0"}
        statuses: list[int] = []
        while not statuses or statuses[-1] != 200:
            row = np.array([1, 2, 3, 4], np.float32).tobytes()
            statuses.append(httpx.post(f"{url}/models/tiny/infer", content=row, headers=ask).status_code)
        assert set(statuses) <= {200, 503}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing"], 'no model "nothing"'),
        (["tiny", "--memory", "much"], "--memory"),
        (["tiny", "--certificate", "x.pem"], "belong together"),
        (["tiny", "--certificate", "x.pem", "--key", "y.pem"], "x.pem: cannot read it"),
    ],
)
def test_what_cannot_be_is_said(tiny: Path, arguments: list[str], why: str) -> None:
    library.add(tiny)
    command = [sys.executable, "-m", "marram", "serve", *arguments, "--http", "0", "--grpc", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_devices_that_cannot_serve_are_told_of_beforehand(
    marram_: Terminal, tmp_path: Path, bundle: Callable[..., Path]
) -> None:
    library.add(bundle("colours"))
    packages = {"grpcio": "1.70", "protobuf": "5.1", "starlette": "0.40", "uvicorn": "0.34"}
    for name, has in (("whole", packages), ("bare", {"numpy": "2.1"}), ("silent", {})):
        marram_.served.state.store.devices.add(name, {}, DeviceInfo(machine="aarch64", cores=4, packages=has))
    file, page = (
        tmp_path / "app.yaml",
        "app: gate\nsource: {images: photos, repeat: true}\nsteps: [{classify: colours}]\n",
    )
    file.write_text(page)
    assert "serve:" not in marram_("deploy", file, "--to", "all", "--no-wait")
    file.write_text(page + "serve: 8000\n")
    said = " ".join(marram_("deploy", file, "--to", "all", "--no-wait").split())
    assert "serve: 1 of 3 devices cannot run it for want of grpcio, protobuf, starlette, uvicorn." in said
    assert "pip install 'marram[serve]'" in said
