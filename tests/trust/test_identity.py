"""A device's identity: what it accepts as its certificate, how it proves its key, which cloud it joins."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from marram.edge.identity import IdentityFiles
from marram.schema.errors import Invalid, MarramError, Threat, Untrusted
from marram.trust import identity, pki
from marram.trust.authority import DEVICE_LIFE_S, Authority
from marram.trust.keys import Keys

NOW_S = 1_800_000_000.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(Keys(tmp_path / "keys"), NOW_S)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority.create(Keys(tmp_path / "other"), NOW_S)


def certified(authority: Authority, key: bytes, device: str = "pi") -> bytes:
    return authority.device_certificate(identity.request(key), device, NOW_S).pem


def test_an_answered_request_is_an_identity(authority: Authority, tmp_path: Path) -> None:
    key = identity.new_key()
    own = identity.accept(certified(authority, key), key, authority.certificate_pem, "pi")
    assert identity.device_of(own) == "pi" and identity.same_key(own, key)
    assert b"PRIVATE" not in identity.certificate_of(own)
    files = IdentityFiles(tmp_path / "identity")
    files.folder.mkdir()
    files.own.write_bytes(own)
    assert files.validity_s() == (NOW_S, NOW_S + DEVICE_LIFE_S)


@pytest.mark.parametrize("first", [b"", b"# valid\n", b"# valid a b\n", b"# valid 1 2 3\n", b"\xff\xfe\n", b"x" * 500])
def test_a_line_that_does_not_say_how_long_it_is_valid_says_nothing(first: bytes, tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    assert files.validity_s() is None
    files.own.write_bytes(first)
    assert files.validity_s() is None


def test_only_a_certificate_for_this_key_device_and_cloud_is_accepted(authority: Authority, other: Authority) -> None:
    key = identity.new_key()
    ca = authority.certificate_pem
    server = authority.server_certificate(["pi"], NOW_S)
    for certificate, for_key, threat in (
        (certified(other, key), key, Threat.OTHER_CLOUD),
        (certified(authority, identity.new_key()), key, Threat.WRONG_KEY),
        (certified(authority, key, "pi-2"), key, Threat.NOT_YOURS),
        (server, server, Threat.NOT_YOURS),
        (ca, key, Threat.NOT_YOURS),
    ):
        with pytest.raises(Untrusted) as caught:
            identity.accept(certificate, for_key, ca, "pi")
        assert caught.value.threat is threat
    with pytest.raises(Invalid):
        identity.accept(b"nonsense", key, ca, "pi")


def test_a_proof_is_by_one_key_for_one_request(authority: Authority) -> None:
    key = identity.new_key()
    own = identity.accept(certified(authority, key), key, authority.certificate_pem)
    csr = identity.request(identity.new_key())
    proof = identity.prove(own, csr)
    assert identity.proves(proof, own, csr)
    assert not identity.proves(proof, own, identity.request(identity.new_key()))
    assert not identity.proves(proof, certified(authority, identity.new_key()), csr)
    for wrong in ("", "é", "AAAA", proof[:-4], proof + "!"):
        assert not identity.proves(wrong, own, csr)
    # What the key signed for anything else is no proof of a renewal.
    elsewhere = base64.b64encode(pki.sign(pki.load_key(key), csr)).decode()
    assert not identity.proves(elsewhere, own, csr)


def test_the_cloud_of_a_token_is_known_by_its_authority(authority: Authority, other: Authority) -> None:
    assert identity.check_cloud(authority.certificate_pem, authority.fingerprint) == authority.certificate_pem
    for pem in (other.certificate_pem, b"", b"garbage", authority.certificate_pem[:-60]):
        with pytest.raises(Untrusted) as caught:
            identity.check_cloud(pem, authority.fingerprint)
        assert caught.value.threat is Threat.OTHER_CLOUD
    for almost in (authority.fingerprint[:-1], authority.fingerprint[:-1] + "_", authority.fingerprint + "A", ""):
        if almost != authority.fingerprint:
            with pytest.raises(Untrusted):
                identity.check_cloud(authority.certificate_pem, almost)


def test_what_follows_the_right_certificate_is_not_believed_with_it(authority: Authority, other: Authority) -> None:
    both = authority.certificate_pem + other.certificate_pem
    assert identity.check_cloud(both, authority.fingerprint) == authority.certificate_pem


def test_no_fault_repeats_a_key() -> None:
    key = identity.new_key()
    secret = key.splitlines()[1].decode()
    for damaged in (key[:-40], key.replace(b"PRIVATE", b"PUBLIC"), key[:30] + b"!" + key[31:]):
        with pytest.raises(MarramError) as caught:
            pki.load_key(damaged)
        assert secret[:20] not in str(caught.value) and caught.value.__cause__ is None


def test_a_request_may_be_made_with_either_kind_of_key() -> None:
    pem = pki.key_pem(ed25519.Ed25519PrivateKey.generate())
    assert pki.load_request(identity.request(pem, "pi"))
