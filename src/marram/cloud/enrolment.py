"""Joining and renewing: a token becomes a device, an old key a new certificate.

One use of a token makes at most one device, whoever races: the use, the device and its certificate are one transaction.
A certificate that is handed out is in the store first, so the broker knows it before the device does.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from marram.cloud import eviction
from marram.schema.api import JoinAsk, RenewAsk, StandingAsk, TokenAsk, TokenMade, TokenView
from marram.schema.errors import Conflict, Invalid, Threat, Untrusted
from marram.schema.ids import new_id
from marram.schema.units import format_duration
from marram.store import AuditFilter, CertificateRow, Store, TokenRow, actor, auditing, check_standing
from marram.trust import JOIN, new_token, parse_token, proves
from marram.trust import identity as identities
from marram.trust.authority import GRACE_S, Authority, Issued

log = logging.getLogger(__name__)

_AGAIN = "Make one on the cloud: marram token create"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that has just joined."""

    certificate: Issued
    labels: dict[str, str]


class Enrolment:
    """Join tokens and the devices they make. Blocking; safe from any thread."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    def create_token(self, ask: TokenAsk, join_url: str) -> TokenMade:
        """A fresh join token, told only here."""
        token, now_s = new_token(JOIN, self._authority.fingerprint), time.time()
        row = TokenRow(token.id, token.secret_hash, ask.labels, ask.uses, ask.uses, now_s, now_s + ask.ttl_s)
        with auditing(actor(), "join_token.create", row.id):
            self._store.tokens.add(row)
        view = token_view(row)
        return TokenMade(
            **view.model_dump(), token=token.text, join=f"marram edge join {join_url} {token.text}" if join_url else ""
        )

    def tokens(self, now_s: float | None = None) -> list[TokenView]:
        """Those that can still be used, newest first, without the tokens themselves."""
        now_s = time.time() if now_s is None else now_s
        return [token_view(row) for row in self._store.tokens.list() if row.uses_left > 0 and row.expires_s > now_s]

    def join(self, ask: JoinAsk, now_s: float | None = None) -> Enrolled:
        """A new device.

        Raises Refused (no join token), Untrusted (of the token SPENT, STALE, UNKNOWN, OTHER_CLOUD; REVOKED: the name of
        a revoked device; CLONED, WRONG_KEY: the request), Invalid (the request), Conflict (the name is taken).
        """
        now_s = time.time() if now_s is None else now_s
        row = self._proven(ask.token, now_s)
        labels = {**ask.labels, **row.labels}  # what the token says of a device, the device cannot unsay
        for _ in range(5):
            name = ask.name or new_id("device")
            # Tried first, so that a name or a request that is no good costs no use.
            if self._store.devices.exists(name):
                if ask.name is not None:
                    raise self._store.devices.taken(name)
                continue
            issued = self._issue(ask.csr, name, now_s)
            try:
                with auditing(f"device:{name}", "device.join", name, join_token=row.id, labels=labels):
                    if not self._store.devices.enrol(row.id, self._row(issued), labels, ask.info):
                        raise self._spent(row.id, now_s)
            except Conflict:
                if ask.name is not None:
                    raise
                continue
            return Enrolled(issued, labels)
        raise Conflict("no free name was found", hint="Name the device yourself: --name NAME")

    def renew(self, ask: RenewAsk, device: str | None = None, now_s: float | None = None) -> Issued:
        """A certificate for a new key of a device that proves its present one, over its end by the grace period or not.

        `device`: who asks, where the broker proves that. Asked again for the same key, it gives another certificate for
        it. Raises Untrusted (OTHER_CLOUD, NOT_YOURS, WRONG_KEY, REVOKED, CLONED, EXPIRED), Invalid (the request).
        """
        now_s = time.time() if now_s is None else now_s
        shown = self._authority.presented(ask.certificate.encode())
        _check_holder(shown, identities.proves(ask.proof, ask.certificate.encode(), ask.csr.encode()))
        row = check_standing(
            self._store.certificates.use(shown.serial, now_s), now_s, device=device or shown.device, grace_s=GRACE_S
        )
        issued = self._issue(ask.csr, row.device, now_s)
        if issued.key_hash == row.key_hash:
            raise Invalid("the key to be certified is the present one", where=row.device, hint="Make a new key.")
        waiting = [each for each in self._store.certificates.of(row.device) if _waits(each, row)]
        if any(each.key_hash != issued.key_hash for each in waiting):
            # Whichever is used first stays; the other one is then told as cloned.
            log.warning("%s renews its certificate for a second key: it, or a copy of it, lost the first", row.device)
        with auditing(f"device:{row.device}", "device.renew", row.device, serial=issued.serial):
            self._store.certificates.add(self._row(issued))
        return issued

    def standing(self, ask: StandingAsk, now_s: float | None = None) -> None:
        """Nothing, where the broker lets in (or, after a renewal, will) whoever proves its certificate so.

        Nothing changes by asking: it counts as no use. Raises Untrusted (OTHER_CLOUD, NOT_YOURS, WRONG_KEY; and only
        to who has the key REVOKED, CLONED, EXPIRED), Invalid (the certificate).
        """
        now_s = time.time() if now_s is None else now_s
        shown = self._authority.presented(ask.certificate.encode())
        _check_holder(shown, identities.proves_standing(ask.proof, ask.certificate.encode()))
        row = self._store.certificates.get(shown.serial)
        check_standing(row, now_s, device=shown.device, grace_s=GRACE_S)
        doubles = AuditFilter(action="device.cloned", target=shown.device, since_s=now_s - eviction.PACE.bar_s)
        if self._store.audit.list(doubles, limit=1):
            raise Untrusted(
                "two use this identity at once, and the other was here first",
                where=shown.device,
                threat=Threat.CLONED,
                hint="Find the copy, remove the device, and join it again: marram device remove.",
            )

    def _issue(self, csr: str, device: str, now_s: float) -> Issued:
        issued = self._authority.device_certificate(csr.encode(), device, now_s)
        others = self._store.certificates.holders(issued.key_hash) - {device}
        if others:
            raise Untrusted("the key is another device's", where=device, threat=Threat.CLONED)
        return issued

    def _row(self, issued: Issued) -> CertificateRow:
        return CertificateRow(
            issued.serial,
            issued.device,
            issued.key_hash,
            issued.issued_s,
            issued.expires_s,
            authority=self._authority.fingerprint,
        )

    def _proven(self, text: str, now_s: float) -> TokenRow:
        token = parse_token(text, JOIN)
        if token.cloud != self._authority.fingerprint:
            raise Untrusted("the token is for another cloud", threat=Threat.OTHER_CLOUD, hint=_AGAIN)
        row = self._store.tokens.get(token.id)
        good = proves(token.secret, row.secret_hash if row else "0" * 64)
        if row is None or not good:
            raise Untrusted("this cloud does not know the token", threat=Threat.UNKNOWN, hint=_AGAIN)
        if row.uses_left < 1 or row.expires_s <= now_s:
            raise self._spent(row.id, now_s)
        return row

    def _spent(self, token: str, now_s: float) -> Untrusted:
        row = self._store.tokens.get(token)
        if row is not None and row.expires_s <= now_s:
            ago = format_duration(now_s - row.expires_s)
            return Untrusted(f"it expired {ago} ago", threat=Threat.STALE, hint=_AGAIN)
        return Untrusted("the token was used already", threat=Threat.SPENT, hint=_AGAIN)


def token_view(row: TokenRow) -> TokenView:
    """A token as the API shows it."""
    return TokenView(
        id=row.id,
        labels=row.labels,
        uses=row.uses,
        uses_left=row.uses_left,
        created_s=row.created_s,
        expires_s=row.expires_s,
    )


def _check_holder(shown: Issued, proven: bool) -> None:
    """A certificate is no secret: who shows it has to have its key."""
    if not proven:
        raise Untrusted("whoever asks does not have the certificate's key", where=shown.device, threat=Threat.WRONG_KEY)


def _waits(each: CertificateRow, present: CertificateRow) -> bool:
    """Whether `each` was issued, but never used."""
    return each.serial != present.serial and each.used_s is None and each.superseded_s is None
