"""The uplink: drains the outbox to the cloud's ingest, exactly once, without choking the link."""

from __future__ import annotations

from dataclasses import dataclass

from marram.bus.client import Bus
from marram.bus.outbox import Outbox


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """For the report and for people."""

    waiting: int  # events in the outbox
    waiting_bytes: int
    delivered: int  # acknowledged by the cloud since start
    refused: int  # set aside because the cloud calls them invalid
    given_up: dict[str, int]  # by kind, since the outbox was made
    error: str | None


class Uplink:
    """`await uplink.run()` as a task of the agent, until cancelled."""

    def __init__(self, bus: Bus, outbox: Outbox, device: str) -> None: ...

    async def run(self) -> None:
        raise NotImplementedError

    def nudge(self) -> None:
        """There is something new in the outbox (optional: it looks every 100 ms)."""

    def status(self) -> UplinkStatus:
        raise NotImplementedError
