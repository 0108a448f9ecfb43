"""Loops of a cloud: nothing that one turn fails of ends them."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from marram.cloud.loops import Due, for_ever
from marram.schema.errors import Retryable


@pytest.mark.parametrize("fault", [Retryable("the database is away"), OverflowError("Python int too large"), OSError()])
async def test_a_turn_that_fails_is_told_once_and_the_next_one_is_taken(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    turns, done = 0, asyncio.Event()

    async def work() -> None:
        nonlocal turns
        turns += 1
        if turns == 5:
            done.set()
            await asyncio.Event().wait()
        raise fault

    loop = asyncio.create_task(for_ever("nothing was done", work, 0.0))
    async with asyncio.timeout(10):
        await done.wait()
    loop.cancel()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().partition(":")[0] for record in told] == ["nothing was done"]


def test_what_lasts_so_long_is_due_then_and_where_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1e6
    monkeypatch.setattr(time, "time", lambda: now_s)
    due = Due(100.0, 0.5)
    assert not due
    now_s += 49
    assert not due
    now_s += 2
    assert due
    due.made()
    assert not due
    now_s -= 10  # made in what is now the future
    assert due
    due.made()
    now_s += 1.7e9  # it began in 1970
    assert due
