"""A real broker for each test, and helpers that wait for conditions instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from marram.bus.client import Bus, Timing
from marram.bus.outbox import Outbox
from marram.lab.gatehouse import Gatehouse

# Everything the same as in the field, sooner.
QUICK = Timing(connect_s=5.0, ping_s=0.2, dead_after_s=3.0, retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.2)


class Connect(Protocol):
    """`await connect("d1")`: a bus of that device; without a name, of the control user. `port`: through a link."""

    def __call__(
        self, device: str | None = None, *, port: int | None = None, timing: Timing = QUICK
    ) -> Awaitable[Bus]: ...


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Gatehouse]:
    """A broker that lets in the devices d1 and d2."""
    with Gatehouse(tmp_path / "gatehouse", ["d1", "d2"]) as gatehouse:
        yield gatehouse


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An empty one."""
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


@pytest.fixture
async def connect(broker: Gatehouse) -> AsyncIterator[Connect]:
    buses: list[Bus] = []

    async def make(device: str | None = None, *, port: int | None = None, timing: Timing = QUICK) -> Bus:
        bus = await broker.connect(device, url=f"nats://127.0.0.1:{port or broker.port}", timing=timing)
        buses.append(bus)
        return bus

    yield make
    for bus in buses:
        await bus.close()


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for it; fails the test where it does not come."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come"
        await asyncio.sleep(0.005)


def until_blocking(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come"
        time.sleep(0.005)


@pytest.fixture(name="until")
def _until() -> Callable[..., Awaitable[None]]:
    return until


@pytest.fixture(name="until_blocking")
def _until_blocking() -> Callable[..., None]:
    return until_blocking
