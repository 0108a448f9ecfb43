"""Answers the broker's question about everybody who connects: may they, and what may they say and hear.

The protocol is NATS's auth callout: the broker sends a signed request with the certificate chain it has verified, and
believes the signed answer of whoever has the account's key. Who is let in is decided elsewhere (`admit`); here are the
envelopes. Any number of processes may answer (a queue group shares the work). While none does, whoever is connected
stays, and whoever is not waits and tries again; nobody is ever let in unasked.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marram.bus.accounts import APP, Accounts
from marram.bus.client import Bus, Message
from marram.schema.errors import Invalid, MarramError, Retryable

log = logging.getLogger(__name__)

SUBJECT, QUEUE = "$SYS.REQ.USER.AUTH", "callout"
_PARALLEL = 8
# What a device is asked it may answer, once and so soon: nowhere else may it speak in another's inbox.
_ANSWER_S = 30


@dataclass(frozen=True, slots=True)
class Caller:
    """Who connects. `chain`: its certificate and those above it, PEM, verified by the broker; empty without TLS.

    `user`: what it calls itself, which proves nothing. `server`, `connection`: where it can be cut.
    """

    chain: tuple[str, ...]
    user: str
    name: str
    address: str
    server: str
    connection: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """Let in as `name`, allowed to `publish` and `subscribe`, until `expires_s` (Unix time); then it must ask again."""

    name: str
    permissions: Mapping[str, list[str]]
    expires_s: float


Admit = Callable[[Caller], Awaitable[Admitted]]


class Callout:
    """The responder on one connection, which must be of the user CALLOUT."""

    def __init__(self, bus: Bus, accounts: Accounts, admit: Admit) -> None:
        """`admit` raises Refused where the caller is not let in; of anything else the caller hears nothing either."""
        self._bus = bus
        self._accounts = accounts
        self._admit = admit

    async def start(self) -> None:
        """From now on this process answers."""
        await self._bus.subscribe(SUBJECT, self._answer, QUEUE, parallel=_PARALLEL)

    async def _answer(self, message: Message) -> bytes | None:
        try:
            claims = _claims(message.payload)
            asked: dict[str, Any] = claims["nats"]
            user, server = str(asked["user_nkey"]), str(asked["server_id"]["id"])
            caller = _caller(asked, server)
        except (Invalid, KeyError, TypeError, ValueError) as error:
            log.warning("the broker's question could not be read: %s", error)
            return None
        if float(claims.get("exp") or 0) < time.time() - 1:
            return None  # it has given up on the answer
        try:
            admitted = await self._admit(caller)
        except Retryable as error:
            # Silence: to the caller it is a broker that does not answer yet, which it takes up again soon.
            log.warning("nobody is let in now: %s", error)
            return None
        except MarramError as error:
            return self._signed(user, server, {"error": str(error)})
        return self._signed(user, server, {"jwt": self._user_token(user, admitted).decode()})

    def _user_token(self, user: str, admitted: Admitted) -> bytes:
        allowed = {"pub": admitted.permissions["publish"], "sub": admitted.permissions["subscribe"]}
        return self._token(
            {
                "aud": APP,
                "sub": user,
                "name": admitted.name,
                "exp": int(admitted.expires_s),
                "nats": {
                    **{what: {"allow": subjects} for what, subjects in allowed.items()},
                    "resp": {"max": 1, "ttl": _ANSWER_S * 10**9},
                    "subs": -1,
                    "data": -1,
                    "payload": -1,
                    "type": "user",
                    "version": 2,
                },
            }
        )

    def _signed(self, user: str, server: str, answer: Mapping[str, str]) -> bytes:
        response = {"type": "authorization_response", "version": 2, **answer}
        return self._token({"aud": server, "sub": user, "nats": response})

    def _token(self, claims: Mapping[str, Any]) -> bytes:
        """A JWT as NATS has them."""
        claims = {"iss": self._accounts.issuer, "iat": int(time.time()), "jti": secrets.token_hex(16), **claims}
        head = _packed({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + _packed(claims)
        return head + b"." + _base64(self._accounts.sign(head))


def _caller(asked: Mapping[str, Any], server: str) -> Caller:
    client, options = asked["client_info"], asked.get("connect_opts") or {}
    chains = (asked.get("client_tls") or {}).get("verified_chains") or [[]]
    return Caller(
        chain=tuple(str(pem) for pem in chains[0]),
        user=str(options.get("user") or ""),
        name=str(options.get("name") or ""),
        address=str(client.get("host") or ""),
        server=server,
        connection=int(client["id"]),
    )


def _claims(token: bytes) -> dict[str, Any]:
    """What a JWT says. Its signature is not looked at: in the account where it is asked only the broker can speak."""
    parts = token.split(b".")
    if len(parts) != 3:
        raise Invalid("it is no token")
    claims = json.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    if not isinstance(claims, dict):
        raise Invalid("its token holds no claims")
    return claims


def _packed(part: Mapping[str, Any]) -> bytes:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
