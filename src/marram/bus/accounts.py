"""Who may use the broker without being asked about: the cloud's own users, and the key that answers for the others.

Three accounts: devices and the cloud's services speak in APP; in AUTH the broker asks whom to let in; in SYS it tells
who is connected, and cuts whom it is told to. All of it follows from one seed, so that every role of a cloud, and the
configuration of a broker that somebody else runs, agree without passing passwords around. Whoever has the seed can let
anybody in: it is a key of the cloud (`callout.seed`), and nothing of it is ever logged.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

import nkeys  # type: ignore[import-untyped]  # it has no types

from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.schema.errors import Invalid

# Capitals: no device can have these names.
CONTROL, CALLOUT, SYSTEM = "CONTROL", "CALLOUT", "SYSTEM"
ACCOUNTS = {CONTROL: "APP", CALLOUT: "AUTH", SYSTEM: "SYS"}
# The account that devices are let into.
APP = ACCOUNTS[CONTROL]

# How long the broker waits for an answer about a device: longer than devices wait for the broker, so that an answer
# that never comes looks like a broker that is away, not like a refusal.
CALLOUT_S = 10.0
MAX_SUBSCRIPTIONS = 256
TLS_S = 5.0


class Accounts:
    """The users and the signing key of one cloud's broker. Safe from any thread: it never changes."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: as `new_seed` made it. Raises Invalid."""
        try:
            self._keys = nkeys.from_seed(bytearray(seed.strip()))
            self.issuer = bytes(self._keys.public_key).decode().rstrip("=")
        except (nkeys.NkeysError, ValueError, TypeError) as error:
            raise Invalid("it is no seed of a broker's account", hint="Restore callout.seed from a copy.") from error
        if not self.issuer.startswith("A"):
            raise Invalid("it is the seed of something else than an account", hint="Restore callout.seed from a copy.")
        self._seed = bytes(seed.strip())

    @staticmethod
    def new_seed() -> bytes:
        """A fresh one: an nkey account's seed."""
        return bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)) + b"\n"

    def password(self, user: str) -> str:
        """Of CONTROL, CALLOUT or SYSTEM: the same in every process that has the seed."""
        digest = hmac.digest(self._seed, b"marram broker user " + user.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def sign(self, content: bytes) -> bytes:
        """An Ed25519 signature that the broker believes."""
        return bytes(self._keys.sign(content))


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """`identity`: the server's key and certificate in one PEM; `authority`: who signs those that may connect."""

    identity: Path
    authority: Path


def configuration(
    accounts: Accounts, files: ServerFiles, host: str, port: int, name: str = "marram"
) -> dict[str, object]:
    """Of a nats-server, as JSON, which it reads. It holds passwords: write it for nobody else to read."""
    return {
        "server_name": name,
        "host": host,
        "port": port,
        # Room for our own framing around MAX_MESSAGE_BYTES.
        "max_payload": MAX_MESSAGE_BYTES + 65_536,
        # How long a reply may take to be written to a device: a megabyte to one at 0.3 Mbit/s.
        "write_deadline": "30s",
        # Of one client: ours have a dozen; nobody fills the broker's memory with them.
        "max_subscriptions": MAX_SUBSCRIPTIONS,
        "ping_interval": "20s",
        "ping_max": 2,
        "tls": {
            "cert_file": str(files.identity),
            "key_file": str(files.identity),
            "ca_file": str(files.authority),
            "verify": True,
            "min_version": "1.3",
            # Nothing is said, not even which server this is, to whoever has no certificate.
            "handshake_first": True,
            "timeout": TLS_S,
        },
        "accounts": {
            account: {"users": [{"user": user, "password": accounts.password(user)}]}
            for user, account in ACCOUNTS.items()
        },
        "system_account": ACCOUNTS[SYSTEM],
        "authorization": {
            "timeout": CALLOUT_S,
            "auth_callout": {"issuer": accounts.issuer, "account": ACCOUNTS[CALLOUT], "auth_users": list(ACCOUNTS)},
        },
    }
