from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.edge.world import DEVICE, LONG_S, Cloud

from marram.bus.client import Bus
from marram.bus.codec import BlobAsk, pack_blob
from marram.edge.bundles import Bundles
from marram.edge.fetch import Fetcher, Pace
from marram.lab import virtual
from marram.schema.errors import Threat, Untrusted
from marram.schema.model import File, Manifest


@pytest.fixture
async def bus(cloud: Cloud) -> AsyncIterator[Bus]:
    made = await cloud.server.connect(DEVICE)
    await made.wait_connected(10)
    yield made
    await made.close()


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    made = Bundles(tmp_path / "device", reserve_bytes=0)
    made.make()
    return made


async def fetch(bus: Bus, bundles: Bundles, manifest: Manifest) -> list[str]:
    """Fetch it; the reasons it waited for on the way."""
    said: list[str] = []
    async with asyncio.timeout(LONG_S):
        await Fetcher(bus, bundles, DEVICE).fetch(bundles.missing([manifest]), said.append)
    return said


async def refusal(bus: Bus, bundles: Bundles, manifest: Manifest) -> Untrusted:
    """Why what comes is not taken: it then waits, and goes on later by itself."""
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    fetching = asyncio.create_task(Fetcher(bus, bundles, DEVICE).fetch(bundles.missing([manifest]), said.set_result))
    async with asyncio.timeout(LONG_S):
        error = Untrusted(await said)
    assert not fetching.done()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    return error


def content(bundles: Bundles, manifest: Manifest) -> dict[str, bytes]:
    folder = bundles.install(manifest)
    return {file.path: (folder / file.path).read_bytes() for file in manifest.files}


async def test_files_come_whole(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    files = {"model.tflite": os.urandom(4_000_000), "empty": b"", **{f"small/{n}": os.urandom(900) for n in range(40)}}
    manifest = cloud.manifest(files)
    assert await fetch(bus, bundles, manifest) == [""]
    assert content(bundles, manifest) == files
    # Each byte was asked for once.
    assert sum(ask.length for ask in cloud.asked) == sum(map(len, files.values()))


async def test_the_room_taken_shrinks_before_bytes_are_written(
    cloud: Cloud, bus: Bus, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = cloud.manifest({"model": os.urandom(300_000)})
    used: list[tuple[int, int]] = []
    monkeypatch.setattr(
        bundles.room, "use", lambda file, offset: used.append((offset, bundles.partial(file).stat().st_size))
    )
    await fetch(bus, bundles, manifest)
    assert used[-1][0] == 300_000 and all(offset > here for offset, here in used)


async def test_it_goes_on_where_a_cut_left_off(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    body = os.urandom(300_000)
    manifest = cloud.manifest({"model": body})
    for there in (1, 63_999, 64_000, 299_999, 300_000):
        bundles.make()
        bundles.partial(manifest.files[0]).write_bytes(body[:there])
        cloud.asked.clear()
        await fetch(bus, bundles, manifest)
        assert content(bundles, manifest) == {"model": body}
        assert sum(ask.length for ask in cloud.asked) == len(body) - there
        bundles.sweep([])


async def test_a_partial_file_that_a_power_cut_spoiled_is_fetched_anew(
    cloud: Cloud, bus: Bus, bundles: Bundles
) -> None:
    body = os.urandom(100_000)
    manifest = cloud.manifest({"model": body})
    for spoiled in (bytes(50_000), body + b"more", bytes(100_000)):
        bundles.partial(manifest.files[0]).write_bytes(spoiled)
        assert await fetch(bus, bundles, manifest) == [""], "they are our own: nobody is suspected, nothing waited for"
        assert content(bundles, manifest) == {"model": body}
        bundles.sweep([])


async def test_the_broker_killed_on_the_way(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    body = os.urandom(6_000_000)
    manifest = cloud.manifest({"model": body})
    killed = 0

    def kill_twice(ask: BlobAsk, data: bytes) -> bytes:
        nonlocal killed
        if killed < 2 and ask.offset > (killed + 1) * 1_000_000 and cloud.server.server.pid:
            killed += 1
            os.kill(cloud.server.server.pid, 9)
        return data

    cloud.spoil = kill_twice
    said = await fetch(bus, bundles, manifest)
    assert content(bundles, manifest) == {"model": body}
    assert killed == 2 and len(said) > 1
    # What was here when the cut came was not fetched again.
    assert sum(ask.length for ask in cloud.asked) < 1.7 * len(body)


@pytest.mark.parametrize("at", [0, 70_000, 99_999])
async def test_a_flipped_byte_is_refused(cloud: Cloud, bus: Bus, bundles: Bundles, at: int) -> None:
    manifest = cloud.manifest({"model": os.urandom(100_000)})

    def flip(ask: BlobAsk, data: bytes) -> bytes:
        spoiled = bytearray(data)
        if 0 <= at - ask.offset < len(data):
            spoiled[at - ask.offset] ^= 1
        return bytes(spoiled)

    cloud.spoil = flip
    error = await refusal(bus, bundles, manifest)
    assert error.threat is Threat.TAMPERED and "model: what came is not what was announced" in str(error)
    assert bundles.missing([manifest]) and not list(bundles._partial.iterdir())


async def test_another_size_than_announced_is_refused(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    body = os.urandom(5000)
    for size, threat in ((4999, Threat.ENDLESS), (5001, Threat.TAMPERED)):
        manifest = Manifest(files=[File(path="model", sha256=cloud.put(body), size_bytes=size)])
        error = await refusal(bus, bundles, manifest)
        assert error.threat is threat and f"has 5000 bytes; {size} were announced" in str(error)


async def test_more_than_asked_for_is_refused(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    manifest = cloud.manifest({"model": os.urandom(200_000)})
    cloud.spoil = lambda ask, data: data + b"x"
    assert (await refusal(bus, bundles, manifest)).threat is Threat.ENDLESS
    cloud.spoil = lambda ask, data: b""
    assert (await refusal(bus, bundles, manifest)).threat is Threat.SLOW


async def test_a_file_the_cloud_lacks_is_waited_for(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    body = b"late"
    manifest = cloud.manifest({"model": body})
    cloud.blobs.clear()
    fetching = asyncio.create_task(fetch(bus, bundles, manifest))
    while not cloud.asked:
        await asyncio.sleep(0.02)
    cloud.put(body)
    said = await fetching
    assert said[0] and said[-1] == ""


async def test_two_apps_that_want_one_file_fetch_it_once(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    body = os.urandom(2_000_000)
    manifest = cloud.manifest({"model": body})
    fetcher = Fetcher(bus, bundles, DEVICE)
    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*(fetcher.fetch(manifest.files, lambda _: None) for _ in range(3)))
    assert sum(ask.length for ask in cloud.asked) == len(body)


async def test_cancelled_while_room_is_taken_it_is_given_back(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(path="model", sha256="ab" * 32, size_bytes=1_000_000)
    loop, released = asyncio.get_running_loop(), asyncio.Event()
    taking, goes_on = threading.Event(), threading.Event()
    take, release = bundles.room.take, bundles.room.release

    def slowly(files: Sequence[File]) -> None:
        taking.set()
        goes_on.wait(LONG_S)
        take(files)

    def gave_back(files: Sequence[File]) -> None:
        release(files)
        loop.call_soon_threadsafe(released.set)

    monkeypatch.setattr(bundles.room, "take", slowly)
    monkeypatch.setattr(bundles.room, "release", gave_back)
    fetching = asyncio.create_task(Fetcher(None, bundles, DEVICE).fetch([file], print))  # type: ignore[arg-type]
    await asyncio.to_thread(taking.wait, LONG_S)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    goes_on.set()
    async with asyncio.timeout(LONG_S):
        await released.wait()
    assert bundles.partial(file).stat().st_blocks == 0


async def test_cancelled_at_once_it_leaves_what_came(cloud: Cloud, bus: Bus, bundles: Bundles) -> None:
    body = os.urandom(3_000_000)
    manifest = cloud.manifest({"model": body})
    fetching = asyncio.create_task(fetch(bus, bundles, manifest))
    while len(cloud.asked) < 3:
        await asyncio.sleep(0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    partial = bundles.partial(manifest.files[0]).read_bytes()
    assert partial and body.startswith(partial)
    await fetch(bus, bundles, manifest)
    assert content(bundles, manifest) == {"model": body}


class Wire:
    """A cloud whose answers come in any order, each after its share of a link's time; `short`: now and then less."""

    def __init__(self, body: bytes, rate_bytes_s: float, short: bool) -> None:
        self.body, self.rate_bytes_s, self.short = body, rate_bytes_s, short
        self.connected = True
        self.under_way = self.at_once = self.asked = 0
        self.waits: list[int] = []
        self._asks: list[int] = []
        self._chance = random.Random(1)

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        ask = BlobAsk.unpack(payload)
        self.under_way += ask.length
        self.asked += ask.length
        self._asks.append(ask.length)
        self.at_once = max(self.at_once, len(self._asks))
        self.waits.append(self.under_way)
        try:
            await asyncio.sleep(0.01 + self.under_way / self.rate_bytes_s * self._chance.uniform(0.8, 1))
        finally:
            self.under_way -= ask.length
            self._asks.remove(ask.length)
        length = ask.length // 2 if self.short and self._chance.random() < 0.1 else ask.length
        return pack_blob(self.body[ask.offset : ask.offset + max(1, length)], len(self.body))


@pytest.mark.parametrize(("rate_bytes_s", "most"), [(25_000.0, 16_000), (250_000.0, 64_000), (1e8, 1_000_000)])
@pytest.mark.parametrize("short", [False, True], ids=["whole", "short"])
def test_no_more_is_under_way_than_the_link_carries_in_a_moment(
    bundles: Bundles, rate_bytes_s: float, most: int, short: bool
) -> None:
    """An inference or an event asks at any time, and waits for what is under way."""
    body = os.urandom(8_000_000 if rate_bytes_s > 1e6 else 300_000)
    digest = hashlib.sha256(body).hexdigest()
    manifest = Manifest(files=[File(path="model", sha256=digest, size_bytes=len(body))])
    wire = Wire(body, rate_bytes_s, short)
    virtual.run(lambda: Fetcher(wire, bundles, DEVICE).fetch(manifest.files, lambda _: None))
    assert content(bundles, manifest) == {"model": body}
    # Once it knows the link.
    assert max(wire.waits[10:], default=0) <= most
    assert (wire.at_once > 2) == (rate_bytes_s > 1e6)
    assert short or wire.asked == len(body)


@pytest.mark.parametrize("after_bytes", [1, 500_000, 3_000_000, 7_999_999])
def test_killed_on_the_way_it_asks_again_for_what_was_under_way_at_most(bundles: Bundles, after_bytes: int) -> None:
    body = os.urandom(8_000_000)
    digest = hashlib.sha256(body).hexdigest()
    manifest = Manifest(files=[File(path="model", sha256=digest, size_bytes=len(body))])
    wire = Wire(body, 1e8, short=False)

    async def work() -> None:
        first = Fetcher(wire, bundles, DEVICE)
        task = asyncio.create_task(first.fetch(manifest.files, lambda _: None))
        while first.fetched_bytes < after_bytes and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert used(bundles.partial(manifest.files[0])) < first.fetched_bytes + 10_000, "room that was taken is back"
        await Fetcher(wire, bundles, DEVICE).fetch(manifest.files, lambda _: None)

    virtual.run(work)
    assert content(bundles, manifest) == {"model": body}
    assert wire.asked - len(body) <= 1_000_000


def used(place: Path) -> int:
    return place.stat().st_blocks * 512 if place.exists() else 0


@given(
    st.lists(st.floats(0.0001, 30), min_size=1, max_size=60),
    st.lists(st.booleans(), max_size=60),
)
def test_the_pace_stays_within_bounds(elapsed: list[float], failures: list[bool]) -> None:
    pace = Pace()
    for took, failed in zip(elapsed, failures, strict=False):
        if failed:
            pace.failed()
        else:
            pace.took(pace.bytes, took)
        assert 8_000 <= pace.bytes <= 1_000_000


@pytest.mark.parametrize(
    ("rate_bit_s", "rtt_s", "longest_s"), [(4e5, 0.16, 0.6), (2e6, 0.05, 0.35), (6e6, 0.03, 0.25), (1e9, 0.001, 0.2)]
)
def test_a_range_on_a_slow_link_is_short(rate_bit_s: float, rtt_s: float, longest_s: float) -> None:
    pace = Pace()
    spans = []
    for _ in range(40):
        spans.append(rtt_s + pace.bytes * 8 / rate_bit_s)
        pace.took(pace.bytes, spans[-1])
    assert max(spans[10:]) < longest_s
    fast = rate_bit_s / 8 * 0.1
    assert pace.bytes >= min(fast, 1_000_000) * 0.5
