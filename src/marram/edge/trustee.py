"""What a device does with keys and signatures, as the agent sees it: a seam, so that the agent needs none of it inside.

The libraries behind it (X.509, TUF) would double an idle agent's memory for a few seconds of work a day. On a device
they live in a process that is started for one question and ends with the answer (`trustee_child`); a rehearsal of
hundreds of devices in one process, and tests, answer in a thread (`trustee_inside`). Both run the same code and pass
`tests/edge/test_trustee.py`. An implementation must never trust what the cloud sent before it was verified, and never
hand out the device's key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from marram.schema.device import DesiredApp

# Asks the cloud for signed metadata by its name (`timestamp.json`, `3.root.json` …): at most so many bytes, and no more
# is read than that. None: the cloud has no such file. Raises Retryable (link away), Untrusted (endless, slow).
Metadata = Callable[[str, int], Awaitable[bytes | None]]


class Trustee(Protocol):
    """One device's keys and what it trusts, kept in its folder."""

    async def verify(self, apps: Sequence[DesiredApp], metadata: Metadata) -> None:
        """That `apps`, and the model versions they name, are what this device's cloud has signed, and current.

        What was learnt (newer metadata, the clock's floor) is on disk when this returns. Raises Untrusted with the
        threat's name, Retryable where the metadata could not be had.
        """
        ...

    async def renewal(self) -> bytes:
        """A new key, kept beside the present one, and what to send to `d.<id>.renew` for it (or over HTTPS).

        Asked again before `renewed`, it speaks of the same new key. Raises Retryable (disk).
        """
        ...

    async def renewed(self, answer: bytes) -> None:
        """The cloud's answer to `renewal`: from now on the new key and certificate are the device's.

        Raises Untrusted where the answer is no certificate for that key by this device's authority.
        """
        ...

    async def renew_at(self, url: str) -> None:
        """Renew by asking the cloud at `url` (https://…) itself: the way for a device whose certificate is over.

        Raises Retryable (no answer), Untrusted (another cloud; REVOKED, CLONED, EXPIRED: too late).
        """
        ...

    async def standing(self, url: str) -> None:
        """Ask the cloud at `url` (https://…) whether it would let this device in; nothing changes by asking.

        Raises Retryable (no answer), Untrusted with the reason: another cloud, REVOKED, CLONED, EXPIRED for good.
        """
        ...

    async def secrets(self, sealed: bytes | None, names: Sequence[str]) -> dict[str, str]:
        """The values of the secrets called `names`; `sealed`: a fresh answer from `d.<id>.secrets`, kept sealed here.

        Names that are not here are missing in the result. Raises Untrusted where `sealed` is not for this device.
        """
        ...
