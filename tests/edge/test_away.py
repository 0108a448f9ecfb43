from __future__ import annotations

import asyncio
import socket

import pytest
from tests.edge.world import LONG_S, Cloud, Device, ticking

from marram.bus.uplink import UplinkStatus
from marram.cli import execute
from marram.edge.away import away
from marram.schema.device import AppState


@pytest.mark.parametrize(
    ("running", "waiting", "words"),
    [
        (1, 1204, "The app runs; 1,204 events wait in the outbox (3 MB of 500 MB)."),
        (3, 1, "All 3 apps run; 1 event waits in the outbox (3 MB of 500 MB)."),
        (1, 0, "The app runs; nothing waits in the outbox."),
        (0, 2, "2 events wait in the outbox (3 MB of 500 MB)."),
        (0, 0, "Nothing waits in the outbox."),
    ],
)
def test_the_words(running: int, waiting: int, words: str) -> None:
    status = UplinkStatus(waiting, 3_000_000, 0, 0, {}, None)
    said = away("nats://cloud.local:8443", "connection refused", running, status, 500_000_000)
    assert said == f"cloud.local:8443 does not answer (connection refused). {words}"


async def test_log_and_status_say_what_waits_while_the_cloud_is_away(
    cloud: Cloud, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    address = cloud.server.url.removeprefix("nats://")
    await asyncio.to_thread(cloud.server.stop)
    told = f"{address} does not answer (connection refused). The app runs; "
    async with asyncio.timeout(LONG_S):
        while told not in device.words():
            await asyncio.sleep(0.05)
    arguments = ["edge", "status", "--folder", str(device.folder.path)]
    async with asyncio.timeout(LONG_S):
        while True:
            assert await asyncio.to_thread(execute, arguments) == 0
            said = " ".join(capsys.readouterr().out.split())
            if told in said and "events wait in the outbox (" in said and " of 500 MB)" in said:
                break
            await asyncio.sleep(0.1)
    assert device.words().count("does not answer") == 1  # said once, not at each try
    await device.stop()


async def test_a_closed_port_and_an_unknown_name_are_told_apart(cloud: Cloud, device: Device) -> None:
    credentials = device.folder.credentials()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        port = closed.getsockname()[1]
        for broker, why in (
            (f"nats://127.0.0.1:{port}", "connection refused"),
            ("nats://broker.invalid:4222", "no such host is known here"),
        ):
            device.folder.save_credentials(credentials.model_copy(update={"brokers": [broker]}))
            await device.start()
            async with asyncio.timeout(LONG_S):
                while f"{broker.removeprefix('nats://')} does not answer ({why})" not in device.words():
                    await asyncio.sleep(0.05)
            await device.stop()
