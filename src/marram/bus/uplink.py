"""The uplink: drains the outbox to the cloud's ingest, exactly once, without choking the link.

One batch is under way at a time and leaves the outbox only when the cloud says that its database has it; a batch sent
twice is the same there. The same link carries inferences, so a batch is only as big as takes a quarter of a second to
send. It must never lose a record, and never let one bad record block the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.codec import unpack_ack
from marram.bus.outbox import Batch, Outbox
from marram.schema.errors import Invalid, MarramError, NotReady, Retryable

log = logging.getLogger(__name__)

BATCH_EVENTS = 500
BATCH_BYTES = (4_000, 16_000, 256_000)  # the least, the first after each (re)connect, the most
BATCH_S = 0.25  # what a batch may take on the link
LOOK_S = 0.1  # between two looks whether there is something new
LOOK_ANYWAY_S = 2.0
RETRY_S = (0.1, 3.0)  # doubles from the first to the second while the cloud does not take them
REFUSED_RETRY_S = (0.0, 60.0)  # the same while it calls one record after another invalid: is the fault its own?
ANSWER_S = 15.0  # how long the cloud may take to answer, beside what a link of SLOWEST_BYTES_S takes to carry it
SLOWEST_BYTES_S = 10_000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """For the report and for people; the first two are up to a second old."""

    waiting: int  # events in the outbox
    waiting_bytes: int
    delivered: int  # acknowledged by the cloud since start
    refused: int  # set aside since start because the cloud calls them invalid
    given_up: dict[str, int]  # by kind, since the outbox was made
    error: str | None  # why the last attempt failed, None after a success


class Uplink:
    """`await uplink.run()` as a task of the agent, until cancelled."""

    def __init__(self, bus: Bus, outbox: Outbox, device: str) -> None:
        self.delivered = 0
        self.refused = 0
        self.error: str | None = None
        self._bus = bus
        self._outbox = outbox
        self._subject = subjects.events(device)
        self._nudged = asyncio.Event()
        self._limit = BATCH_EVENTS
        self._max_bytes = BATCH_BYTES[1]
        self._failures = 0
        self._refused_in_a_row = 0
        self._reconnects = bus.reconnects
        self._waiting, self._waiting_bytes, self._given_up = 0, 0, dict[str, int]()
        self._looked_s = float("-inf")
        # The disk may take its time; the agent's event loop must not wait for it.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="uplink")

    async def run(self) -> None:
        """Deliver what the outbox holds and will hold."""
        try:
            while True:
                mark = self._outbox.mark()
                try:
                    await self._look(0.5)
                    batch = await self._on_disk(lambda: self._outbox.batch(self._limit, self._max_bytes))
                    if batch is None:
                        await self._look(0.0)
                        await self._until_new(mark)
                    elif await self._send(batch):
                        self._failures = 0
                        continue
                    else:
                        self._failures += 1
                        await self._pause(RETRY_S)
                except MarramError as error:  # the outbox's: a failing disk
                    self._note(error)
                    self._failures += 1
                    await self._pause(RETRY_S)
        finally:
            self._disk.shutdown(wait=False, cancel_futures=True)

    def nudge(self) -> None:
        """There is something new in the outbox. Optional: it looks every 100 ms. On the event loop only."""
        self._nudged.set()

    def status(self) -> UplinkStatus:
        """Where it stands; costs nothing."""
        return UplinkStatus(
            self._waiting, self._waiting_bytes, self.delivered, self.refused, dict(self._given_up), self.error
        )

    # ------------------------------------------------------------ one batch

    async def _send(self, batch: Batch) -> bool:
        """False where it is to be tried again after a pause."""
        if self._bus.reconnects != self._reconnects:  # perhaps another link than before
            self._reconnects, self._max_bytes = self._bus.reconnects, BATCH_BYTES[1]
        size, loop = len(batch.message), asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            reply = await self._bus.request(self._subject, batch.message, ANSWER_S + size / SLOWEST_BYTES_S)
        except Invalid as error:
            return await self._on_invalid(batch, error)
        except MarramError as error:
            self._note(error)
            return False
        took_s = loop.time() - begun_s
        try:
            ack = unpack_ack(reply)
            if ack.high != batch.sequences[-1]:
                raise Retryable(f"the cloud acknowledged {ack.high} where {batch.sequences[-1]} was sent")
        except MarramError as error:  # Invalid too: a malformed reply says nothing about the batch
            self._note(error)
            return False
        await self._on_disk(lambda: self._outbox.acknowledge(batch.sequences))
        self.delivered += len(batch.sequences)
        self.error, self._refused_in_a_row = None, 0
        self._limit = min(2 * self._limit, BATCH_EVENTS)
        self._fit(size, took_s - ack.service_s - (self._bus.rtt_s or 0.0))
        return True

    def _fit(self, size: int, transfer_s: float) -> None:
        """Let the next batch take `BATCH_S` at most, growing only where this one used its room."""
        least, _, most = BATCH_BYTES
        if transfer_s > BATCH_S:
            self._max_bytes = max(least, int(min(size, self._max_bytes) * BATCH_S / transfer_s))
        elif transfer_s < BATCH_S / 2 and size > self._max_bytes / 2:
            self._max_bytes = min(most, 2 * self._max_bytes)

    async def _on_invalid(self, batch: Batch, error: Invalid) -> bool:
        """Halve until the one bad record is alone, and set that aside."""
        if len(batch.sequences) > 1:
            self._limit = len(batch.sequences) // 2
            return True
        sequence = batch.sequences[0]
        log.error("record %d is set aside: the cloud calls it invalid: %s", sequence, error)
        await self._on_disk(lambda: self._outbox.refuse(sequence, str(error)))
        self.refused += 1
        self._refused_in_a_row += 1
        self._note(error)
        if self._refused_in_a_row > 3:
            # Hardly all ours can be bad: the longer it goes on, the slower we set aside.
            self._failures = self._refused_in_a_row - 3
            await self._pause(REFUSED_RETRY_S)
        return True

    # ------------------------------------------------------------ waiting

    async def _until_new(self, mark: tuple[int, int]) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LOOK_ANYWAY_S
        while loop.time() < until_s and self._outbox.mark() == mark and not self._nudged.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._nudged.wait()
        self._nudged.clear()

    async def _pause(self, span_s: tuple[float, float]) -> None:
        """Longer after each failure, jittered; over at once when the connection comes back."""
        wait_s = min(max(span_s[0], RETRY_S[0]) * 2.0 ** min(self._failures - 1, 20), span_s[1])
        wait_s *= random.uniform(0.5, 1.0)
        if self._bus.connected:
            await self._change_within(wait_s)
            return
        while not self._bus.connected:
            self.error = self._bus.refused or self.error
            await self._look(0.5)
            await self._change_within(1.0)

    async def _change_within(self, seconds: float) -> None:
        """Wait until the connection changes its state, for so long at most."""
        with contextlib.suppress(TimeoutError):
            # Not `wait_for`: until Python 3.12 it loses a cancellation that comes with the result.
            async with asyncio.timeout(seconds):
                await self._bus.changed()

    def _note(self, error: MarramError) -> None:
        text = str(error)
        if self.error is None and not isinstance(error, NotReady):
            log.warning("events wait: %s", text)
        self.error = text

    async def _look(self, at_least_every_s: float) -> None:
        """Renew what `status` says."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s >= at_least_every_s:
            self._looked_s = now_s
            await self._on_disk(self._glance)

    def _glance(self) -> None:
        self._waiting, self._waiting_bytes = self._outbox.depth(), self._outbox.size_bytes()
        self._given_up = self._outbox.given_up()

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)
