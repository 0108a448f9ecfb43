"""Who a real cloud lets onto its broker, and whom it cuts: revoked, superseded, copied; over restarts, by any role."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.conftest import QUICK

from marram.bus import subjects
from marram.bus.accounts import Accounts, ServerFiles
from marram.bus.callout import Caller
from marram.bus.client import Bus
from marram.bus.server import EmbeddedServer, find_server
from marram.bus.tls import TlsFiles
from marram.cli import execute as run_command
from marram.cloud import eviction
from marram.cloud.admission import Admission, Refusals
from marram.cloud.provision import provision
from marram.cloud.server import Cloud
from marram.cloud.settings import Role, Settings
from marram.schema.api import RenewAsk
from marram.schema.errors import Retryable, Threat, Untrusted
from marram.store import CertificateRow
from marram.trust import identity
from marram.trust.authority import Authority
from marram.trust.keys import Keys


def refusals(cloud: Cloud) -> dict[Threat | None, int]:
    assert cloud.gate is not None and cloud.gate.admission is not None
    return cloud.gate.admission.refusals.counts


def renew(cloud: Cloud, files: TlsFiles, kept: Path) -> TlsFiles:
    """What a device does to renew; the new identity in `kept`."""
    present, key = files.identity.read_bytes(), identity.new_key()
    csr = identity.request(key)
    certificate = identity.certificate_of(present).decode()
    ask = RenewAsk(certificate=certificate, csr=csr.decode(), proof=identity.prove(present, csr))
    kept.write_bytes(key + cloud.state.renew(ask).certificate.encode())
    return TlsFiles(kept, files.authority)


async def test_a_removed_device_stays_out_over_every_restart(tmp_path: Path, device: Any, until: Any) -> None:
    settings = Settings(folder=tmp_path / "cloud", port=0)
    async with Cloud(settings).running() as cloud:
        bus, other = await device(cloud, "pi"), await device(cloud, "other")
        await asyncio.to_thread(cloud.state.remove_device, "pi")
        assert not bus.connected or bus.reconnects == 0
        await until(lambda: not bus.connected)
        await until(lambda: refusals(cloud)[Threat.REVOKED])
        assert cloud.gate is not None and cloud.gate._server is not None and cloud.gate._server.pid is not None
        os.kill(cloud.gate._server.pid, signal.SIGKILL)
        await until(lambda: other.reconnects and other.connected)
        before = refusals(cloud)[Threat.REVOKED]
        await until(lambda: refusals(cloud)[Threat.REVOKED] > before)
    async with Cloud(settings).running() as cloud:
        await until(lambda: other.connected)
        await until(lambda: refusals(cloud)[Threat.REVOKED])
        assert not bus.connected


async def test_the_first_use_of_a_renewed_certificate_ends_its_copies(
    cloud: Cloud, device: Any, tmp_path: Path, until: Any
) -> None:
    bus = await device(cloud, "pi")
    files = device.files["pi"]
    copied = TlsFiles(tmp_path / "copied.pem", files.authority)
    shutil.copy(files.identity, copied.identity)
    renewed = await asyncio.to_thread(renew, cloud, files, tmp_path / "renewed.pem")
    bus.reconnect()  # with the old one still: the new one was not used yet
    await until(lambda: bus.reconnects == 1 and bus.connected)
    async with await Bus.connect(cloud.state.hands.brokers, "pi", tls=renewed, timing=QUICK) as new:
        await new.wait_connected(10)
        await until(lambda: not bus.connected)  # its live connection is cut
        await until(lambda: bus.refused and refusals(cloud)[Threat.CLONED])
        async with await Bus.connect(cloud.state.hands.brokers, "pi", tls=copied, timing=QUICK) as thief:
            await until(lambda: thief.refused)
        assert new.connected and new.reconnects == 0


async def test_of_two_that_use_one_identity_the_first_stays_and_the_operator_hears_of_it(
    tmp_path: Path, device: Any, until: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(eviction, "PACE", eviction.Pace(look_s=0.5))
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as cloud:
        first = await device(cloud, "pi")
        async with (
            talking(first),
            await Bus.connect(cloud.state.hands.brokers, "pi", tls=device.files["pi"], timing=QUICK) as copy,
            talking(copy),
        ):
            await until(lambda: refusals(cloud)[Threat.CLONED])
            assert not copy.connected and first.connected and first.reconnects == 0
        assert "cloned identity: two use it at once" in caplog.text
        assert "device.cloned" in {row.action for row in await asyncio.to_thread(cloud.state.store.audit.list)}


async def test_a_device_that_comes_back_is_no_double_of_itself(
    tmp_path: Path, device: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "PACE", eviction.Pace(look_s=0.2))
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as cloud:
        silent = await device(cloud, "pi")  # of a device whose power was cut: there, but nothing comes of it
        async with (
            await Bus.connect(cloud.state.hands.brokers, "pi", tls=device.files["pi"], timing=QUICK) as back,
            talking(back),
        ):
            await until(lambda: silent.reconnects)
            assert back.connected and back.reconnects == 0 and refusals(cloud)[Threat.CLONED] == 0


async def test_what_a_role_elsewhere_revoked_is_cut_without_being_told(
    tmp_path: Path, device: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "PACE", eviction.Pace(sweep_s=0.3))
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as cloud:
        bus, revoked = await device(cloud, "pi"), await device(cloud, "revoked")
        await asyncio.to_thread(cloud.state.store.devices.remove, "pi")
        await asyncio.to_thread(cloud.state.store.devices.revoke, "revoked")
        await until(lambda: not bus.connected and not revoked.connected)
        await until(lambda: refusals(cloud)[Threat.REVOKED] >= 2)


async def test_fleet_roles_alone_share_the_gate_and_one_may_go(tmp_path: Path, device: Any, until: Any) -> None:
    keys = Keys(tmp_path / "keys")
    provision(keys, time.time())
    files = ServerFiles(tmp_path / "server.pem", keys.ca_certificate)
    keys.write(files.identity, Authority.open(keys).server_certificate(["127.0.0.1"], time.time()))
    with EmbeddedServer(tmp_path / "broker", Accounts(keys.read(keys.callout_seed)), files) as broker:

        def alone(name: str, role: Role) -> Cloud:
            return Cloud(
                Settings(
                    folder=tmp_path / name,
                    port=0,
                    nats=f"tls://127.0.0.1:{broker.port}",
                    keys=keys.folder,
                    roles=frozenset({role}),
                    database=f"sqlite:///{tmp_path / 'shared.db'}",
                )
            )

        async with alone("api", Role.API).running() as api, alone("two", Role.FLEET).running():
            async with alone("one", Role.FLEET).running():
                inside = [await device(api, f"early-{number}") for number in range(8)]
            # One is gone: those inside stay, others are let in, and revoking still cuts.
            later = [await device(api, f"late-{number}") for number in range(8)]
            assert all(bus.connected and bus.reconnects == 0 for bus in inside + later)
            await asyncio.to_thread(api.state.remove_device, "early-0")
            await until(lambda: not inside[0].connected)
            assert all(bus.connected for bus in inside[1:])


# ----------------------------------------------------------------


async def decide(cloud: Cloud, certificate: bytes, user: str) -> None:
    await Admission(cloud.state.store, cloud.state.authority).admit(
        Caller((certificate.decode(),), user, "process", "10.0.0.1", "SERVER", 1)
    )


async def test_each_refusal_has_its_name(cloud: Cloud, device: Any) -> None:
    await device(cloud, "pi")
    authority, store, now_s = cloud.state.authority, cloud.state.store, time.time()
    good = identity.certificate_of(device.files["pi"].identity.read_bytes())
    never = authority.device_certificate(identity.request(identity.new_key()), "pi", now_s)
    other = authority.device_certificate(identity.request(identity.new_key()), "pi", now_s)
    store.certificates.add(CertificateRow(other.serial, "elsewhere", other.key_hash, now_s, now_s + 1000))
    over = authority.device_certificate(identity.request(identity.new_key()), "over", now_s)
    store.certificates.add(CertificateRow(over.serial, "over", over.key_hash, now_s - 1000, now_s - 500))
    gone = authority.device_certificate(identity.request(identity.new_key()), "gone", now_s)
    store.certificates.add(CertificateRow(gone.serial, "gone", gone.key_hash, now_s, now_s + 1000))
    service = identity.certificate_of(authority.service_certificate("cloud", now_s))
    server = identity.certificate_of(authority.server_certificate(["pi"], now_s))
    for certificate, user, threat in (
        (good, "other", Threat.NOT_YOURS),
        (good, "", Threat.NOT_YOURS),
        (never.pem, "pi", Threat.OTHER_CLOUD),
        (other.pem, "pi", Threat.NOT_YOURS),
        (over.pem, "over", Threat.EXPIRED),
        (gone.pem, "gone", Threat.REVOKED),
        (service, "svc:cloud", Threat.NOT_YOURS),
        (server, "pi", Threat.NOT_YOURS),
    ):
        with pytest.raises(Untrusted) as refused:
            await decide(cloud, certificate, user)
        assert refused.value.threat is threat, user
    await decide(cloud, good, "pi")


def test_a_flood_of_refusals_is_counted_and_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "marram.cloud.admission")
    told = Refusals()
    for number in range(5000):
        caller = Caller((), f"made-up-{number}", "", f"10.0.{number % 40}.1", "S", number)
        told.refused(caller, Untrusted("nobody", threat=Threat.OTHER_CLOUD))
        told.refused(caller, Untrusted("nobody", where=f"pi-{number}", threat=Threat.CLONED))
    assert told.counts == {Threat.OTHER_CLOUD: 5000, Threat.CLONED: 5000}
    assert 1 <= len(caplog.records) <= 30 and len(told._told) <= 1001


async def test_while_the_store_is_away_nobody_is_refused(cloud: Cloud, device: Any, monkeypatch: Any) -> None:
    await device(cloud, "pi")
    good = identity.certificate_of(device.files["pi"].identity.read_bytes())

    def away(*_: object) -> None:
        raise Retryable("the database does not answer")

    admission = Admission(cloud.state.store, cloud.state.authority)
    monkeypatch.setattr(type(cloud.state.store.certificates), "use", away)
    with pytest.raises(Retryable):
        await admission.admit(Caller((good.decode(),), "pi", "process", "10.0.0.1", "SERVER", 1))
    assert not admission.refusals.counts


@contextlib.asynccontextmanager
async def talking(bus: Bus) -> AsyncIterator[None]:
    """A device that reports all the time, as one does."""

    async def talk() -> None:
        while True:
            with contextlib.suppress(Exception):
                await bus.publish(subjects.report("pi"), b"")
            await asyncio.sleep(0.02)

    task = asyncio.create_task(talk())
    try:
        yield
    finally:
        task.cancel()


async def test_a_broker_of_ones_own_is_configured_by_a_command(
    tmp_path: Path, device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out, keys = tmp_path / "broker", tmp_path / "keys"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert await asyncio.to_thread(run_command, ["cloud", "init", "--keys", str(keys)]) == 0
    asked = ["cloud", "broker-config", str(out), "--name", "127.0.0.1", "--port", str(port), "--keys", str(keys)]
    assert await asyncio.to_thread(run_command, asked) == 0
    words = capsys.readouterr().out
    assert f"--nats tls://127.0.0.1:{port} --keys {keys}" in words
    assert all(file.stat().st_mode & 0o077 == 0 for file in out.iterdir())
    server = await asyncio.create_subprocess_exec(find_server(), "-c", "nats.json", cwd=out, stderr=DEVNULL)
    try:
        settings = Settings(folder=tmp_path / "cloud", port=0, nats=f"tls://127.0.0.1:{port}", keys=keys)
        async with Cloud(settings).running() as cloud:
            bus = await device(cloud, "pi")
            assert bus.connected
            await bus.close()
    finally:
        server.kill()
        await server.wait()
