"""Who looks at a page, looked up again and again: a page outlives its person's role, password and session.

A page shows what the viewer may do, and every handler that changes something calls `require` first: what is hidden is
a courtesy, what is refused is the rule.
"""

from __future__ import annotations

import contextlib

from marram.cloud.access import Access, Caller
from marram.console.gate import signed_in
from marram.schema.errors import Refused, Retryable
from marram.schema.people import Permission
from marram.store import acting_as


class Viewer:
    """The caller behind one page. `look` keeps it true; used in the event loop."""

    def __init__(self, access: Access, cookie: str | None, caller: Caller | None) -> None:
        self._access, self._cookie = access, cookie
        self._caller = caller

    @property
    def name(self) -> str:
        """`ann · viewer`; empty once nobody is signed in."""
        if self._caller is None:
            return ""
        role = f" · {self._caller.role.value}" if self._caller.role else ""
        return f"{self._caller.user or 'this machine'}{role}"

    def may(self, *any_of: Permission) -> bool:
        """Whether the viewer has one of these permissions, as of the last look."""
        return self._caller is not None and self._caller.may(*any_of)

    async def look(self) -> bool:
        """Whether the session still stands. A database that is away ends none."""
        with contextlib.suppress(Retryable):
            self._caller = await signed_in(self._access, self._cookie)
        return self._caller is not None

    async def require(self, *any_of: Permission) -> None:
        """For a handler that changes something: looks, names who acts from here on. Raises Refused."""
        await self.look()
        if self._caller is None:
            raise Refused("you are signed out", hint="Sign in again.")
        self._caller.require(*any_of)
        acting_as(self._caller.actor)
