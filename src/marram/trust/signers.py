"""Keys that sign updates: Ed25519, one file each, found by what they are and not by what they are called.

A folder may hold several keys of one role (a rotation makes a new one beside the old one); which of them counts, the
signed documents say. A key that belongs into a safe may be encrypted with a passphrase. Nothing here ever prints a key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from marram.schema.errors import Conflict, Invalid, Missing, Refused
from marram.schema.words import file_fault
from marram.system import files

# Asks for the passphrase of the key in a file.
AskPassphrase = Callable[[Path], str]
_MOST_BYTES = 16_384
_OTHERS = 0o077


def new_signer() -> CryptoSigner:
    """A fresh key."""
    return CryptoSigner.generate_ed25519()


def save(signer: CryptoSigner, file: Path, passphrase: str = "") -> Path:
    """Keep a key in `file` (0600) and its public half beside it (`NAME.pub`, whose path is returned).

    With a passphrase it is encrypted (PKCS #8: scrypt or PBKDF2, AES-256). Raises Conflict where the file is there
    already (a key is never written over), Refused where it cannot be written.
    """
    if file.exists():
        raise Conflict("a key is there already", where=str(file), hint="Choose another file.")
    public = file.with_suffix(".pub")
    key = serialization.load_pem_private_key(signer.private_bytes, None)
    locked = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    try:
        files.make_folder(file.parent)
        files.write(file, pem)
        files.write(public, public_pem(signer.public_key))
    except OSError as error:
        raise Refused(f"the key cannot be written: {file_fault(error)}", where=str(file)) from error
    return public


def load(file: Path, ask: AskPassphrase | None = None) -> CryptoSigner:
    """The key in `file`; `ask` is called where it is encrypted.

    Raises Missing, Invalid (no such key in it), Refused (others may read it, or the passphrase is wrong or missing).
    """
    pem = _read(file)
    if os.name == "posix" and file.stat().st_mode & _OTHERS:
        raise Refused("others than its owner may read this key", where=str(file), hint=f"chmod 600 {file}")
    passphrase = None
    if b"ENCRYPTED" in pem.split(b"\n", 1)[0]:
        if ask is None:
            raise Refused("the key is locked with a passphrase", where=str(file))
        passphrase = ask(file).encode()
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not chained: the library's words may quote what it read.
        if passphrase is not None:
            raise Refused("the passphrase does not open this key", where=str(file)) from None
        raise Invalid("it holds no key that can be read", where=str(file)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid("it holds a key of another kind than Ed25519", where=str(file))
    return CryptoSigner(key)


def load_public(file: Path) -> SSlibKey:
    """The public key in `file` (`NAME.pub`). Raises Missing, Invalid."""
    try:
        key = serialization.load_pem_public_key(_read(file))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Invalid("it holds no public key", where=str(file), hint="Take the file that ends in .pub.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Invalid("it holds a key of another kind than Ed25519", where=str(file))
    return SSlibKey.from_crypto(key)


def public_pem(key: SSlibKey) -> bytes:
    """The public half, to be handed around."""
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(key.keyval["public"])))
    return raw.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_all(folder: Path, ask: AskPassphrase | None = None) -> dict[str, CryptoSigner]:
    """Every key in `folder`, by key id; empty where there is no such folder. Raises as `load`."""
    found = [load(file, ask) for file in sorted(folder.glob("*.pem"))] if folder.is_dir() else []
    return {signer.public_key.keyid: signer for signer in found}


def free_name(folder: Path, role: str) -> Path:
    """A file for one more key of `role`: `snapshot.pem`, `snapshot-2.pem` …"""
    names = [f"{role}.pem", *(f"{role}-{number}.pem" for number in range(2, 1000))]
    return next(folder / name for name in names if not (folder / name).exists())


def short(keyid: str) -> str:
    """A key id as people read it."""
    return keyid[:12]


def find(keyids: Iterable[str], start: str) -> str:
    """The one key id that begins with `start`. Raises Missing, Invalid (more than one)."""
    found = [keyid for keyid in keyids if keyid.startswith(start.lower())]
    if len(found) == 1 and start:
        return found[0]
    if not found:
        raise Missing(f'no key begins with "{start}"', hint="`marram cloud root status` lists them.")
    raise Invalid(f'"{start}" stands for {len(found)} keys', hint="Write more of it.")


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise Invalid("it is far too large for a key", where=str(file))
        return file.read_bytes()
    except FileNotFoundError as error:
        raise Missing("there is no such key file", where=str(file)) from error
    except OSError as error:
        raise Refused(f"cannot be read: {file_fault(error)}", where=str(file)) from error
