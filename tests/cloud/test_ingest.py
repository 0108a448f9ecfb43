"""Ingest over a real broker: acknowledged is committed, delivered twice is stored once, refused is told why."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from marram.bus import subjects
from marram.bus.codec import pack, pack_batch, unpack_ack
from marram.cloud.server import Cloud
from marram.schema.errors import Invalid, Refused, Retryable
from marram.schema.event import Event, EventKind, Recorded

STREAM = "stream-0123456789"


async def test_an_acknowledged_batch_is_in_the_database(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]], tmp_path: Path
) -> None:
    bus = await device(cloud, "pi")
    ack = unpack_ack(await bus.request(subjects.events("pi"), pack_batch(STREAM, make_batch(STREAM, 1, 500)), 10))
    assert (ack.stored, ack.high) == (500, 500)
    # Another connection sees it at once: the acknowledgement came after the commit.
    other = sqlite3.connect(tmp_path / "cloud" / "marram.db")
    assert other.execute("SELECT count(*), min(device) FROM events").fetchone() == (500, "pi")
    other.close()


async def test_an_acknowledgement_says_how_long_the_cloud_took(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]]
) -> None:
    bus = await device(cloud, "pi")
    asks = [
        bus.request(subjects.events("pi"), pack_batch(STREAM, make_batch(STREAM, n, n + 99)), 20)
        for n in range(1, 2001, 100)
    ]
    begun_s = time.perf_counter()
    spans = [unpack_ack(reply).service_s for reply in await asyncio.gather(*asks)]
    assert all(0 < span_s < time.perf_counter() - begun_s for span_s in spans)
    # They wait for one another's commits, and that is the cloud's time, not the link's.
    assert sum(spans) > max(spans) * 2
    assert unpack_ack(await bus.request(subjects.events("pi"), pack_batch(STREAM, []), 10)).service_s > 0


async def test_a_batch_whose_acknowledgement_got_lost_is_stored_once(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]]
) -> None:
    bus = await device(cloud, "pi")
    payload = pack_batch(STREAM, make_batch(STREAM, 1, 100))
    for _ in range(3):
        await bus.publish(subjects.events("pi"), payload)  # asks for no answer: as good as an answer that never came
    ack = unpack_ack(await bus.request(subjects.events("pi"), payload, 10))
    assert (ack.stored, ack.high) in {(0, 100), (100, 100)}  # batches are handled side by side
    counts = cloud.state.counts(None)
    while counts.duplicates_seen < 300:
        await asyncio.sleep(0.02)
        counts = cloud.state.counts(None)
    assert (counts.stored, counts.distinct, counts.duplicates_seen) == (100, 100, 300)


async def test_many_batches_at_once_are_all_stored(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]]
) -> None:
    bus = await device(cloud, "pi")
    asks = [
        bus.request(subjects.events("pi"), pack_batch(STREAM, make_batch(STREAM, n, n + 49)), 20)
        for n in range(1, 1001, 50)
    ]
    acks = [unpack_ack(reply) for reply in await asyncio.gather(*asks)]
    assert sum(ack.stored for ack in acks) == 1000
    assert cloud.state.counts("pi").stored == 1000


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        pack([1, 2]),
        pack({"stream": "x", "events": []}),
        pack({"stream": STREAM}),
        pack({"stream": STREAM, "events": [[1, "no-such-kind", "a", 1.0, {}, None, None]]}),
        pack({"stream": STREAM, "events": [[-1, "result", "a", 1.0, {}, None, None]]}),
        pack({"stream": STREAM, "events": [[1, "result", "a", 1.0, "text", None, None]]}),
    ],
)
async def test_a_malformed_batch_is_refused_with_the_reason(cloud: Cloud, device: Any, payload: bytes) -> None:
    bus = await device(cloud, "pi")
    with pytest.raises(Invalid):
        await bus.request(subjects.events("pi"), payload, 10)
    assert cloud.state.counts(None).stored == 0
    # And the next one is taken.
    good = pack_batch(STREAM, [Recorded(STREAM, 1, Event(EventKind.RESULT, "a", 1.0))])
    assert unpack_ack(await bus.request(subjects.events("pi"), good, 10)).stored == 1


async def test_bodies_are_kept_as_objects_and_samples_get_a_row(cloud: Cloud, device: Any) -> None:
    bus = await device(cloud, "pi")
    records = [
        Recorded(STREAM, 1, Event(EventKind.SAMPLE, "gate", 1.0, {"reason": "unsure"}, b"jpeg" * 100, "image/jpeg")),
        Recorded(STREAM, 2, Event(EventKind.MESSAGE, "gate", 2.0, {"topic": "t"}, b"\x00payload")),
        Recorded(STREAM, 3, Event(EventKind.SAMPLE, "gate", 3.0, {}, b"", "application/x-tensor")),
    ]
    await bus.request(subjects.events("pi"), pack_batch(STREAM, records), 10)
    first, second = cloud.state.store.samples.list()
    assert cloud.state.sample_body(first.id) == (b"jpeg" * 100, "image/jpeg")
    assert cloud.state.sample_body(second.id) == (b"", "application/x-tensor")
    message = cloud.state.store.events.after(0)[1]
    assert message.sha256 is not None and cloud.state.objects.get(message.sha256) == b"\x00payload"


async def test_a_device_cannot_speak_as_another(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]]
) -> None:
    bus = await device(cloud, "pi")
    await device(cloud, "po")
    with pytest.raises(Refused):
        await bus.request(subjects.events("po"), pack_batch(STREAM, make_batch(STREAM, 1, 1)), 5)
    assert cloud.state.counts(None).stored == 0


async def test_a_locked_database_is_no_acknowledgement_and_loses_nothing(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]], tmp_path: Path
) -> None:
    bus = await device(cloud, "pi")
    payload = pack_batch(STREAM, make_batch(STREAM, 1, 10))
    other = sqlite3.connect(tmp_path / "cloud" / "marram.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Retryable):
        await bus.request(subjects.events("pi"), payload, 0.5)
    other.execute("ROLLBACK")
    other.close()
    await bus.request(subjects.events("pi"), payload, 20)
    assert cloud.state.counts(None).stored == 10


async def test_a_full_disk_is_no_acknowledgement_and_loses_nothing(cloud: Cloud, device: Any) -> None:
    bus = await device(cloud, "pi")
    fill = "x" * 4000
    records = [Recorded(STREAM, n, Event(EventKind.RESULT, "gate", 1.0, {"fill": fill})) for n in range(1, 301)]
    sample = [Recorded(STREAM, 301, Event(EventKind.SAMPLE, "gate", 1.0, {}, b"y" * 900_000, "image/jpeg"))]
    with _full_disk(800_000):
        for refused in (records, sample):
            with pytest.raises(Retryable):
                await bus.request(subjects.events("pi"), pack_batch(STREAM, refused), 20)
    assert cloud.state.counts(None).stored == 0
    for again in (records, sample):
        await bus.request(subjects.events("pi"), pack_batch(STREAM, again), 20)
    assert cloud.state.counts(None).stored == 301
    assert len(cloud.state.sample_body(1)[0]) == 900_000


async def test_health_is_ingest_really_answering(cloud: Cloud) -> None:
    checks = {check.name: check for check in await asyncio.to_thread(cloud.state.checks)}
    assert all(check.ok for check in checks.values()), checks
    assert set(checks) == {"database", "objects", "broker", "ingest"}
    await cloud.bus.close()
    checks = {check.name: check for check in await asyncio.to_thread(cloud.state.checks)}
    assert not checks["broker"].ok and not checks["ingest"].ok
    assert checks["database"].ok


async def test_health_tells_of_batches_that_were_not_stored(
    cloud: Cloud, device: Any, make_batch: Callable[..., list[Recorded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await device(cloud, "pi")
    subject, whole = subjects.events("pi"), pack_batch(STREAM, make_batch(STREAM, 1, 10))

    async def said() -> str:
        checks = {check.name: check for check in await asyncio.to_thread(cloud.state.checks)}
        return "" if checks["ingest"].ok else checks["ingest"].detail

    with pytest.raises(Invalid):
        await bus.request(subject, b"rubbish", 5)
    assert await said() == ""  # what a device does wrong is no fault of the cloud's
    big = [Recorded(STREAM, n, Event(EventKind.RESULT, "gate", 1.0, {"fill": "x" * 4000})) for n in range(11, 311)]
    with _full_disk(800_000), pytest.raises(Retryable):
        await bus.request(subject, pack_batch(STREAM, big), 20)
    # A small commit would find room again; the batch that was not stored is told all the same.
    assert "the last batch was not stored" in await said()
    await bus.request(subject, whole, 5)
    assert await said() == ""
    with _full_disk(800_000), pytest.raises(Retryable):
        await bus.request(subject, pack_batch(STREAM, big), 20)
    monkeypatch.setattr("marram.cloud.ingest.FAILED_KEEP_S", 0.0)
    assert await said() == ""  # long ago


async def test_health_fails_while_the_disk_is_full(cloud: Cloud, tmp_path: Path) -> None:
    await asyncio.to_thread(cloud.state.checks)
    log = tmp_path / "cloud" / "marram.db-wal"
    with _full_disk(log.stat().st_size):
        checks = {check.name: check.ok for check in await asyncio.to_thread(cloud.state.checks)}
    assert checks == {"database": False, "objects": True, "broker": True, "ingest": False}
    assert all(check.ok for check in await asyncio.to_thread(cloud.state.checks))


async def test_those_who_ask_for_health_at_once_share_one_look(cloud: Cloud) -> None:
    first = await asyncio.to_thread(cloud.state.checks, 60.0)
    assert await asyncio.to_thread(cloud.state.checks, 60.0) is first
    assert await asyncio.to_thread(cloud.state.checks) is not first


async def test_a_part_that_hangs_holds_one_who_asks_and_no_more(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()
    monkeypatch.setattr(cloud.state.objects, "check", lambda: (asked.set(), answered.wait(60), "fine")[2])
    monkeypatch.setattr("marram.cloud.state.CHECK_WAIT_S", 0.01)
    first = asyncio.create_task(asyncio.to_thread(cloud.state.checks))
    await asyncio.to_thread(asked.wait, 60)
    (told,) = await asyncio.to_thread(cloud.state.checks)
    assert not told.ok and not first.done()
    answered.set()
    assert all(check.ok for check in await first)


@contextmanager
def _full_disk(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow past `size_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
