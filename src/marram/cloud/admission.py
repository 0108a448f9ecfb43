"""Who is let onto the broker: whoever shows a certificate that stands for a device of this cloud, and nobody else.

The store decides, at each connect: what is revoked stays out over every restart, of broker and cloud. The first use of
a renewed certificate supersedes the older ones, whose live connections are then cut. Every refusal has the name of what
it defends against; each is counted, and told once in a while, however often it is tried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from marram.bus.callout import Admitted, Caller
from marram.bus.subjects import device_permissions
from marram.schema.errors import MarramError, Refused, Retryable, Threat, Untrusted
from marram.store import Store, check_standing
from marram.trust.authority import Authority

log = logging.getLogger(__name__)

# One refusal of one device is told again after so long, with how often it was tried meanwhile.
_TELL_AGAIN_S = 600.0
# Told at most in a minute, whoever they are: the log is not for attackers to fill.
_TOLD_A_MINUTE = 30
_REMEMBERED = 1000


class Admission:
    """The decision. `on_admitted` is told, on the event loop, of everybody let in, and whether it supersedes."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self.on_admitted: Callable[[Caller, bool], None] = lambda caller, first: None
        self._store = store
        self._authority = authority
        self._barred: dict[tuple[str, str], float] = {}  # (device, its process) until when
        self.refusals = Refusals()

    def bar(self, device: str, process: str, seconds: float) -> None:
        """Keep one process out that speaks as `device` beside another one."""
        now_s = time.monotonic()
        self._barred = {key: until_s for key, until_s in self._barred.items() if until_s > now_s}
        self._barred[device, process] = now_s + seconds

    async def admit(self, caller: Caller) -> Admitted:
        """Raises Untrusted with the threat's name, Refused, Retryable (the store is away)."""
        try:
            device, expires_s, first = await asyncio.to_thread(self._decide, caller, time.time())
        except Retryable:
            raise
        except MarramError as error:
            self.refusals.refused(caller, error)
            raise
        self.on_admitted(caller, first)
        return Admitted(device, device_permissions(device), expires_s)

    def _decide(self, caller: Caller, now_s: float) -> tuple[str, float, bool]:
        """The device, when its certificate ends, and whether this is the certificate's first use. Blocking."""
        if not caller.chain:
            raise Refused("no certificate was shown")
        shown = self._authority.presented(caller.chain[0].encode())
        if caller.user != shown.device:
            raise Untrusted(f'its certificate is of "{shown.device}"', where=caller.user, threat=Threat.NOT_YOURS)
        if self._barred.get((shown.device, caller.name), 0.0) > time.monotonic():
            raise Untrusted(
                "two use this identity at once, and the other was here first", where=shown.device, threat=Threat.CLONED
            )
        row = check_standing(self._store.certificates.use(shown.serial, now_s), now_s, device=shown.device)
        if not self._store.devices.exists(shown.device):
            raise Untrusted("this device was removed", where=shown.device, threat=Threat.REVOKED)
        return row.device, row.expires_s, row.used_s == now_s


class Refusals:
    """What was refused: counted by threat (None: for another reason), told in the log now and then."""

    def __init__(self) -> None:
        self.counts: Counter[Threat | None] = Counter()
        self._told: dict[tuple[str, Threat | None], tuple[float, int]] = {}  # when told, and how often since
        self._minute_s, self._in_minute = 0.0, 0

    def refused(self, caller: Caller, error: MarramError) -> None:
        """One more."""
        threat = error.threat if isinstance(error, Untrusted) else None
        self.counts[threat] += 1
        # By what proves who it is, where anything did; not by the user's name, which anybody can make up.
        key = (error.where or caller.address, threat)
        now_s = time.monotonic()
        told_s, times = self._told.get(key, (float("-inf"), 0))
        if now_s - told_s < _TELL_AGAIN_S or not self._room(now_s):
            self._told[key] = (told_s, times + 1)
        else:
            again = f" (and {times} times since it was told last)" if times else ""
            log.warning("not let onto the broker, from %s: %s%s", caller.address, error, again)
            self._told[key] = (now_s, 0)
        if len(self._told) > _REMEMBERED:
            self._told.pop(next(iter(self._told)))

    def _room(self, now_s: float) -> bool:
        if now_s - self._minute_s > 60:
            self._minute_s, self._in_minute = now_s, 0
        self._in_minute += 1
        return self._in_minute <= _TOLD_A_MINUTE
