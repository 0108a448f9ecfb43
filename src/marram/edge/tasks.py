"""Ending things in asyncio for sure: a clean-up that is cancelled half-way would leave two workers on one camera."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any


async def finished(ending: Coroutine[Any, Any, None]) -> None:
    """Let a clean-up come to its end even if we are cancelled meanwhile; only then give way."""
    task = asyncio.create_task(ending)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it has ended, whatever happens to us; what it raised otherwise is raised here."""
    await finished(_ended(task))
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


async def _ended(task: asyncio.Task[None]) -> None:
    while not task.done():
        # Again and again: until Python 3.12 `wait_for` loses a cancellation that comes together with the result.
        task.cancel()
        await asyncio.wait([task], timeout=1)


async def first(event: asyncio.Event, ended: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
    """Wait for `event` or for `ended`, so long at most; whether the event came."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting, ended], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return event.is_set()
