"""A device's secrets on its disk: sealed, carried over a renewal, whole or absent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from marram.bus.codec import pack
from marram.edge.renewing import Renewing
from marram.edge.secrets import Secrets
from marram.edge.state import Folder
from marram.edge.trustee_inside import InsideTrustee
from marram.edge.vault import Vault
from marram.schema.api import RenewAsk, Renewed
from marram.schema.errors import Invalid, NotReady, Retryable, Threat, Untrusted
from marram.trust import identity, sealing
from marram.trust.authority import Authority
from marram.trust.keys import Keys

NOW_S = 1_700_000_000


class Site:
    """A cloud's authority, and a device's folder with an identity by it."""

    def __init__(self, folder: Path) -> None:
        keys = Keys(folder / "keys")
        keys.make()
        self.authority = Authority.create(keys, NOW_S)
        self.device = Folder(folder / "device")
        self.device.make()
        self.identity = self.made()
        self.device.identity.own.write_bytes(self.identity)
        self.asked: list[bytes] = []
        self.values: dict[str, tuple[int, str]] = {}
        self.away = False

    def made(self) -> bytes:
        key = identity.new_key()
        issued = self.authority.device_certificate(identity.request(key), "pi", NOW_S)
        return identity.accept(issued.pem, key, self.authority.certificate_pem)

    def sealed(self, **values: tuple[int, str]) -> bytes:
        return sealing.seal_for(identity.certificate_of(self.identity), "pi", pack(values))

    # What `Secrets` asks the cloud with.
    connected = True

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        if self.away:
            raise Retryable("away")
        self.asked.append(payload)
        return self.sealed(**self.values)

    def secrets(self) -> Secrets:
        folder = self.device
        return Secrets(folder.path, folder.identity.own, "pi", self, InsideTrustee(folder.path))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_only_the_devices_key_opens_what_it_took(site: Site) -> None:
    vault = Vault(site.device.path)
    vault.take(site.identity, "pi", site.sealed(A=(1, "hush"), B=(2, "more")))
    assert vault.read(site.identity, ["A", "C"]) == {"A": "hush"}
    (file,) = (site.device.path / "secrets").iterdir()
    assert b"hush" not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert vault.read(site.made(), ["A"]) == {}
    with pytest.raises(Untrusted) as fault:
        vault.take(site.made(), "pi", site.sealed(A=(9, "x")))
    assert fault.value.threat is Threat.NOT_YOURS
    assert vault.read(site.identity, ["A"]) == {"A": "hush"}
    # What an earlier key opened goes.
    (file.parent / "old.sealed").write_bytes(b"x")
    vault.take(site.identity, "pi", site.sealed(A=(2, "hush")))
    assert list(file.parent.iterdir()) == [file]
    with pytest.raises(Invalid, match="not secrets of ours"):
        vault.take(site.identity, "pi", sealing.seal_for(identity.certificate_of(site.identity), "pi", pack({"A": 1})))


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_renewal_loses_none_wherever_it_is_cut(site: Site, cut: str) -> None:
    vault, renewed = Vault(site.device.path), site.made()
    vault.take(site.identity, "pi", site.sealed(A=(1, "hush")))
    vault.carry(site.identity, renewed)
    # The power fails before the new key is the device's, or after.
    own = site.identity if cut == "before" else renewed
    assert vault.read(own, ["A"]) == {"A": "hush"}
    vault.tidy(own)
    assert len(list((site.device.path / "secrets").iterdir())) == 1
    assert vault.read(own, ["A"]) == {"A": "hush"}


def test_a_renewal_carries_them_before_the_new_key_is_the_devices(site: Site) -> None:
    """After it, a cut between the two would leave a key that opens nothing."""
    own, seen = site.device.identity, list[bytes]()
    own.authority.write_bytes(site.authority.certificate_pem)
    renewing = Renewing(own, lambda old, new: seen.append(own.own.read_bytes()))
    csr = RenewAsk.model_validate_json(renewing.request()).csr
    issued = site.authority.device_certificate(csr.encode(), "pi", NOW_S)
    renewing.accept(Renewed(certificate=issued.pem.decode()).model_dump_json().encode())
    assert seen == [site.identity] and own.own.read_bytes() != site.identity


def test_one_that_was_damaged_is_as_good_as_none(site: Site) -> None:
    vault = Vault(site.device.path)
    vault.take(site.identity, "pi", site.sealed(A=(1, "hush")))
    (file,) = (site.device.path / "secrets").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert vault.read(site.identity, ["A"]) == {}


async def test_the_agent_asks_once_for_what_changed(site: Site) -> None:
    secrets = site.secrets()
    with pytest.raises(NotReady, match=r"waits for the secret A\b.*marram secret set A"):
        await secrets.values(["A"])
    site.values = {"A": (5, "hush"), "B": (1, "b")}
    assert await secrets.told({"A": 5, "B": 1}) == {"A", "B"}
    assert await secrets.told({"A": 5, "B": 1}) == set()
    assert await secrets.values(["A"]) == {"A": "hush"}
    assert len(site.asked) == 1
    assert b"PRIVATE" not in site.asked[0]
    # The next agent knows.
    again = site.secrets()
    assert await again.told({"A": 5, "B": 1}) == set()
    assert "hush" not in (site.device.path / "secrets.json").read_text()
    site.values = {"A": (6, "new")}
    assert await again.told({"A": 6}) == {"A", "B"}
    assert await again.values(["A"]) == {"A": "new"}
    with pytest.raises(NotReady):
        await again.values(["B"])
    assert await again.values([]) == {}


async def test_a_cloud_that_is_away_costs_an_interval(site: Site) -> None:
    secrets = site.secrets()
    site.away = True
    assert await secrets.told({"A": 1}) == set()
    site.away, site.values = False, {"A": (1, "hush")}
    assert await secrets.told({"A": 1}) == {"A"}


async def test_what_is_gone_from_the_disk_is_asked_for_again(site: Site) -> None:
    secrets = site.secrets()
    site.values = {"A": (1, "hush")}
    await secrets.told({"A": 1})
    for file in (site.device.path / "secrets").iterdir():
        file.unlink()
    with pytest.raises(NotReady):
        await secrets.values(["A"])
    assert await secrets.told({"A": 1}) == {"A"}
    assert await secrets.values(["A"]) == {"A": "hush"}


async def test_what_the_vault_does_not_take_is_asked_for_again_over_a_restart(site: Site) -> None:
    """The list is written last: before the secrets themselves, a fault or a cut between the two would lose them."""
    site.values = {"A": (1, "hush")}
    own, site.identity = site.identity, site.made()  # sealed for another key
    assert await site.secrets().told({"A": 1}) == set()
    site.identity = own
    again = site.secrets()
    assert again.versions == {} and await again.told({"A": 1}) == {"A"}
    assert await again.values(["A"]) == {"A": "hush"}


async def test_an_identity_without_a_certificate_asks_for_nothing(site: Site) -> None:
    site.device.identity.own.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    assert await site.secrets().told({"A": 1}) == set()
    assert site.asked == []


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"A": "x"})])
async def test_a_damaged_list_is_fetched_anew(site: Site, text: str) -> None:
    await asyncio.to_thread((site.device.path / "secrets.json").write_text, text)
    assert site.secrets().versions == {}
