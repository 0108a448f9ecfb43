"""How long a connection is believed in, and how long is waited before the next: on scripts of ticks, not on clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.bus import session
from marram.bus.client import Bus, BusState, Timing
from marram.bus.session import Login, Session

LOGIN = Login("d1", "secret", "d1", "_INBOX_d1")


@dataclass
class Wire:
    """What the watch sees of a link at one tick; `mark`: how much had been written when the last PING was."""

    heard_bytes: int = 0
    sent: int = 0
    unsent: int = 0
    mark: int | None = None

    def sent_bytes(self) -> int:
        return self.sent

    def unsent_bytes(self) -> int:
        return self.unsent


async def lost_after(ticks: Iterable[Wire], monkeypatch: pytest.MonkeyPatch, dead_after_s: float = 10.0) -> int | None:
    """At which tick (a tenth of `dead_after_s`) the watch gives the connection up; None where it does not."""
    watched: Any = Session(LOGIN, Timing(dead_after_s=dead_after_s))
    script = iter(ticks)
    watched._link = wire = next(script)
    count = 0

    async def tick(_: float) -> None:
        nonlocal count
        now = next(script, None)
        if now is None:
            raise asyncio.CancelledError
        count += 1
        wire.heard_bytes, wire.sent, wire.unsent = now.heard_bytes, now.sent, now.unsent
        watched._ping_mark = now.mark

    with monkeypatch.context() as patch:
        patch.setattr(session.asyncio, "sleep", tick)
        try:
            await watched._watch()
        except asyncio.CancelledError:
            return None
    assert watched.lost.is_set()
    return count


async def test_a_link_that_carries_slowly_is_alive_for_as_long_as_bytes_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes a second, far below what is believed of a proxy: only that they leave speaks for it."""
    ticks = [Wire(sent=100 * n, unsent=50_000 - 100 * n, mark=50_000) for n in range(400)]
    assert await lost_after(ticks, monkeypatch) is None


async def test_once_all_has_left_and_nothing_is_heard_it_is_dead_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = [Wire(sent=100 * min(n, 50), unsent=5_000 - 100 * min(n, 50), mark=5_000) for n in range(400)]
    found = await lost_after(ticks, monkeypatch)
    assert found is not None and 59 <= found <= 62  # ten ticks after the last byte left, and its own 0.1 s


async def test_nothing_asked_and_nothing_heard_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await lost_after([Wire(sent=10)] * 100, monkeypatch) is None
    assert await lost_after([Wire(sent=10, mark=10)] * 100, monkeypatch) == 10  # a PING that no PONG answers


async def test_whatever_is_heard_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await lost_after([Wire(heard_bytes=n // 9, sent=9, mark=9) for n in range(300)], monkeypatch) is None


@given(failures=st.integers(0, 1000), down_s=st.floats(0, 1e6), refused=st.booleans())
def test_the_next_attempt_waits_longer_each_time_within_its_limit(failures: int, down_s: float, refused: bool) -> None:
    timing = Timing()
    bus: Any = Bus(["nats://127.0.0.1:1"], LOGIN, timing)
    bus._state = BusState.REFUSED if refused else BusState.CONNECTING
    first_s = timing.retry_min_s * (10 if refused else 1)
    longest_s = timing.refused_max_s if refused else timing.retry_max_s * (5 if down_s > 60 else 1)
    full_s = min(first_s * 2.0 ** min(failures, 20), longest_s)
    waits = {bus._wait_s(failures, down_s) for _ in range(5)}
    assert all(full_s / 2 <= wait_s <= full_s for wait_s in waits)
    assert len(waits) > 1, "a fleet must not come back in one instant"
