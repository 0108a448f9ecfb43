"""Who is connected to the broker, and cutting them: the system account's side of revocation.

Works over every server of a cluster. It remembers nothing and decides nothing: what is told is what the servers said
just now, and a server that does not answer in time is missing in it, so that callers look again now and then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from marram.bus.accounts import APP
from marram.bus.client import Bus
from marram.schema.errors import NotReady, Retryable

_ANSWER_S = 2.0
# How many servers there are nobody knows: they have all spoken when nobody has for so long.
_QUIET_S = 0.25
_PAGE = 512


@dataclass(frozen=True, slots=True)
class Connection:
    """One client of the broker: whom it was let in as, where it is, and since when (the server's words, comparable)."""

    user: str
    name: str  # of its process, see `Login`
    address: str
    server: str
    id: int
    since: str
    received: int  # messages, so far


class Connections:
    """On a connection of the user SYSTEM."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def of(self, user: str) -> list[Connection]:
        """Those that were let in as `user`. Raises Retryable."""
        return [each for each in await self._ask({"user": user}) if each.user == user]

    async def all(self) -> list[Connection]:
        """Every one, page by page. Raises Retryable."""
        found: dict[tuple[str, int], Connection] = {}
        for offset in range(0, 1_000_000, _PAGE):
            page = {(each.server, each.id): each for each in await self._ask({"offset": offset})}
            found |= page
            if len(page) < _PAGE:
                break  # no server has a full page
        return list(found.values())

    async def cut(self, connections: Iterable[Connection]) -> int:
        """End them; how many were still there. Raises Retryable."""
        ended = 0
        for each in connections:
            try:
                answer = await self._bus.request(
                    f"$SYS.REQ.SERVER.{each.server}.KICK", json.dumps({"cid": each.id}).encode(), _ANSWER_S
                )
            except NotReady:
                continue  # its server is gone, and the connection with it
            ended += "error" not in json.loads(answer)
        return ended

    async def _ask(self, which: dict[str, Any]) -> list[Connection]:
        """One page of every server's connections in the account of devices."""
        asked = json.dumps({"auth": True, "acc": APP, "limit": _PAGE, **which}).encode()
        found = []
        for answer in await self._bus.gather("$SYS.REQ.SERVER.PING.CONNZ", asked, _ANSWER_S, _QUIET_S):
            try:
                told = json.loads(answer)
                server = str(told["server"]["id"])
                found += [_connection(server, each) for each in told["data"].get("connections") or []]
            except (ValueError, KeyError, TypeError) as error:
                raise Retryable("the broker does not say who is connected") from error
        return found


def _connection(server: str, told: dict[str, Any]) -> Connection:
    return Connection(
        user=str(told.get("authorized_user") or ""),
        name=str(told.get("name") or ""),
        address=str(told.get("ip") or ""),
        server=server,
        id=int(told["cid"]),
        since=str(told.get("start") or ""),
        received=int(told.get("in_msgs") or 0),
    )
