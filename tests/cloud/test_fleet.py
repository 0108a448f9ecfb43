"""The fleet role over a real broker: reports in, desired states out, and only the files that a device should have."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import BlobAsk, pack, pack_report, unpack_blob, unpack_desired
from marram.cloud.server import Cloud
from marram.schema.api import DeployAsk
from marram.schema.device import Desired, DeviceState, Reported
from marram.schema.errors import Invalid, MarramError, Missing, Refused
from marram.schema.model import File, Manifest

APP = "app: gate\nsource: {images: photos}\nsteps:\n  - filter: 'true'\nfiles: [table.bin]\n"


def deploy(cloud: Cloud, content: bytes, selector: dict[str, str]) -> None:
    body = cloud.state.objects.put(content)
    files = Manifest(files=[File(path="table.bin", sha256=body.sha256, size_bytes=body.size_bytes)])
    cloud.state.deploy(DeployAsk(app_yaml=APP, files=files, selector=selector))


async def report(bus: Bus, name: str, **said: Any) -> Desired | None:
    return unpack_desired(await bus.request(subjects.report(name), pack_report(Reported(**said)), 10))


async def test_a_report_is_kept_and_answered_with_what_is_wanted(cloud: Cloud, device: Any) -> None:
    bus = await device(cloud, "pi")
    assert await report(bus, "pi", outbox_depth=7) is None
    known = cloud.state.device("pi")
    assert known.state is DeviceState.ONLINE
    assert known.reported is not None and known.reported.outbox_depth == 7
    await asyncio.to_thread(deploy, cloud, b"rows", {})
    desired = await report(bus, "pi")
    assert desired is not None and [(app.name, app.version) for app in desired.apps] == [("gate", 1)]
    assert await report(bus, "pi", desired_version=desired.version) is None
    # A device that knows of a later state than the cloud (restored from a backup) is told as well.
    assert await report(bus, "pi", desired_version=desired.version + 5) == desired


async def test_a_change_nudges_those_it_concerns(cloud: Cloud, device: Any) -> None:
    heard: list[str] = []

    async def listen(bus: Bus, name: str) -> None:
        async def nudged(message: Message) -> None:
            heard.append(subjects.device_of(message.subject))

        await bus.subscribe(subjects.desired(name), nudged)
        await bus.request(subjects.report(name), pack_report(Reported()), 10)  # the subscription is in force

    await listen(await device(cloud, "a", site="x"), "a")
    await listen(await device(cloud, "b", site="y"), "b")
    await asyncio.to_thread(deploy, cloud, b"rows", {"site": "y"})
    async with asyncio.timeout(10):
        while not heard:
            await asyncio.sleep(0.01)
    assert heard == ["b"]


async def test_a_device_reads_the_files_it_should_run_in_ranges(cloud: Cloud, device: Any) -> None:
    bus = await device(cloud, "pi")
    content = bytes(range(256)) * 5000
    await asyncio.to_thread(deploy, cloud, content, {})
    digest = hashlib.sha256(content).hexdigest()
    got = b""
    while True:
        data, size = unpack_blob(await bus.request(subjects.blob("pi"), BlobAsk(digest, len(got), 500_000).pack(), 10))
        assert size == len(content)
        if not data:
            break
        got += data
    assert got == content


async def test_no_device_reads_anything_else(cloud: Cloud, device: Any) -> None:
    bus, other = await device(cloud, "pi", site="x"), await device(cloud, "po", site="y")
    await asyncio.to_thread(deploy, cloud, b"for x only", {"site": "x"})
    secret = cloud.state.objects.put(b"nobody's")
    ask = BlobAsk(hashlib.sha256(b"for x only").hexdigest(), 0, 100)
    assert unpack_blob(await bus.request(subjects.blob("pi"), ask.pack(), 10))[0] == b"for x only"
    for asker, name, wanted in ((other, "po", ask.sha256), (bus, "pi", secret.sha256), (bus, "pi", "../../etc/passwd")):
        with pytest.raises(Missing):
            await asker.request(subjects.blob(name), BlobAsk(wanted, 0, 100).pack(), 10)
    with pytest.raises(Refused):
        await other.request(subjects.blob("pi"), ask.pack(), 5)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        pack({}),
        pack({"digest": "a" * 64, "offset": -1, "length": 5}),
        pack({"digest": "a" * 64, "offset": 0, "length": 10**12}),
        pack({"digest": 5, "offset": 0, "length": 1}),
        pack({"digest": "a" * 64, "offset": True, "length": 1}),
    ],
)
async def test_nonsense_is_refused_and_the_role_lives_on(cloud: Cloud, device: Any, payload: bytes) -> None:
    bus = await device(cloud, "pi")
    with pytest.raises(Invalid):
        await bus.request(subjects.blob("pi"), payload, 10)
    if payload != pack({}):  # to a report, an empty mapping is a device with nothing to say
        with pytest.raises(Invalid):
            await bus.request(subjects.report("pi"), payload, 10)
    assert await report(bus, "pi") is None


async def test_a_removed_device_is_cut_off_at_once(cloud: Cloud, device: Any) -> None:
    bus = await device(cloud, "pi")
    stays = await device(cloud, "po")
    await asyncio.to_thread(cloud.state.remove_device, "pi")
    with pytest.raises(MarramError):
        await report(bus, "pi")
    assert await report(stays, "po") is None
    with pytest.raises(Missing):
        cloud.state.device("pi")


async def test_what_a_crash_left_undone_is_repaired(
    cloud: Cloud, device: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A deployment row without its desired states (the process died between both) is made true by the next look."""
    bus = await device(cloud, "pi")
    await asyncio.to_thread(deploy, cloud, b"rows", {})
    cloud.state.store.states.desire("pi", [])
    assert await asyncio.to_thread(cloud.state.rollout.refresh) == ["pi"]
    desired = await report(bus, "pi")
    assert desired is not None and [app.name for app in desired.apps] == ["gate"]
