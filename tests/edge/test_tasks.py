from __future__ import annotations

import asyncio

import pytest

from marram.edge.tasks import cancelled, finished


async def test_a_clean_up_ends_before_the_cancellation_goes_on() -> None:
    order: list[str] = []
    inside = asyncio.Event()

    async def clean_up() -> None:
        inside.set()
        for _ in range(20):
            await asyncio.sleep(0)
        order.append("clean")

    async def work() -> None:
        try:
            await finished(clean_up())
        finally:
            order.append("given way")

    task = asyncio.create_task(work())
    await inside.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["clean", "given way"]


async def test_one_that_loses_a_cancellation_is_asked_again() -> None:
    lost = 0

    async def loses_the_first() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost += 1

    task = asyncio.create_task(loses_the_first())
    await asyncio.sleep(0)
    await cancelled(task)
    assert task.cancelled() and lost == 1


async def test_what_it_raised_otherwise_is_raised() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("while ending")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="while ending"):
        await cancelled(task)


async def test_one_that_ended_before_is_fine() -> None:
    async def nothing() -> None:
        pass

    task = asyncio.create_task(nothing())
    await task
    await cancelled(task)
