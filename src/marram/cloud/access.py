"""Who may use the API: the first token is made at the first start and kept beside the data, 0600."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import yaml

from marram.schema import paths
from marram.schema.errors import MarramError, Refused
from marram.store import AdminRow, Admins
from marram.system import files
from marram.trust import API, Token, hash_secret, new_token, parse_token, proves, session_key

# A token that was good a moment ago is good: a revoked one stays usable this long.
_CACHE_S = 2.0


class Access:
    """API tokens. Blocking; safe from any thread."""

    def __init__(self, admins: Admins) -> None:
        self._admins = admins
        self._lock = threading.Lock()
        self._rows: dict[str, AdminRow] = {}
        self._read_s = float("-inf")

    def admits(self, token: str) -> bool:
        """Whether `token` is one of ours and not revoked; the comparison takes the same time wherever they differ.

        Raises Retryable where the database is away and nothing is remembered.
        """
        try:
            parsed = parse_token(token, API)
        except Refused:
            return False
        row = self._known().get(parsed.id)
        # The work is the same for an unknown id, so the time says nothing about which ids exist.
        good = proves(parsed.secret, row.secret_hash if row else "0" * 64)
        return good and row is not None and not row.revoked

    def create(self, name: str) -> Token:
        """A fresh token, told only here."""
        token = new_token(API)
        self._admins.add(token.id, name, token.secret_hash)
        with self._lock:
            self._read_s = float("-inf")
        return token

    def revoke(self, id: str) -> None:
        """Raises Missing."""
        self._admins.revoke(id)
        with self._lock:
            self._read_s = float("-inf")

    def session_key(self) -> bytes:
        """What signs the console's cookies: of the oldest token that is not revoked."""
        oldest = next((row for row in self._known().values() if not row.revoked), None)
        return session_key(oldest.secret_hash if oldest else hash_secret("no token"))

    def first(self, folder: Path) -> Token:
        """The token of the machine the cloud runs on: from `folder/admin.token`, made anew where that is not good.

        Raises Refused where the file cannot be written.
        """
        file = folder / "admin.token"
        try:
            token = parse_token(file.read_text(encoding="utf-8").strip(), API)
            if self.admits(token.text):
                return token
        except (OSError, UnicodeDecodeError, Refused):
            pass  # none yet, or not ours: a fresh one replaces it
        token = self.create("this machine")
        _write_private(file, token.text + "\n")
        return token

    def _known(self) -> dict[str, AdminRow]:
        """Every token's row, oldest first; asked for each request, so remembered for a moment."""
        with self._lock:
            if time.monotonic() - self._read_s < _CACHE_S:
                return self._rows
        try:
            rows = {row.id: row for row in self._admins.list()}
        except MarramError:
            with self._lock:
                if not self._rows:
                    raise
                return self._rows  # the database is away: who was let in still is
        with self._lock:
            self._rows, self._read_s = rows, time.monotonic()
            return rows


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
