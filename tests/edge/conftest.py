"""Fixtures: a small cloud on a real broker, a device with a real agent process, a disk that can be full."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.edge.world import Cloud, Device


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    """A broker of its own, and the cloud's side of it."""
    made = Cloud(tmp_path / "cloud")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def device(tmp_path: Path, cloud: Cloud) -> AsyncIterator[Device]:
    """A joined device; the test starts its agent."""
    made = Device(tmp_path / "device", cloud)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop(signal.SIGKILL)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB that can really be full."""
    yield from disk(tmp_path, "1m")


@pytest.fixture
def device_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB: room for a device, a little more than it keeps free for its outbox."""
    yield from disk(tmp_path, "48m")


def disk(folder: Path, size: str) -> Iterator[Path]:
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
