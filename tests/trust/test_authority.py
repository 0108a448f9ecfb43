"""The cloud's authority: what it puts into a certificate, what it refuses to, and what a device's is good for."""

from __future__ import annotations

import datetime as dt
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marram.schema.errors import Invalid, MarramError, Missing, Permanent, Refused, Threat, Untrusted
from marram.trust import identity, pki
from marram.trust.authority import DEVICE_LIFE_S, SERVER_LIFE_S, Authority, check_usage
from marram.trust.keys import Keys

NOW_S = 1_800_000_000.0
PEM = serialization.Encoding.PEM


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def authority(keys: Keys) -> Authority:
    return Authority.create(keys, NOW_S)


def request_of(key: object, name: str = "pi") -> bytes:
    """A signing request for any kind of key, as a stranger may make it."""
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm).public_bytes(PEM)  # type: ignore[arg-type]


def test_its_key_is_for_its_owner_alone_and_made_once(keys: Keys, authority: Authority) -> None:
    assert keys.folder.stat().st_mode & 0o777 == 0o700
    assert keys.ca_key.stat().st_mode & 0o777 == 0o600
    again = Authority.create(keys, NOW_S + 1)
    assert again.fingerprint == authority.fingerprint and len(authority.fingerprint) == 43


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o601])
def test_keys_that_others_may_read_are_refused(keys: Keys, authority: Authority, mode: int) -> None:
    keys.ca_key.chmod(mode)
    with pytest.raises(Refused, match="others than its owner"):
        Authority.open(keys)


@pytest.mark.parametrize("folder", ["", "signing", "offline"])
def test_a_folder_of_keys_that_others_may_enter_is_refused(keys: Keys, authority: Authority, folder: str) -> None:
    assert (keys.folder / folder).stat().st_mode & 0o777 == 0o700
    (keys.folder / folder).chmod(0o750)
    with pytest.raises(Refused, match="others than its owner"):
        Authority.create(keys, NOW_S)


def test_a_missing_or_mixed_up_key_is_said(keys: Keys, tmp_path: Path, authority: Authority) -> None:
    other = Keys(tmp_path / "other")
    Authority.create(other, NOW_S)
    keys.write(keys.ca_key, other.ca_key.read_bytes())
    with pytest.raises(Invalid, match="two authorities"):
        Authority.open(keys)
    keys.write(keys.ca_certificate, b"garbled")
    with pytest.raises(Invalid, match=rf"{keys.folder}: .*Restore ca.pem"):
        Authority.open(keys)
    keys.ca_key.unlink()
    with pytest.raises(Missing, match="marram cloud init"):
        Authority.open(keys)


def test_a_key_without_its_certificate_is_a_start_that_was_cut_off(keys: Keys, authority: Authority) -> None:
    keys.ca_certificate.unlink()
    assert Authority.create(keys, NOW_S).fingerprint != authority.fingerprint


def test_a_first_start_that_is_cut_off_leaves_no_authority_without_its_key(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = keys.write

    def once(file: Path, content: bytes) -> None:
        if written:
            raise Permanent("the power failed")
        written.append(file)
        write(file, content)

    monkeypatch.setattr(keys, "write", once)
    with pytest.raises(Permanent):
        Authority.create(keys, NOW_S)
    monkeypatch.undo()
    assert Authority.create(keys, NOW_S).certificate_pem == keys.ca_certificate.read_bytes()


def test_an_authority_signs_for_its_own_cloud_and_makes_no_other_authorities(authority: Authority) -> None:
    found = pki.load_certificate(authority.certificate_pem).extensions
    limits = found.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical and (limits.value.ca, limits.value.path_length) == (True, 0)
    assert found.get_extension_for_class(x509.KeyUsage).value.digital_signature is False


@pytest.mark.parametrize("make", [lambda: ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate])
def test_what_is_in_a_device_certificate_is_set_here(authority: Authority, make: Callable[[], object]) -> None:
    issued = authority.device_certificate(request_of(make(), "another-device"), "pi", NOW_S)
    found = x509.load_pem_x509_certificate(issued.pem)
    assert found.subject.rfc4514_string() == "CN=pi"
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH] and usage.critical
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert (issued.issued_s, issued.expires_s) == (NOW_S, NOW_S + DEVICE_LIFE_S)
    assert authority.presented(issued.pem) == issued


def test_nothing_else_of_a_request_is_taken_over(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "svc:control")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("cloud.local")]), critical=False)
    )
    issued = authority.device_certificate(builder.sign(key, hashes.SHA256()).public_bytes(PEM), "pi", NOW_S)
    found = x509.load_pem_x509_certificate(issued.pem)
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    with pytest.raises(x509.ExtensionNotFound):
        found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert authority.presented(issued.pem).device == "pi"


WEAK: dict[str, Callable[[], object]] = {
    "rsa-1024": lambda: rsa.generate_private_key(65537, 1024),
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "dsa": lambda: dsa.generate_private_key(1024),
    "p-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", sorted(WEAK))
def test_a_weak_or_strange_key_gets_no_certificate(authority: Authority, kind: str) -> None:
    with pytest.raises(Invalid, match="another kind than P-256 or Ed25519"):
        authority.device_certificate(request_of(WEAK[kind]()), "pi", NOW_S)


def test_a_request_that_its_key_did_not_sign_gets_none(authority: Authority) -> None:
    mine, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    der = x509.load_pem_x509_csr(request_of(mine)).public_bytes(serialization.Encoding.DER)
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    forged = der.replace(mine.public_key().public_bytes(*spki), theirs.public_key().public_bytes(*spki))
    assert forged != der
    pem = x509.load_der_x509_csr(forged).public_bytes(PEM)
    with pytest.raises(Untrusted, match="not signed by the key") as caught:
        authority.device_certificate(pem, "pi", NOW_S)
    assert caught.value.threat is Threat.WRONG_KEY


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.sampled_from(["noise", "cut", "changed", "long"]), st.floats(0, 1, exclude_max=True), st.binary(max_size=200))
def test_garbage_is_refused_in_our_own_words(authority: Authority, how: str, where: float, noise: bytes) -> None:
    good = request_of(ec.generate_private_key(ec.SECP256R1()))
    place = int(where * len(good))
    garbage = {
        "noise": noise,
        "cut": good[:place],
        "changed": good[:place] + bytes([good[place] ^ 0x15]) + good[place + 1 :],
        "long": good + b"x" * 20_000,
    }[how]
    try:
        issued = authority.device_certificate(garbage, "pi", NOW_S)
    except (Invalid, Untrusted):
        return
    # Text around the PEM, or its padding bits, may change without anything being another.
    assert issued.device == "pi" and pki.load_request(garbage)


def test_another_clouds_certificate_is_known_for_that(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(Keys(tmp_path / "other"), NOW_S)
    foreign = other.device_certificate(request_of(pki.new_key()), "pi", NOW_S)
    with pytest.raises(Untrusted) as caught:
        authority.presented(foreign.pem)
    assert caught.value.threat is Threat.OTHER_CLOUD


def test_a_certificate_that_names_our_authority_but_is_signed_by_another(authority: Authority) -> None:
    key, ca = pki.new_key(), pki.load_certificate(authority.certificate_pem)
    start = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(Untrusted) as caught:
        authority.presented(pki.pem_of(forged))
    assert caught.value.threat is Threat.OTHER_CLOUD


@pytest.mark.parametrize(
    ("usages", "ca"),
    [
        ([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH], False),
        ([ExtendedKeyUsageOID.CLIENT_AUTH], True),
    ],
)
def test_a_certificate_that_is_good_for_more_than_one_thing_is_for_nothing(
    usages: list[x509.ObjectIdentifier], ca: bool
) -> None:
    key = pki.new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi")])
    start = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(Untrusted) as caught:
        check_usage(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert caught.value.threat is Threat.NOT_YOURS


def test_neither_a_service_nor_a_server_is_a_device(authority: Authority) -> None:
    for pem in (authority.service_certificate("control", NOW_S), authority.server_certificate(["x"], NOW_S)):
        with pytest.raises(Untrusted) as caught:
            authority.presented(pem)
        assert caught.value.threat is Threat.NOT_YOURS
    with pytest.raises(Untrusted) as caught:
        authority.presented(authority.certificate_pem)
    assert caught.value.threat is Threat.NOT_YOURS


def test_a_server_certificate_has_its_names_and_suits_a_device_whose_clock_starts_in_1970(authority: Authority) -> None:
    pem = authority.server_certificate(["cloud.local", "192.0.2.7", "::1"], NOW_S)
    found = x509.load_pem_x509_certificate(pem)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cloud.local"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]
    assert found.not_valid_before_utc.year == 1970
    assert found.not_valid_after_utc.timestamp() == NOW_S + SERVER_LIFE_S
    with pytest.raises(Invalid):
        authority.server_certificate(["münchen"], NOW_S)


class Handshake:
    """TLS in memory between a server and a client, each with its certificate and this cloud's authority."""

    def __init__(self, tmp_path: Path, ca: bytes) -> None:
        self._folder, self._ca = tmp_path, ca.decode()

    def __call__(self, server: bytes, client: bytes) -> None:
        contexts = []
        for protocol, pem in ((ssl.PROTOCOL_TLS_SERVER, server), (ssl.PROTOCOL_TLS_CLIENT, client)):
            context = ssl.SSLContext(protocol)
            context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self._ca)
            file = self._folder / "identity.pem"
            file.write_bytes(pem)
            context.load_cert_chain(file)
            contexts.append(context)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            contexts[1].wrap_bio(to_client, to_server, server_side=False),
            contexts[0].wrap_bio(to_server, to_client, server_side=True),
        ]
        for end in ends * 3:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        ends[0].write(b"x")
        assert ends[1].read(1) == b"x"


def test_a_device_cannot_pose_as_a_server_nor_a_server_as_a_device(authority: Authority, tmp_path: Path) -> None:
    handshake = Handshake(tmp_path, authority.certificate_pem)
    now_s = time.time()
    key = identity.new_key()
    issued = authority.device_certificate(identity.request(key), "pi", now_s)
    device = identity.accept(issued.pem, key, authority.certificate_pem, "pi")
    server = authority.server_certificate(["localhost"], now_s)
    handshake(server, device)
    handshake(server, authority.service_certificate("control", now_s))
    with pytest.raises(ssl.SSLError, match="unsuitable certificate purpose"):
        handshake(device, device)
    with pytest.raises(ssl.SSLError, match="unsuitable certificate purpose"):
        handshake(server, server)


@pytest.mark.parametrize("kind", ["rsa-1024", "p-384"])
def test_a_weak_or_strange_key_is_nobodys(kind: str) -> None:
    key = WEAK[kind]()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi")])
    start = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())  # type: ignore[attr-defined]
    builder = builder.serial_number(7).not_valid_before(start).not_valid_after(start + dt.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())  # type: ignore[attr-defined]
    for load, pem in ((pki.load_certificate, pki.pem_of(certificate)), (pki.load_key, private)):
        with pytest.raises(Invalid, match="another kind than P-256 or Ed25519"):
            load(pem)


@pytest.mark.parametrize("twice", ["551d23", "551d0f", "551d13", "551d25"])
def test_what_is_odd_inside_a_certificate_is_told_when_it_is_read(authority: Authority, twice: str) -> None:
    """An extension that is there twice, or cannot be parsed: the library says so only where somebody looks at it."""
    der = pki.load_certificate(authority.device_certificate(request_of(pki.new_key()), "pi", NOW_S).pem).public_bytes(
        serialization.Encoding.DER
    )
    identifier = bytes.fromhex("551d0e")  # the subject's key identifier becomes another extension
    assert der.count(identifier) == 1
    odd = ssl.DER_cert_to_PEM_cert(der.replace(identifier, bytes.fromhex(twice))).encode()
    with pytest.raises(Invalid, match="no certificate that can be read"):
        authority.presented(odd)
    with pytest.raises(Invalid, match="no certificate that can be read"):
        pki.load_certificate(odd)


def test_what_is_longer_than_any_certificate_is_not_read(authority: Authority) -> None:
    good = authority.certificate_pem + b"\n" * (pki.MAX_PEM_BYTES - len(authority.certificate_pem))
    assert pki.load_certificate(good)
    request = request_of(pki.new_key())
    for load, pem in ((pki.load_certificate, good), (pki.load_request, request.ljust(pki.MAX_PEM_BYTES))):
        with pytest.raises(Invalid, match="no certificate or request has more"):
            load(pem + b"\n")


def test_whoever_has_two_names_has_none() -> None:
    def named(*names: str) -> x509.Certificate:
        key = pki.new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in names])
        start = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(7).not_valid_before(start).not_valid_after(start + dt.timedelta(days=1))
        return builder.sign(key, hashes.SHA256())

    assert [pki.common_name(named(*names)) for names in (("pi",), ("pi", "pj"), ())] == ["pi", "", ""]


def test_every_fault_of_a_pem_is_one_of_ours(authority: Authority) -> None:
    for wrong in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", b"\xff" * 100, b"x" * 20_000):
        for load in (pki.load_certificate, pki.load_request, pki.load_key):
            with pytest.raises(MarramError):
                load(wrong)
