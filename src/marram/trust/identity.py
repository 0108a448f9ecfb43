"""A device's identity: its key, what it asks its cloud's authority for, and what it accepts as the answer.

The key is made here and never leaves the device; key and certificate are one PEM text, so that renewing is replacing
one file. Nothing here trusts what came from outside before it is checked against the device's own authority. No files,
no network, no clock.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from marram.schema.errors import Invalid, Threat, Untrusted
from marram.trust import pki
from marram.trust.authority import SKEW_S, check_issuer, check_usage

# Begins the first line of an identity; Unix times follow.
STAMP = "# valid"
# What a proof signs begins with this: it can never be taken for a signature made for anything else.
_RENEWAL = b"marram renewal 1\0"
_STANDING = b"marram standing 1\0"


def new_key() -> bytes:
    """A fresh private key, as PEM."""
    return pki.key_pem(pki.new_key())


def request(key_pem: bytes, name: str = "") -> bytes:
    """A signing request (PEM) for the key. `name` is for people: the cloud sets the name itself. Raises Invalid."""
    key = pki.load_key(key_pem)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    algorithm = None if not hasattr(key, "curve") else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def check_cloud(ca_pem: bytes, fingerprint: str) -> bytes:
    """`ca_pem` as it is to be kept, where it is the authority that a token or a person names.

    Raises Untrusted (OTHER_CLOUD).
    """
    found = fingerprint_of(ca_pem)
    if not hmac.compare_digest(found.encode(), fingerprint.encode()):
        raise Untrusted(
            f"the cloud that answers is {found}, not the one that was named",
            threat=Threat.OTHER_CLOUD,
            hint="Check the address; `marram cloud init` on the cloud's machine shows who it is.",
        )
    return pki.pem_of(pki.load_certificate(ca_pem))


def fingerprint_of(ca_pem: bytes) -> str:
    """Of an authority, as tokens carry it and people compare it. Raises Untrusted (OTHER_CLOUD: unreadable)."""
    try:
        return pki.fingerprint(pki.load_certificate(ca_pem))
    except Invalid as error:
        raise Untrusted(f"its authority cannot be told: {error.what}", threat=Threat.OTHER_CLOUD) from error


def accept(certificate_pem: bytes, key_pem: bytes, ca_pem: bytes, device: str | None = None) -> bytes:
    """The identity that an answered request makes: PEM, key then certificate, below a line that says from when to when.

    That line is for whoever only wants to know when to renew, and loads no X.509 for it.

    Raises Untrusted: OTHER_CLOUD (another authority), WRONG_KEY (a certificate for another key), NOT_YOURS (for another
    device or use). Raises Invalid (unreadable).
    """
    certificate, key = pki.load_certificate(certificate_pem), pki.load_key(key_pem)
    check_issuer(certificate, pki.load_certificate(ca_pem))
    check_usage(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
    if pki.key_hash(pki.supported(certificate.public_key())) != pki.key_hash(key.public_key()):
        raise Untrusted("the certificate is for another key than this device's", threat=Threat.WRONG_KEY)
    if device is not None and pki.common_name(certificate) != device:
        raise Untrusted(f'the certificate is not of "{device}"', threat=Threat.NOT_YOURS)
    valid = f"{STAMP} {int(_since_s(certificate))} {int(certificate.not_valid_after_utc.timestamp())}\n"
    return valid.encode() + pki.key_pem(key) + pki.pem_of(certificate)


def same_key(pem: bytes, other: bytes) -> bool:
    """Whether both hold the same private key. Raises Invalid."""
    return pki.key_hash(pki.load_key(pem).public_key()) == pki.key_hash(pki.load_key(other).public_key())


def device_of(identity_pem: bytes) -> str:
    """The device's name, as its certificate says. Raises Invalid."""
    return pki.common_name(pki.load_certificate(identity_pem))


def certificate_of(identity_pem: bytes) -> bytes:
    """The certificate alone: what may be shown. Raises Invalid."""
    return pki.pem_of(pki.load_certificate(identity_pem))


def prove(identity_pem: bytes, csr_pem: bytes) -> str:
    """That whoever has `identity_pem` asks for the certificate `csr_pem`: a signature, base64. Raises Invalid."""
    signature = pki.sign(pki.load_key(identity_pem), _RENEWAL + csr_pem)
    return base64.b64encode(signature).decode()


def proves(proof: str, certificate_pem: bytes, csr_pem: bytes) -> bool:
    """Whether `proof` is what `prove` makes with the certificate's key. Raises Invalid (unreadable certificate)."""
    return _signed(proof, certificate_pem, _RENEWAL + csr_pem)


def prove_standing(identity_pem: bytes) -> str:
    """That whoever asks how its certificate stands has the key: a signature, base64, good for nothing else."""
    own = pki.pem_of(pki.load_certificate(identity_pem))
    return base64.b64encode(pki.sign(pki.load_key(identity_pem), _STANDING + own)).decode()


def proves_standing(proof: str, certificate_pem: bytes) -> bool:
    """Whether `proof` is what `prove_standing` makes with the certificate's key. Raises Invalid (unreadable)."""
    return _signed(proof, certificate_pem, _STANDING + pki.pem_of(pki.load_certificate(certificate_pem)))


def _signed(proof: str, certificate_pem: bytes, message: bytes) -> bool:
    key = pki.supported(pki.load_certificate(certificate_pem).public_key())
    try:
        signature = base64.b64decode(proof, validate=True)
    except (binascii.Error, ValueError):
        return False
    return pki.signed_by(key, signature, message)


def _since_s(certificate: x509.Certificate) -> float:
    return certificate.not_valid_before_utc.timestamp() + SKEW_S
