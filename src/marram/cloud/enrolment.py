"""Joining: a token becomes a device. One use of a token makes at most one device, whoever races."""

from __future__ import annotations

import time

from marram.schema.api import JoinAsk, TokenAsk, TokenMade, TokenView
from marram.schema.errors import Conflict, Refused
from marram.schema.ids import new_id
from marram.schema.units import format_duration
from marram.store import Store, TokenRow, taken
from marram.trust import JOIN, device_secret, new_token, parse_token, proves

_AGAIN = "Make one on the cloud: marram token create"


class Enrolment:
    """Join tokens and the devices they make. Blocking; safe from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create_token(self, ask: TokenAsk, join_url: str) -> TokenMade:
        """A fresh join token, told only here."""
        token, now_s = new_token(JOIN), time.time()
        row = TokenRow(token.id, token.secret_hash, ask.labels, ask.uses, ask.uses, now_s, now_s + ask.ttl_s)
        self._store.tokens.add(row)
        view = token_view(row)
        return TokenMade(
            **view.model_dump(), token=token.text, join=f"marram edge join {join_url} {token.text}" if join_url else ""
        )

    def tokens(self) -> list[TokenView]:
        """Newest first, without the tokens themselves."""
        return [token_view(row) for row in self._store.tokens.list()]

    def join(self, ask: JoinAsk) -> tuple[str, str, dict[str, str]]:
        """A new device: its name, its secret, its labels. Raises Refused (the token), Conflict (the name is taken)."""
        row = self._proven(ask.token)
        if ask.name is not None and self._store.devices.exists(ask.name):
            raise taken(ask.name)
        if not self._store.tokens.use(row.id):
            raise self._spent(row.id)
        labels = {**ask.labels, **row.labels}  # what the token says of a device, the device cannot unsay
        secret = device_secret()
        for _ in range(5):
            name = ask.name or new_id("device")
            try:
                self._store.devices.add(name, secret, labels, ask.info)
            except Conflict:
                if ask.name is not None:
                    self._store.tokens.give_back(row.id)
                    raise
                continue
            except BaseException:
                self._store.tokens.give_back(row.id)
                raise
            return name, secret, labels
        self._store.tokens.give_back(row.id)
        raise Conflict("no free name was found", hint="Name the device yourself: --name NAME")

    def _proven(self, text: str) -> TokenRow:
        token = parse_token(text, JOIN)
        row = self._store.tokens.get(token.id)
        good = proves(token.secret, row.secret_hash if row else "0" * 64)
        if row is None or not good:
            raise Refused("this cloud does not know the token", hint=_AGAIN)
        if row.uses_left < 1 or row.expires_s <= time.time():
            raise self._spent(row.id)
        return row

    def _spent(self, token: str) -> Refused:
        row = self._store.tokens.get(token)
        if row is not None and row.expires_s <= time.time():
            return Refused(f"the token expired {format_duration(time.time() - row.expires_s)} ago", hint=_AGAIN)
        return Refused("the token was used already", hint=_AGAIN)


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
