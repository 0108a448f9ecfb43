"""The journal's way into the outbox, exactly once: lines that a record holds already become durable events.

A line is written ahead in the record of what it tells (`deploy.AppRecord.journal`, `hold.json`), under the record's key
and with a rising number. The outbox takes the events and notes the highest number in one commit, so a line that is
offered again (the agent was killed before it could note that the outbox has it) is passed over there. Event first and
record second would lose or double lines at every crash between the two; this way only an outbox that was damaged and
begun anew can get a line twice, and its `id` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from marram.bus.outbox import Outbox
from marram.schema.journal import Entry


class Journal:
    """One device's."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def bring(self, app: str, key: str, lines: Sequence[Entry]) -> None:
        """Those of `lines` that the outbox does not have yet. Raises Retryable (disk)."""
        events = [(line.serial, line.event(app, key)) for line in lines]
        await asyncio.to_thread(self._outbox.append_once, key, events)

    async def close(self, key: str) -> None:
        """No line comes under `key` any more. Raises Retryable (disk)."""
        await asyncio.to_thread(self._outbox.forget_once, key)
