"""Three seals, each of which opens for nobody but whom it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from marram.schema.errors import Invalid, Missing, Permanent, Refused, Threat, Untrusted
from marram.trust import identity, pki, sealing
from marram.trust.authority import Authority
from marram.trust.keys import Keys

KEY, OTHER = bytes(32), bytes(31) + b"1"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    made = Keys(tmp_path_factory.mktemp("keys") / "keys")
    made.make()
    Authority.create(made, 1_700_000_000)
    return made


def device(keys: Keys, name: str = "pi") -> bytes:
    """An identity: key and certificate."""
    key = identity.new_key()
    issued = Authority.open(keys).device_certificate(identity.request(key), name, 1_700_000_000)
    return identity.accept(issued.pem, key, Authority.open(keys).certificate_pem)


def test_in_the_database_it_is_bound_to_name_and_version() -> None:
    sealed = sealing.seal(KEY, "TOKEN", 3, "hush")
    assert "hush" not in sealed
    assert sealing.seal(KEY, "TOKEN", 3, "hush") != sealed
    assert sealing.unseal(KEY, "TOKEN", 3, sealed) == "hush"
    for key, name, version, text in (
        (OTHER, "TOKEN", 3, sealed), (KEY, "OTHER", 3, sealed), (KEY, "TOKEN", 4, sealed),
        (KEY, "TOKEN", 3, sealed[:-4] + "AAA="), (KEY, "TOKEN", 3, "no base64"), (KEY, "TOKEN", 3, ""),
    ):  # fmt: skip
        with pytest.raises(Untrusted) as fault:
            sealing.unseal(key, name, version, text)
        assert fault.value.threat is Threat.TAMPERED
        assert "marram secret set" in str(fault.value)


def test_on_the_way_it_is_for_one_device(keys: Keys) -> None:
    own, others = device(keys), device(keys, "pj")
    sealed = sealing.seal_for(identity.certificate_of(own), "pi", b"hush")
    assert b"hush" not in sealed
    assert sealing.open_own(own, "pi", sealed) == b"hush"
    for pem, name, content in (
        (others, "pi", sealed), (own, "pj", sealed), (own, "pi", sealed[:-1] + b"x"), (own, "pi", b""),
        (own, "pi", sealed[:70]),
    ):  # fmt: skip
        with pytest.raises(Untrusted) as fault:
            sealing.open_own(pem, name, content)
        assert fault.value.threat is Threat.NOT_YOURS


def test_on_the_disk_it_opens_with_the_devices_key(keys: Keys) -> None:
    own, others = device(keys), device(keys)
    sealed = sealing.seal_at_rest(own, b"hush")
    assert b"hush" not in sealed
    assert sealing.open_at_rest(own, sealed) == b"hush"
    assert sealing.rest_id(own) != sealing.rest_id(others)
    for pem, content in ((others, sealed), (own, sealed[:-1] + b"x"), (own, b"")):
        with pytest.raises(Untrusted):
            sealing.open_at_rest(pem, content)


def test_a_new_certificate_for_the_same_key_opens_what_is_on_the_disk(keys: Keys) -> None:
    key, authority = identity.new_key(), Authority.open(keys)
    first, second = (
        identity.accept(
            authority.device_certificate(identity.request(key), "pi", now_s).pem, key, authority.certificate_pem
        )
        for now_s in (1_700_000_000, 1_800_000_000)
    )
    assert first != second and sealing.rest_id(first) == sealing.rest_id(second)
    assert sealing.open_at_rest(second, sealing.seal_at_rest(first, b"hush")) == b"hush"


def test_a_key_that_cannot_be_sealed_to_is_told(keys: Keys) -> None:
    key = pki.key_pem(ed25519.Ed25519PrivateKey.generate())
    issued = Authority.open(keys).device_certificate(identity.request(key), "pi", 1_700_000_000)
    with pytest.raises(Invalid, match="P-256 keys only"):
        sealing.seal_for(issued.pem, "pi", b"hush")
    with pytest.raises(Invalid, match="P-256 keys only"):
        sealing.open_own(key, "pi", b"sealed")


def test_the_clouds_seal_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    keys.make()
    with pytest.raises(Missing):
        sealing.read_seal_key(keys)
    sealing.make_seal_key(keys)
    first = sealing.read_seal_key(keys)
    sealing.make_seal_key(keys)
    assert sealing.read_seal_key(keys) == first
    assert len(first) == 32
    assert keys.seal_key.stat().st_mode & 0o777 == 0o600
    keys.seal_key.chmod(0o644)
    with pytest.raises(Refused):
        sealing.read_seal_key(keys)
    keys.seal_key.chmod(0o600)
    keys.seal_key.write_bytes(b"short")
    with pytest.raises(Permanent, match="5 bytes are no key"):
        sealing.read_seal_key(keys)


def test_what_is_no_certificate_is_told() -> None:
    with pytest.raises(Invalid):
        sealing.seal_for(b"nonsense", "pi", b"hush")
