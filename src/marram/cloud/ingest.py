"""The ingest role: batches of events from devices into the store, acknowledged only after their commit.

Exactly once rests on three things: the store's unique key, bodies written before the rows that name them, and an
acknowledgement that is made of nothing but a committed transaction. Where the database or the disk says no, the batch
is answered with an error and the device sends it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import pack_ack, pack_batch, unpack_batch
from marram.schema.errors import Invalid, MarramError, Retryable
from marram.schema.event import Recorded
from marram.store import Body, Objects, Store

log = logging.getLogger(__name__)

QUEUE = "ingest"
# Batches decoded and prepared side by side; the commits themselves follow one another.
_PARALLEL = 4
# Who the cloud itself asks as, to see that ingest works. Capitals: no device can have this name.
_CHECKER = "CLOUD"
# How long a batch that could not be stored is told of, unless one is stored meanwhile.
FAILED_KEEP_S = 60.0


class Ingest:
    """One ingest process; start as many as needed, each batch goes to one of them."""

    def __init__(self, bus: Bus, store: Store, objects: Objects) -> None:
        self._bus = bus
        self._store = store
        self._objects = objects
        # Threads of its own: a fleet that waits for its commits must not starve the API of threads.
        self._threads = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="ingest")
        self.batches = 0
        self.events = 0
        self.duplicates = 0
        self.refused = 0
        # The newest batch that a fault of ours kept out, and when (`time.monotonic`); None once one was stored again.
        self._failed: tuple[float, MarramError] | None = None

    async def start(self) -> None:
        """Subscribe; from now on batches are stored."""
        await self._bus.subscribe(subjects.INGEST, self._on_batch, QUEUE, parallel=_PARALLEL)

    def close(self) -> None:
        """After the bus was closed: wait for commits under way."""
        self._threads.shutdown(wait=True)

    async def _on_batch(self, message: Message) -> bytes | None:
        arrived_s = time.perf_counter()
        device = subjects.device_of(message.subject)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self.store_batch, device, message.payload, arrived_s)
        except MarramError as error:
            if device != _CHECKER:  # a check that fails tells whoever asked for it
                self.refused += 1
                log.warning("a batch of %s was not stored: %s", device, error)
                if not isinstance(error, Invalid):  # what is malformed is the sender's fault
                    self._failed = (time.monotonic(), error)
            raise

    def store_batch(self, device: str, payload: bytes, arrived_s: float | None = None) -> bytes:
        """Store one batch; returns its acknowledgement, which says how long it was here. Blocking.

        `arrived_s`: when it came (`time.perf_counter`), so that waiting for a turn counts as time of ours: a device
        must not take a busy cloud for a slow link.
        Raises Invalid (malformed: no use in sending it again), Retryable (nothing was stored, send it again).
        """
        began_s = time.perf_counter() if arrived_s is None else arrived_s
        batch = unpack_batch(payload)
        if not batch:
            self._check()
            return pack_ack(0, 0, time.perf_counter() - began_s)
        new = self._store.events.append(device, batch, self._keep_bodies(batch))
        self.batches += 1
        self._failed = None
        self.events += new
        self.duplicates += len(batch) - new
        return pack_ack(new, max(record.sequence for record in batch), time.perf_counter() - began_s)

    def _check(self) -> None:
        """Raises why batches are not stored: what stopped the last one a moment ago, or stops any now."""
        failed = self._failed
        if failed is not None and time.monotonic() - failed[0] < FAILED_KEEP_S:
            raise Retryable(f"the last batch was not stored: {failed[1].what}", where=failed[1].where)
        self._store.check()

    def _keep_bodies(self, batch: list[Recorded]) -> dict[int, Body]:
        carrying = [record for record in batch if record.event.body is not None]
        if not carrying:
            return {}
        bodies = self._objects.put_many([record.event.body or b"" for record in carrying])
        return {record.sequence: body for record, body in zip(carrying, bodies, strict=True)}


async def check(bus: Bus, timeout_s: float) -> None:
    """See that some ingest process answers and its database with it. Raises a MarramError where not."""
    await bus.request(subjects.events(_CHECKER), pack_batch("health-check", []), timeout_s)
