"""Sealed: secrets in the cloud's database, on their way to one device, and on that device's disk.

Three seals, none of which Marram composes itself: AES-256-GCM under the cloud's `seal.key`, bound to a secret's name
and version; HPKE (RFC 9180: P-256, HKDF-SHA256, AES-256-GCM) to the key in a device's certificate, bound to the
device's name; AES-256-GCM under a key that HKDF derives from the device's own. A seal that does not open says which,
never why in more words than that, and no message holds what was sealed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from marram.schema.errors import Invalid, Permanent, Threat, Untrusted
from marram.trust import pki
from marram.trust.keys import Keys

KEY_BYTES = 32
_NONCE_BYTES = 12
_ON_THE_WAY = b"marram secrets 1\0"
_AT_REST = b"marram secrets at rest 1"
_SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def make_seal_key(keys: Keys) -> None:
    """Make `seal.key` where there is none. Raises Permanent."""
    if not keys.seal_key.exists():
        keys.write(keys.seal_key, os.urandom(KEY_BYTES))


def read_seal_key(keys: Keys) -> bytes:
    """Raises Missing, Refused (its rights), Permanent (not a key)."""
    key = keys.read(keys.seal_key)
    if len(key) != KEY_BYTES:
        raise Permanent(f"{len(key)} bytes are no key", where=str(keys.seal_key), hint="Restore it from a copy.")
    return key


def seal(key: bytes, name: str, version: int, value: str) -> str:
    """One secret as the database keeps it: base64 of nonce and ciphertext."""
    return base64.b64encode(_seal(key, value.encode(), _bound(name, version))).decode()


def unseal(key: bytes, name: str, version: int, sealed: str) -> str:
    """The inverse of `seal`. Raises Untrusted (TAMPERED): sealed otherwise, or as another name or version."""
    try:
        return _open(key, base64.b64decode(sealed, validate=True), _bound(name, version)).decode()
    except (binascii.Error, ValueError, InvalidTag):
        raise Untrusted(
            "it does not open: changed in the database, or sealed with another seal.key",
            threat=Threat.TAMPERED,
            where=name,
            hint=f"Set it again: marram secret set {name}",
        ) from None


def seal_for(certificate_pem: bytes, device: str, document: bytes) -> bytes:
    """`document` for the holder of the certificate's key alone. Raises Invalid (the certificate)."""
    key = pki.load_certificate(certificate_pem).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Invalid("secrets are sealed to P-256 keys only", hint="Renew the device's certificate.")
    return _SUITE.encrypt(document, key, info=_ON_THE_WAY + device.encode())


def open_own(identity_pem: bytes, device: str, sealed: bytes) -> bytes:
    """The inverse of `seal_for`. Raises Untrusted (NOT_YOURS) where it was sealed for somebody else, or changed."""
    key = pki.load_key(identity_pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid("secrets are sealed to P-256 keys only")
    try:
        return _SUITE.decrypt(sealed, key, info=_ON_THE_WAY + device.encode())
    except (ValueError, InvalidTag):
        raise Untrusted("the secrets that came are not sealed for this device", threat=Threat.NOT_YOURS) from None


def rest_id(identity_pem: bytes) -> str:
    """A name for the device's key, for the file that is sealed under it: hex, nothing of the key."""
    return hashlib.sha256(_AT_REST + pki.key_hash(pki.load_key(identity_pem).public_key()).encode()).hexdigest()[:16]


def seal_at_rest(identity_pem: bytes, document: bytes) -> bytes:
    """`document` for this device's disk."""
    return _seal(_rest_key(identity_pem), document, _AT_REST)


def open_at_rest(identity_pem: bytes, sealed: bytes) -> bytes:
    """The inverse of `seal_at_rest`. Raises Untrusted (TAMPERED)."""
    try:
        return _open(_rest_key(identity_pem), sealed, _AT_REST)
    except (ValueError, InvalidTag):
        raise Untrusted("the secrets on this disk do not open", threat=Threat.TAMPERED) from None


def _rest_key(identity_pem: bytes) -> bytes:
    # The key's own PKCS #8, without the certificate: renewing only that changes nothing here.
    secret = pki.key_pem(pki.load_key(identity_pem))
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=_AT_REST).derive(secret)


def _bound(name: str, version: int) -> bytes:
    return f"marram secret 1\0{name}\0{version}".encode()


def _seal(key: bytes, text: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, bound)


def _open(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
