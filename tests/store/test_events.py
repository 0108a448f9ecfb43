"""Exactly once, in the store: the key decides, whatever is delivered how often, in which order and by how many."""

from __future__ import annotations

import random
import threading

import pytest

from marram.schema.errors import Invalid
from marram.schema.event import Event, EventKind, Recorded
from marram.store import Body, EventFilter, Store

STREAM = "stream-0123456789"


def batch(first: int, last: int, stream: str = STREAM, kind: EventKind = EventKind.RESULT) -> list[Recorded]:
    return [Recorded(stream, n, Event(kind, "gate", 1000.0 + n, {"n": n})) for n in range(first, last + 1)]


def test_a_batch_is_stored_as_it_was_told(store: Store) -> None:
    event = Event(
        EventKind.ALERT, "gate", 12.5, {"label": "person", "box": [1, 2.5], "deep": {"ü": None}}, b"x", "image/jpeg"
    )
    assert store.events.append("pi", [Recorded(STREAM, 7, event)], {7: Body("a" * 64, 1)}, now_s=99.0) == 1
    [found] = store.events.after(0)
    assert (found.device, found.stream, found.sequence, found.kind) == ("pi", STREAM, 7, EventKind.ALERT)
    assert (found.app, found.time_s, found.received_s, found.media) == ("gate", 12.5, 99.0, "image/jpeg")
    assert found.data == event.data
    assert (found.sha256, found.size_bytes) == ("a" * 64, 1)


def test_what_is_delivered_again_is_not_stored_again(store: Store) -> None:
    assert store.events.append("pi", batch(1, 100)) == 100
    assert store.events.append("pi", batch(1, 100)) == 0
    assert store.events.append("pi", batch(51, 150)) == 50
    counts = store.events.counts()
    assert (counts.stored, counts.distinct, counts.duplicates) == (150, 150, 150)
    [stream] = counts.streams
    assert (stream.stored, stream.first_sequence, stream.last_sequence) == (150, 1, 150)
    totals = store.events.totals()
    assert (totals.by_kind, totals.stored, totals.duplicates) == ({"result": 150}, 150, 150)


def test_another_device_or_stream_with_the_same_numbers_is_another_event(store: Store) -> None:
    assert store.events.append("pi", batch(1, 5)) == 5
    assert store.events.append("pi", batch(1, 5, stream="stream-of-a-new-disk")) == 5
    assert store.events.append("po", batch(1, 5)) == 5
    assert store.events.count() == 15
    assert store.events.counts("po").stored == 5


def test_batches_in_any_order_from_many_threads_are_stored_once(store: Store) -> None:
    chunks = [batch(n, n + 9) for n in range(1, 200, 5)]  # each event is in two of them
    random.Random(1).shuffle(chunks)
    new: list[int] = []

    def deliver(mine: list[list[Recorded]]) -> None:
        new.extend(store.events.append("pi", each) for each in mine)

    threads = [threading.Thread(target=deliver, args=(chunks[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {r.sequence for chunk in chunks for r in chunk}
    stored = [e.sequence for e in store.events.after(0, limit=10_000)]
    assert sorted(stored) == sorted(expected)
    assert sum(new) == len(expected)


def test_a_tail_by_id_misses_nothing_while_many_write(store: Store) -> None:
    seen: list[int] = []
    done = threading.Event()

    def write(stream: str) -> None:
        for n in range(1, 60):
            store.events.append("pi", batch(n, n, stream=stream))

    def follow() -> None:
        last = 0
        while True:
            finished = done.is_set()
            for event in store.events.after(last, limit=7):
                seen.append(event.id)
                last = event.id
            if finished and last == store.events.last_id():
                return

    writers = [threading.Thread(target=write, args=(f"stream-of-writer-{n}",)) for n in range(3)]
    reader = threading.Thread(target=follow)
    for thread in [*writers, reader]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen == sorted(e.id for e in store.events.after(0, limit=10_000))
    assert len(seen) == 3 * 59


def test_queries_pick_by_device_app_kind_and_time(store: Store) -> None:
    store.events.append("pi", batch(1, 3), now_s=10)
    store.events.append("pi", batch(4, 4, kind=EventKind.ALERT), now_s=20)
    store.events.append("po", [Recorded(STREAM, 1, Event(EventKind.METRIC, "pump", 0))], now_s=30)
    events = store.events
    assert [e.sequence for e in events.newest(EventFilter(device="pi"), limit=2)] == [4, 3]
    assert [e.sequence for e in events.newest(EventFilter(device="pi"), before_id=events.last_id() - 1)] == [3, 2, 1]
    assert [e.app for e in events.newest(EventFilter(app="pump"))] == ["pump"]
    assert [e.sequence for e in events.after(0, EventFilter(kinds=(EventKind.ALERT,)))] == [4]
    assert events.count(EventFilter(since_s=20, until_s=30)) == 1
    assert events.apps() in (["gate", "pump"], ["pump", "gate"])
    assert events.counts().by_kind == {"result": 3, "alert": 1, "metric": 1}


def test_the_running_totals_are_what_a_count_finds(store: Store) -> None:
    kinds = [EventKind.RESULT, EventKind.ALERT, EventKind.METRIC, EventKind.SAMPLE]
    rng = random.Random(2)
    for _ in range(30):
        first = rng.randrange(1, 200)
        mixed = [
            Recorded(STREAM, n, Event(kinds[n % 4], "gate", 1.0)) for n in range(first, first + rng.randrange(1, 40))
        ]
        rng.shuffle(mixed)
        store.events.append(rng.choice(["pi", "po"]), mixed + mixed[:2])  # a number twice in one batch counts once
    counts, totals = store.events.counts(), store.events.totals()
    assert totals.by_kind == counts.by_kind
    assert (totals.stored, totals.duplicates) == (counts.stored, counts.duplicates)
    assert counts.stored == counts.distinct == sum(stream.stored for stream in counts.streams)


def test_samples_get_a_row_of_their_own_once(store: Store) -> None:
    record = Recorded(STREAM, 1, Event(EventKind.SAMPLE, "gate", 5.0, {"reason": "unsure"}, b"jpeg", "image/jpeg"))
    for _ in range(2):
        store.events.append("pi", [record, *batch(2, 3)], {1: Body("b" * 64, 4)})
    [sample] = store.samples.list()
    assert (sample.device, sample.app, sample.reason, sample.sha256, sample.size_bytes) == (
        "pi",
        "gate",
        "unsure",
        "b" * 64,
        4,
    )


def test_what_json_or_a_column_cannot_hold_is_kept_readable(store: Store) -> None:
    data = {"nan": float("nan"), "bytes": b"\x00\xff", "nul": "a\x00b", "list": [float("inf"), (1, 2)]}
    event = Event(EventKind.MESSAGE, "x" * 500, float("inf"), data, None, "m" * 500)
    assert store.events.append("pi", [Recorded(STREAM, 1, event)]) == 1
    [found] = store.events.after(0)
    assert found.data == {"nan": None, "bytes": {"base64": "AP8="}, "nul": "a\x00b", "list": [None, [1, 2]]}
    assert (found.app, found.time_s, found.media) == ("x" * 64, 0.0, "m" * 200)
    assert store.events.append("pi", [Recorded(STREAM, 2, Event(EventKind.RESULT, "a\x00b", 1))]) == 1
    assert store.events.after(found.id)[0].app == "ab"


def test_a_batch_is_of_one_stream(store: Store) -> None:
    with pytest.raises(Invalid):
        store.events.append("pi", [*batch(1, 1), *batch(1, 1, stream="another-stream")])
    assert store.events.append("pi", []) == 0
    assert store.events.count() == 0
