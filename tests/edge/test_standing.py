"""A device that the broker refuses asks its cloud why: seldom, over HTTPS only, and a person at the device reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from marram.edge.standing import NOTHING, Pace, Standing
from marram.edge.trustee_inside import InsideTrustee
from marram.schema.errors import MarramError, Retryable, Threat, Untrusted

CLOUD = "https://cloud:8443"
REVOKED = Untrusted(
    "it was revoked on 2026-03-01 10:00 UTC", where="pi", threat=Threat.REVOKED, hint="Join the device again."
)


class Trustee(InsideTrustee):
    """Its cloud answers what the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []
        self.fault: MarramError | None = None

    async def standing(self, url: str) -> None:
        self.asked.append(url)
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def trustee(tmp_path: Path) -> Trustee:
    return Trustee(tmp_path)


@pytest.fixture
def standing(trustee: Trustee) -> Standing:
    made = Standing(trustee, CLOUD)
    made.told(refused=True, connected=False)
    return made


async def test_the_reason_is_said_once_with_the_next_step(
    standing: Standing, trustee: Trustee, caplog: pytest.LogCaptureFixture
) -> None:
    trustee.fault = REVOKED
    for _ in range(3):
        await standing.ask()
    assert standing.why == str(REVOKED) and "Join the device again." in standing.why
    assert caplog.text.count("revoked identity") == 1
    trustee.fault = Retryable("no answer")
    await standing.ask()
    assert standing.why == str(REVOKED), "what was heard last holds while nobody answers"
    trustee.fault = None
    await standing.ask()
    assert standing.why == NOTHING


async def test_it_asks_seldom_however_long_it_is_refused(standing: Standing) -> None:
    waits = [await standing.ask() for _ in range(12)]
    assert waits[0] == Pace().again_s and waits == sorted(waits) and waits[-1] == Pace().most_s
    standing.told(refused=False, connected=False)
    standing.told(refused=True, connected=False)
    assert await standing.ask() == Pace().most_s, "a broker that comes and goes begins nothing anew"


async def test_once_it_is_let_in_there_is_nothing_to_say(standing: Standing, trustee: Trustee) -> None:
    trustee.fault = REVOKED
    await standing.ask()
    standing.told(refused=False, connected=True)
    assert standing.why == ""
    await standing.ask()  # an answer that was under way
    assert standing.why == ""


async def test_only_who_is_refused_asks_and_over_https_only(trustee: Trustee) -> None:
    quick = Pace(first_s=0, again_s=0, most_s=0)
    kinds = [
        Standing(trustee, CLOUD, quick),
        Standing(trustee, "http://cloud:8080", quick),
        Standing(trustee, "", quick),
    ]
    admitted, *others = kinds
    for each in others:
        each.told(refused=True, connected=False)
    tasks = [asyncio.create_task(each.run()) for each in kinds]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not trustee.asked
    admitted.told(refused=True, connected=False)
    while not trustee.asked:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert set(trustee.asked) == {CLOUD}
