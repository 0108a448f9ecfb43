"""Who gets which secret: the labels of the device, and what its apps declare, both."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from marram.bus.codec import unpack
from marram.cloud.safe import Safe
from marram.schema.device import DesiredApp, DeviceInfo
from marram.schema.errors import Missing, Threat, Untrusted
from marram.schema.model import Manifest
from marram.store import CertificateRow, Store, open_store
from marram.trust import identity, pki, sealing
from marram.trust.authority import Authority, Issued
from marram.trust.keys import Keys


class Site:
    def __init__(self, folder: Path, store: Store) -> None:
        self.store, self.folder = store, folder
        keys = Keys(folder / "keys")
        keys.make()
        sealing.make_seal_key(keys)
        self.authority = Authority.create(keys, time.time())
        self.safe = Safe(store, keys)

    def device(self, name: str, labels: dict[str, str], *declares: str) -> bytes:
        """A joined device that runs an app with these secrets; its identity."""
        self.store.devices.add(name, labels, DeviceInfo())
        self.store.states.desire(
            name, [DesiredApp(name="a", version=1, files=Manifest(files=[]), secrets=list(declares))]
        )
        return self.certified(name)

    def certified(self, name: str) -> bytes:
        key = identity.new_key()
        issued = self.authority.device_certificate(identity.request(key), name, time.time())
        self.store.certificates.add(row(issued))
        return identity.accept(issued.pem, key, self.authority.certificate_pem)

    def given(self, name: str, own: bytes) -> dict[str, str]:
        sealed = self.safe.sealed_for(name, identity.certificate_of(own))
        return {key: value for key, (_, value) in unpack(sealing.open_own(own, name, sealed)).items()}


def row(issued: Issued) -> CertificateRow:
    return CertificateRow(issued.serial, issued.device, issued.key_hash, issued.issued_s, issued.expires_s)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = open_store(tmp_path / "cloud.db")
    yield Site(tmp_path, store)
    store.close()


def test_labels_and_declaration_both(site: Site) -> None:
    site.safe.put("KEY", "hush", {"site": "a"})
    site.safe.put("ALL", "everybody", {})
    site.safe.put("UNUSED", "x", {})
    assert site.given("pi", site.device("pi", {"site": "a"}, "KEY", "ALL")) == {"KEY": "hush", "ALL": "everybody"}
    assert site.given("pj", site.device("pj", {"site": "b"}, "KEY", "ALL")) == {"ALL": "everybody"}
    assert site.given("pk", site.device("pk", {"site": "a"})) == {}


def test_a_change_has_another_version_also_after_a_removal(site: Site) -> None:
    site.device("pi", {}, "KEY")
    apps = site.store.states.desired("pi").apps
    seen = []
    for value in ("one", "two", "three"):
        site.safe.put("KEY", value, {})
        seen.append(site.safe.versions("pi", apps)["KEY"])
    assert seen == sorted(set(seen))
    site.safe.remove("KEY")
    assert site.safe.versions("pi", apps) == {}
    with pytest.raises(Missing, match="marram secret list"):
        site.safe.remove("KEY")


def test_a_name_that_comes_back_has_a_version_that_no_device_knows(site: Site) -> None:
    secrets = site.store.secrets
    first = secrets.set("KEY", {}, str, now_s=1_800_000_000.0)
    again = secrets.set("KEY", {}, str, now_s=1_800_000_000.5)
    assert again.version == first.version + 1
    secrets.remove("KEY")
    back = secrets.set("KEY", {}, str, now_s=1_800_000_010.0)
    assert back.version > again.version and back.sealed == str(back.version)


def test_a_device_that_is_not_there_gets_nothing(site: Site) -> None:
    site.safe.put("KEY", "hush", {})
    site.device("pi", {}, "KEY")
    apps = site.store.states.desired("pi").apps
    assert site.safe.versions("pi", apps) and site.safe.versions("pj", apps) == {}


def test_a_certificate_that_was_made_up_around_a_serial_number_opens_nothing(site: Site) -> None:
    site.safe.put("KEY", "hush", {})
    own = x509.load_pem_x509_certificate(identity.certificate_of(site.device("pi", {}, "KEY")))
    key = pki.new_key()
    forged = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(own.issuer)
        .public_key(key.public_key())
        .serial_number(own.serial_number)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(Untrusted) as fault:
        site.safe.sealed_for("pi", pki.pem_of(forged))
    assert fault.value.threat is Threat.WRONG_KEY


def test_only_with_the_devices_own_certificate(site: Site) -> None:
    site.safe.put("KEY", "hush", {})
    own, others = site.device("pi", {}, "KEY"), site.device("pj", {}, "KEY")
    with pytest.raises(Untrusted) as fault:
        site.safe.sealed_for("pi", identity.certificate_of(others))
    assert fault.value.threat is Threat.NOT_YOURS
    foreign = Keys(site.folder / "foreign")
    foreign.make()
    key = identity.new_key()
    issued = Authority.create(foreign, time.time()).device_certificate(identity.request(key), "pi", time.time())
    with pytest.raises(Untrusted) as fault:
        site.safe.sealed_for("pi", issued.pem)
    assert fault.value.threat is Threat.OTHER_CLOUD
    site.store.devices.revoke("pi")
    with pytest.raises(Untrusted) as fault:
        site.safe.sealed_for("pi", identity.certificate_of(own))
    assert fault.value.threat is Threat.REVOKED


def test_the_database_does_not_hold_it_and_does_not_forge_it(site: Site) -> None:
    site.safe.put("KEY", "hush-hush-hush", {})
    site.safe.put("OTHER", "worth less", {})
    own = site.device("pi", {}, "KEY")
    database = site.folder / "cloud.db"
    assert not any(b"hush-hush" in file.read_bytes() for file in site.folder.glob("cloud.db*"))
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'OTHER') WHERE name = 'KEY'"
        )
    with pytest.raises(Untrusted) as fault:
        site.given("pi", own)
    assert fault.value.threat is Threat.TAMPERED
