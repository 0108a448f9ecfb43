"""The cloud's own certificate authority: who is a device, who is a server of this cloud, who is one of its processes.

A small CA, because devices trust nothing else: no public CA, no list of the system's. Host names are not what protects
(a device reaches its cloud through any address or forwarded port): extended key usage does. A server's certificate says
serverAuth and nothing else, a device's clientAuth and nothing else, so a stolen device can never pose as the cloud.

The authority decides nothing about who may have a certificate, and remembers none: enrolment and the store do. What is
in a certificate is set here alone, whatever a signing request asks for. It reads no clock: times are parameters.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from marram.schema.errors import Invalid, Threat, Untrusted
from marram.trust import pki
from marram.trust.keys import Keys

DAY_S = 86400.0
DEVICE_LIFE_S = 30 * DAY_S
# A device that was off past its certificate's end may renew it for so long after that, by proof of its key.
GRACE_S = 90 * DAY_S
SERVER_LIFE_S = 90 * DAY_S
CA_LIFE_S = 20 * 365 * DAY_S
# In the common name of the cloud's own processes; a device's name cannot have a colon.
SERVICE = "svc:"

# A device without a battery for its clock wakes in 1970 and must reach its cloud to learn the time: what it checks
# is valid from then on. What the cloud checks (with its own clock) is valid from a little before its making.
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SKEW_S = 3600.0


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of a device: what is handed out, and what is kept of it."""

    device: str
    pem: bytes
    serial: str  # hexadecimal
    key_hash: str  # SHA-256 of the public key, hex
    issued_s: float  # Unix times
    expires_s: float


class Authority:
    """One cloud's CA. Safe from any thread: it never changes."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """Raises Invalid where the two do not belong together."""
        self._certificate = pki.load_certificate(certificate_pem)
        self._key = pki.load_key(key_pem)
        if pki.key_hash(self._key.public_key()) != pki.key_hash(pki.supported(self._certificate.public_key())):
            raise Invalid("ca.pem and ca.key are of two authorities", hint="Restore both from one copy.")
        self.certificate_pem = pki.pem_of(self._certificate)
        # As join tokens carry it.
        self.fingerprint = pki.fingerprint(self._certificate)

    @classmethod
    def create(cls, keys: Keys, now_s: float) -> Authority:
        """The authority in `keys`, made where there is none. Raises Refused, Permanent (the folder), Invalid."""
        keys.make()
        if not keys.ca_certificate.exists():
            key = pki.new_key()
            # The key first: a certificate without its key would stand for an authority that nobody has.
            keys.write(keys.ca_key, pki.key_pem(key))
            keys.write(keys.ca_certificate, pki.pem_of(_root(key, now_s)))
        return cls.open(keys)

    @classmethod
    def open(cls, keys: Keys) -> Authority:
        """Raises Missing where there is none, Refused (rights), Invalid (damaged)."""
        try:
            return cls(keys.read(keys.ca_certificate), keys.read(keys.ca_key))
        except Invalid as error:
            hint = error.hint or "Restore ca.pem and ca.key from a copy."
            raise Invalid(error.what, where=error.where or str(keys.folder), hint=hint) from error

    def device_certificate(self, csr_pem: bytes, device: str, now_s: float, life_s: float = DEVICE_LIFE_S) -> Issued:
        """A certificate of `device` for the key in `csr_pem`; nothing else of the request is taken over.

        Raises Invalid (no request, a weak or strange key), Untrusted (WRONG_KEY: not signed by that key).
        """
        key = pki.supported(pki.load_request(csr_pem).public_key())
        certificate = self._issue(key, device, ExtendedKeyUsageOID.CLIENT_AUTH, (now_s - SKEW_S, now_s + life_s))
        return self._issued(certificate)

    def server_certificate(self, names: Iterable[str], now_s: float, life_s: float = SERVER_LIFE_S) -> bytes:
        """A new key and a certificate of a server that is reached as `names` (host names, addresses), as one PEM."""
        wanted = list(dict.fromkeys(names)) or ["localhost"]
        key = pki.new_key()
        certificate = self._issue(
            key.public_key(), wanted[0][:64], ExtendedKeyUsageOID.SERVER_AUTH, (None, now_s + life_s), wanted
        )
        return pki.key_pem(key) + pki.pem_of(certificate)

    def service_certificate(self, name: str, now_s: float, life_s: float = SERVER_LIFE_S) -> bytes:
        """A new key and client certificate of one of the cloud's processes, as one PEM; common name `svc:NAME`."""
        key = pki.new_key()
        certificate = self._issue(
            key.public_key(), SERVICE + name, ExtendedKeyUsageOID.CLIENT_AUTH, (now_s - SKEW_S, now_s + life_s)
        )
        return pki.key_pem(key) + pki.pem_of(certificate)

    def presented(self, certificate_pem: bytes) -> Issued:
        """What a device's certificate says, where it is one of this authority's; its times are not looked at.

        Raises Untrusted (OTHER_CLOUD, NOT_YOURS: no device's certificate), Invalid.
        """
        certificate = pki.load_certificate(certificate_pem)
        check_issuer(certificate, self._certificate)
        check_usage(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
        if pki.common_name(certificate).startswith(SERVICE):
            raise Untrusted("the certificate is not a device's", threat=Threat.NOT_YOURS)
        return self._issued(certificate)

    def _issued(self, certificate: x509.Certificate) -> Issued:
        return Issued(
            device=pki.common_name(certificate),
            pem=pki.pem_of(certificate),
            serial=f"{certificate.serial_number:x}",
            key_hash=pki.key_hash(pki.supported(certificate.public_key())),
            issued_s=certificate.not_valid_before_utc.timestamp() + SKEW_S,
            expires_s=certificate.not_valid_after_utc.timestamp(),
        )

    def _issue(
        self,
        key: pki.PublicKey,
        name: str,
        usage: ObjectIdentifier,
        valid: tuple[float | None, float],
        alternatives: Iterable[str] = (),
    ) -> x509.Certificate:
        since_s, until_s = valid
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_EPOCH if since_s is None else _time(since_s))
            .not_valid_after(_time(until_s))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        general = [_general_name(each) for each in alternatives]
        if general:
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def check_issuer(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """That `authority` signed `certificate`. Raises Untrusted (OTHER_CLOUD)."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Untrusted("the certificate is of another cloud's authority", threat=Threat.OTHER_CLOUD) from error


def check_usage(certificate: x509.Certificate, usage: ObjectIdentifier) -> None:
    """That `certificate` is for `usage` and nothing else. Raises Untrusted (NOT_YOURS)."""
    try:
        usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        usages, authority = [], True
    if usages != [usage] or authority:
        raise Untrusted("the certificate is for another use", threat=Threat.NOT_YOURS)


def _root(key: pki.PrivateKey, now_s: float) -> x509.Certificate:
    public = key.public_key()
    # A name of its own: two authorities are never taken for one another by their names.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Marram {pki.key_hash(public)[:16]}")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_EPOCH)
        .not_valid_after(_time(now_s + CA_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise Invalid(f'"{text}" is neither a host name nor an address') from error


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)
