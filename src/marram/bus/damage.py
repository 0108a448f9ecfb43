"""When a file of SQLite's is damaged: by a dying disk, or by an app of this device, which may write beside the agent.

What cannot be read as ours any more is never a reason to wait for better times: waiting mends a full disk, not this.
"""

from __future__ import annotations

import sqlite3

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# What SQLite says of statements that always worked: somebody has changed what the tables are. We have no triggers.
_CHANGED = ("no such table", "no such column", "has no column", "is a view", "may not be modified", "no such index")


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is damaged, or is not as we made it."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "malformed" in str(error)
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER or code & 0xFF in _BROKEN:
        return True
    return code & 0xFF == sqlite3.SQLITE_ERROR and any(words in str(error) for words in _CHANGED)
