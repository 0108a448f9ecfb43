"""Who a caller is and may do: a person's session, an API token, this machine's own.

The first token is made at the first start and kept beside the data, 0600: it is of the machine, and may do everything.
All others are a person's. What one allows is decided anew for each request, from what its owner is now: a token never
does more than its owner may, and nothing at all once that person is disabled or gone. Where a change was made by
another process of the cloud it counts after `_CACHE_S` at the latest.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from marram.schema import paths
from marram.schema.errors import MarramError, Missing, Refused
from marram.schema.people import Permission, Role
from marram.store import AdminRow, Held, Store, actor, auditing
from marram.system import files
from marram.trust import API, Token, new_token, parse_token, proves

# A token that was good a moment ago is good: one that was revoked elsewhere stays usable this long.
_CACHE_S = 2.0
# Sessions of one person at a time; the oldest gives way.
MOST_SESSIONS = 50
MACHINE_SESSION_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `actor`: as the audit log names it; `name`: as messages do; `user` and `role` None: the machine."""

    actor: str
    name: str
    permissions: frozenset[Permission]
    token: str
    user: str | None = None
    role: Role | None = None
    # Made by signing in; False: an API token, or the machine's.
    session: bool = False
    expires_s: float | None = None

    @property
    def is_machine(self) -> bool:
        return self.user is None

    def may(self, *any_of: Permission) -> bool:
        """Whether it has at least one of these permissions."""
        return not self.permissions.isdisjoint(any_of)

    def require(self, *any_of: Permission) -> None:
        """Raises Refused, naming what is missing, where it has none of these permissions."""
        if self.may(*any_of):
            return
        wanted = " or ".join(f'"{each.value}"' for each in any_of)
        if self.role is not None and not self.role.permissions.isdisjoint(any_of):
            raise Refused(
                f"{self.name} has no scope {wanted}",
                hint=f"Make a token that has it: marram user token create NAME --scopes {any_of[0].value}",
            )
        role = f" ({self.role.value})" if self.role else ""
        raise Refused(
            f"{self.name}{role} may not do this: it needs the permission {wanted}",
            hint=f"An admin can change a person's role: marram user role {self.user or 'NAME'} ROLE",
        )


class Access:
    """API tokens and sessions. Blocking; safe from any thread."""

    def __init__(self, store: Store) -> None:
        self._admins = store.admins
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._read_s = float("-inf")
        self._changes = 0

    def caller(self, text: str | None) -> Caller | None:
        """Whose token `text` is, and what it allows now; None where it is not one of ours, or over.

        The comparison takes the same time wherever they differ. Raises Retryable where the database is away and nothing
        is remembered.
        """
        try:
            parsed = parse_token(text or "", API)
        except Refused:
            return None
        held = self._known().get(parsed.id)
        # The work is the same for an unknown id, so the time says nothing about which ids exist.
        good = proves(parsed.secret, held.token.secret_hash if held else "0" * 64)
        return _caller(held, time.time()) if good and held is not None else None

    def add(
        self,
        name: str,
        owner: str | None,
        *,
        ttl_s: float | None = None,
        scopes: frozenset[Permission] | None = None,
        session: bool = False,
    ) -> tuple[Token, AdminRow]:
        """A fresh token, told only here. `owner` None: of this machine. Raises Missing (no such person)."""
        token, now_s = new_token(API), time.time()
        expires_s = None if ttl_s is None else now_s + ttl_s
        row = AdminRow(token.id, name, token.secret_hash, now_s, False, owner, scopes, expires_s, session)
        self._admins.add(row, MOST_SESSIONS if session and owner is not None else None)
        self.forget()
        return token, row

    def create(self, name: str) -> Token:
        """A fresh token of this machine's, which may do everything."""
        with auditing(actor(), "token.create", name, machine=True):
            return self.add(name, None)[0]

    def machine_session(self) -> Token:
        """A session for whoever has this machine's terminal: it may do everything, for a week."""
        with auditing("machine", "session.open", "machine"):
            return self.add("the link of this machine", None, ttl_s=MACHINE_SESSION_S, session=True)[0]

    def end(self, caller: Caller) -> None:
        """Sign out: the session that `caller` came with is over. Raises Refused where it is none."""
        if not caller.session:
            raise Refused(
                f"{caller.name} is not a session; there is nothing to sign out of",
                hint=f"To end a token: marram user token revoke {caller.token}",
            )
        closing = auditing(caller.actor, "session.close", caller.user or "machine")
        with closing, contextlib.suppress(Missing):  # over already
            self._admins.revoke(caller.token)
        self.forget()

    def revoke(self, id: str) -> None:
        """Raises Missing."""
        with auditing(actor(), "token.revoke", id):
            self._admins.revoke(id)
        self.forget()

    def forget(self) -> None:
        """Ask the database next time: people or tokens changed."""
        with self._lock:
            self._changes += 1
            self._read_s = float("-inf")

    def first(self, folder: Path) -> Token:
        """The token of the machine the cloud runs on: from `folder/admin.token`, made anew where that is not good.

        Raises Refused where the file cannot be written.
        """
        file = folder / "admin.token"
        try:
            token = parse_token(file.read_text(encoding="utf-8").strip(), API)
            caller = self.caller(token.text)
            if caller is not None and caller.is_machine:
                return token
        except (OSError, UnicodeDecodeError, Refused):
            pass  # none yet, or not ours: a fresh one replaces it
        token = self.create("this machine")
        _write_private(file, token.text + "\n")
        return token

    def _known(self) -> dict[str, Held]:
        """Every token that is not revoked; asked for each request, so remembered for a moment."""
        with self._lock:
            if time.monotonic() - self._read_s < _CACHE_S:
                return self._held
            changes, began_s = self._changes, time.monotonic()
        try:
            held = {each.token.id: each for each in self._admins.held()}
        except MarramError:
            with self._lock:
                if not self._held:
                    raise
                return self._held  # the database is away: who was let in still is
        with self._lock:
            # Read before a change that was made meanwhile: good for this caller's request, not for the next one's.
            if changes == self._changes:
                self._held, self._read_s = held, began_s
            return held


def _caller(held: Held, now_s: float) -> Caller | None:
    token = held.token
    if token.expires_s is not None and token.expires_s <= now_s:
        return None
    if token.owner is None:
        all_of_them = frozenset(Permission)
        allowed = all_of_them if token.scopes is None else token.scopes
        return Caller("machine", "this machine", allowed, token.id, session=token.session, expires_s=token.expires_s)
    if held.role is None or held.disabled:
        return None
    allowed = held.role.permissions if token.scopes is None else held.role.permissions & token.scopes
    # The name is free text of its owner's; the id cannot say anything else than it does.
    whose = f"user:{token.owner}" if token.session else f"user:{token.owner}/token:{token.id}"
    name = token.owner if token.session else f"the token {token.id} of {token.owner}"
    return Caller(whose, name, allowed, token.id, token.owner, held.role, token.session, token.expires_s)


def write_context(url: str, token: str) -> Path:
    """Tell the commands on this machine which cloud to talk to, and as whom (0600, whole or not at all)."""
    file = paths.context()
    _write_private(file, yaml.safe_dump({"url": url, "token": token}, sort_keys=False))
    return file


def _write_private(file: Path, text: str) -> None:
    """Write `file` so that only its owner reads it and nobody ever sees half of it. Raises Refused."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, text.encode())
    except OSError as error:
        raise Refused(f"cannot write it: {error.strerror}", where=str(file)) from error
