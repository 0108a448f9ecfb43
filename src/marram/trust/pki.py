"""X.509 as both ends need it: keys of the two kinds we take, their fingerprints, PEM files that hold what they should.

Every fault of the library becomes one of our errors here. Nothing here reads a clock or a file.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from marram.schema.errors import Invalid, Threat, Untrusted

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

# A certificate, a request, a key of ours has a tenth of it.
MAX_PEM_BYTES = 16_384
# What the library raises on bytes that are not what they should be.
_ODD = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """PKCS #8, not encrypted: its file's rights protect it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> PrivateKey:
    """The private key in `pem`, whatever else is there. Raises Invalid; the message never repeats it."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except _ODD:
        # Not chained: the library's words may quote what it read.
        raise Invalid("it holds no key that can be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise Invalid("it holds a key of another kind than P-256 or Ed25519")
    supported(key.public_key())
    return key


def load_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate in `pem`. Raises Invalid."""
    _check_size(pem)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        supported(certificate.public_key())
        # Parsed lazily: what is odd inside is told here, not where somebody looks at it.
        _ = certificate.extensions, certificate.subject, certificate.issuer
    except _ODD as error:
        raise Invalid("this is no certificate that can be read") from error
    return certificate


def load_request(pem: bytes) -> x509.CertificateSigningRequest:
    """The signing request in `pem`, proven to be made by the owner of its key.

    Raises Invalid (unreadable, a weak or strange key), Untrusted (WRONG_KEY: somebody else's key).
    """
    _check_size(pem)
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
    except _ODD as error:
        raise Invalid("this is no signing request that can be read") from error
    supported(key)
    try:
        signed = request.is_signature_valid
    except _ODD:
        signed = False
    if not signed:
        raise Untrusted("the signing request is not signed by the key that it names", threat=Threat.WRONG_KEY)
    return request


def supported(key: object) -> PublicKey:
    """`key` where it is one of ours: P-256 or Ed25519. Raises Invalid."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise Invalid("the key is of another kind than P-256 or Ed25519", hint="Both sides of one version make the first.")


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def common_name(certificate: x509.Certificate) -> str:
    """The one common name of the subject; "" where there is not exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    value = names[0].value if len(names) == 1 else ""
    return value if isinstance(value, str) else ""


def key_hash(key: PublicKey) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo), hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the whole certificate (DER), base64url without padding: 43 characters, as join tokens carry it."""
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def sign(key: PrivateKey, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def signed_by(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the owner of `key` signed `message`."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_size(pem: bytes) -> None:
    if len(pem) > MAX_PEM_BYTES:
        raise Invalid(f"{len(pem)} bytes; no certificate or request has more than {MAX_PEM_BYTES}")
