"""A device renews with a real cloud: over the bus, over HTTPS past its end, and against a copy of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from marram.bus.client import Bus, Timing
from marram.bus.tls import TlsFiles
from marram.cloud.server import Cloud
from marram.edge.agent import Agent, Around
from marram.edge.join import join
from marram.edge.renewal import Pace, Renewal
from marram.edge.state import Credentials, Folder
from marram.edge.trustee_inside import InsideTrustee
from marram.schema.api import TokenAsk
from marram.schema.device import DeviceState
from marram.schema.errors import Threat, Untrusted
from marram.store import CertificateRow
from marram.trust import identity
from marram.trust.authority import DAY_S

Until = Callable[..., object]
QUICK = Timing(connect_s=2.0, ping_s=0.1, dead_after_s=1.0, retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.2)


class Device:
    """One that has joined, without the rest of an agent. `days` is what its clock is ahead."""

    def __init__(self, folder: Folder, credentials: Credentials) -> None:
        self.folder, self.credentials = folder, credentials
        self.days = 0.0
        self.bus: Bus

    async def connect(self) -> None:
        identity = self.folder.identity
        self.bus = await Bus.connect(
            self.credentials.brokers,
            self.credentials.device,
            tls=TlsFiles(identity.own, identity.authority),
            timing=QUICK,
        )

    def renewal(self) -> Renewal:
        return Renewal(
            self.folder.identity,
            InsideTrustee(self.folder.path),
            self.bus,
            self.credentials.device,
            self.credentials.cloud,
            now_s=lambda: time.time() + self.days * DAY_S,
        )

    def copy(self, path: Path) -> Device:
        """Somebody has a copy of its disk."""
        made = Device(Folder(path), self.credentials)
        made.folder.make()
        for file in self.folder.identity.folder.iterdir():
            (made.folder.identity.folder / file.name).write_bytes(file.read_bytes())
        return made


@pytest.fixture
async def pi(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Device]:
    def enrol() -> Device:
        token = cloud.state.create_token(TokenAsk()).token
        folder = Folder(tmp_path / "pi")
        return Device(folder, join(folder, cloud.tls_url, token, name="pi"))

    made = await asyncio.to_thread(enrol)
    await made.connect()
    await made.bus.wait_connected(10)
    yield made
    await made.bus.close()


async def test_over_the_bus_and_the_new_one_is_used_at_once(cloud: Cloud, pi: Device, until: Until) -> None:
    [first] = cloud.state.store.certificates.of("pi")
    pi.days = 22
    assert await pi.renewal().step() == Pace().least_s
    [newest] = [row for row in cloud.state.store.certificates.of("pi") if row.serial != first.serial]
    await until(lambda: cloud.state.store.certificates.get(newest.serial).used_s)  # type: ignore[union-attr]
    await pi.bus.wait_connected(10)
    old = cloud.state.store.certificates.get(first.serial)
    assert old is not None and old.superseded_s is not None


async def test_a_copy_of_the_old_identity_is_refused_by_name(
    cloud: Cloud, pi: Device, tmp_path: Path, until: Until
) -> None:
    clone = pi.copy(tmp_path / "clone")
    pi.days = 22
    await pi.renewal().step()
    await until(lambda: len([row for row in cloud.state.store.certificates.of("pi") if row.superseded_s]) == 1)
    await clone.connect()
    try:
        await until(lambda: clone.bus.refused)
        assert cloud.gate is not None and cloud.gate.admission is not None
        assert cloud.gate.admission.refusals.counts[Threat.CLONED] >= 1
        # Nor does it renew, past its end or not.
        with pytest.raises(Untrusted) as caught:
            await InsideTrustee(clone.folder.path).renew_at(cloud.tls_url)
        assert caught.value.threat is Threat.CLONED
    finally:
        await clone.bus.close()


async def test_past_its_end_it_comes_back_over_https(cloud: Cloud, pi: Device, until: Until) -> None:
    """The broker lets it in no more; and its clock, which starts in 1999, knows nothing of that."""
    await pi.bus.close()
    files, store = pi.folder.identity, cloud.state.store
    key, then_s = identity.new_key(), time.time() - 40 * DAY_S
    old = cloud.state.authority.device_certificate(identity.request(key), "pi", then_s)
    store.certificates.add(CertificateRow(old.serial, "pi", old.key_hash, old.issued_s, old.expires_s))
    store.certificates.use(old.serial, then_s)
    files.own.write_bytes(identity.accept(old.pem, key, files.authority.read_bytes()))
    await pi.connect()
    await until(lambda: Threat.EXPIRED.value in (pi.bus.refused or ""))
    pi.days = -10_000
    assert await pi.renewal().step() == Pace().least_s
    await pi.bus.wait_connected(30)
    assert store.certificates.get(old.serial).superseded_s is not None  # type: ignore[union-attr]


async def test_at_a_revoked_device_one_reads_why_and_what_to_do(cloud: Cloud, pi: Device, until: Until) -> None:
    await pi.bus.close()
    agent = Agent(pi.folder, pi.credentials, around=Around(trustee=InsideTrustee))
    running = asyncio.create_task(agent.run())
    await until(lambda: cloud.state.store.devices.get("pi").state is DeviceState.ONLINE)
    await asyncio.to_thread(cloud.state.remove_device, "pi")
    await until(lambda: "revoked identity" in str(agent.status()["link"]))
    assert "marram token create" in str(agent.status()["link"])
    agent.stop()
    await running


async def test_a_revoked_device_renews_nowhere(cloud: Cloud, pi: Device) -> None:
    await asyncio.to_thread(cloud.state.store.devices.revoke, "pi")
    with pytest.raises(Untrusted) as caught:
        await InsideTrustee(pi.folder.path).renew_at(cloud.tls_url)
    assert caught.value.threat is Threat.REVOKED
