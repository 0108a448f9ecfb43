"""The desk where people sign in, in the API and in the console: so many attempts, one at a time.

Three limits, because each alone shuts somebody out. By address: one machine tries few passwords of many people. By
account: many machines try few passwords of one person, however many they are; that alone would let anybody lock a
person out, so where a person signed in before (from that address, lately) neither counts, only a limit of that pair's
own. Every limit gives an attempt back with time, and none of them touches whoever is signed in already, or the machine
that the cloud runs on. What waits for its turn waits outside of the threads that answer everybody else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from fastapi.concurrency import run_in_threadpool

from marram.cloud.api.faults import TooMany
from marram.cloud.api.limits import FailureLimit
from marram.cloud.people import WrongPassword
from marram.schema.people import normal_name

_T = TypeVar("_T")
# About two seconds of work at 40 ms each: who comes when so many wait is told to come again.
MOST_WAITING = 48
_REMEMBERED = 4096

log = logging.getLogger(__name__)


class Desk:
    """Runs attempts to prove a password. Used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._by_address = FailureLimit(10, 15.0, _REMEMBERED, clock, "too many wrong passwords from this address")
        self._by_account = FailureLimit(20, 10.0, _REMEMBERED, clock, "too many wrong passwords for this name")
        self._by_pair = FailureLimit(10, 15.0, _REMEMBERED, clock, "too many wrong passwords for this name from here")
        # (account, address) pairs that were right, least recent first.
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def attempt(self, name: str, address: str, prove: Callable[[], _T]) -> _T:
        """What `prove` returns. Raises TooMany without calling it; WrongPassword from it is counted."""
        account = str(normal_name(name))
        self._check(account, address)
        if self._waiting >= MOST_WAITING:
            raise TooMany("too many people are signing in just now", 2.0)
        self._waiting += 1
        try:
            async with self._turn:
                self._check(account, address)  # of those who came together, each sees the failures before its own
                try:
                    made = await run_in_threadpool(prove)
                except WrongPassword:
                    self._failed(account, address)
                    raise
        finally:
            self._waiting -= 1
        self._known[account, address] = None
        self._known.move_to_end((account, address))
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return made

    def _check(self, account: str, address: str) -> None:
        if (account, address) in self._known:
            self._by_pair.check(f"{account} {address}")
            return
        self._by_address.check(address)
        self._by_account.check(account)

    def _failed(self, account: str, address: str) -> None:
        log.info("a wrong name or password from %s", address)  # never the name: people type passwords there
        if (account, address) in self._known:
            self._by_pair.failed(f"{account} {address}")
            return
        self._by_address.failed(address)
        self._by_account.failed(account)
