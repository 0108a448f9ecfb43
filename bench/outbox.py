"""Durable events: into the outbox, and on through a broker into the cloud's database. `python -m bench.outbox`

- Enqueue: `emit` into an outbox until all of it is on disk, against what one writes first: SQLite with the same
  durability, one commit an event. Windows of both alternate; medians are compared.
- End to end: devices drain full outboxes over a real NATS server into the real ingest (a process of its own) and its
  SQLite, until the last event is acknowledged and gone from its outbox. Every event is then counted in the database.

`ratio` is the outbox's rate over the baseline's.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench._verdict import conclude
from marram.bus.client import Bus
from marram.bus.outbox import Outbox
from marram.bus.tls import TlsFiles
from marram.bus.uplink import Uplink
from marram.bus.writer import OutboxWriter
from marram.cloud.ingest import Ingest
from marram.lab.gatehouse import Gatehouse
from marram.schema.event import Event, EventKind
from marram.store import Objects, open_store

WINDOWS = 5
NAIVE_EVENTS = 1_000
EMIT_EVENTS = 20_000
DEVICES = 4
DEVICE_EVENTS = 10_000
GOAL_RATIO = 4.0  # where one commit an event reaches 5,000 a second (a fast disk), four times that is the goal below
GOAL_ENQUEUE_S = 20_000
GOAL_END_TO_END_S = 10_000


def event(number: int) -> Event:
    """A classifier's answer, as devices send it."""
    top = [{"label": "golden retriever", "confidence": 0.8125}, {"label": "tennis ball", "confidence": 0.0625}]
    data = {"frame": number, "label": "golden retriever", "confidence": 0.8125, "top": top, "place": "edge"}
    return Event(EventKind.RESULT, "gate-camera", 1.7e9 + number / 10, data)


def naive_per_s(path: Path) -> float:
    """One commit an event, each durable (WAL, synchronous=FULL)."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, kind, app, time_s, data)")
    events = [event(n) for n in range(NAIVE_EVENTS)]
    begun_s = time.perf_counter()
    for e in events:
        row = (e.kind.value, e.app, e.time_s, json.dumps(e.data))
        database.execute("INSERT INTO events (kind, app, time_s, data) VALUES (?, ?, ?, ?)", row)
    took_s = time.perf_counter() - begun_s
    database.close()
    return NAIVE_EVENTS / took_s


def enqueue_per_s(path: Path) -> float:
    """`emit` by one thread until `flush` says that all is on disk."""
    outbox = Outbox(path)
    writer = OutboxWriter(outbox)
    events = [event(n) for n in range(EMIT_EVENTS)]
    begun_s = time.perf_counter()
    for e in events:
        writer.emit(e)
    writer.flush()
    took_s = time.perf_counter() - begun_s
    assert outbox.depth() == EMIT_EVENTS
    writer.close()
    outbox.close()
    return EMIT_EVENTS / took_s


async def serve(folder: Path) -> None:
    """The cloud's side, in a process of its own: broker, ingest, SQLite. Ends with its standard input."""
    devices = [f"d{n}" for n in range(DEVICES)]
    server = Gatehouse(folder / "gatehouse", devices)
    server.start()
    bus = await server.connect()
    await bus.wait_connected(10)
    ingest = Ingest(bus, open_store(folder / "cloud.db"), Objects(folder / "objects"))
    await ingest.start()
    made = {device: server.identity(device) for device in devices}
    files = {device: [str(tls.identity), str(tls.authority)] for device, tls in made.items()}
    print(json.dumps({"url": server.url, "devices": files}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await bus.close()
    ingest.close()
    server.stop()


async def drain_per_s(url: str, devices: dict[str, list[str]], outboxes: dict[str, Outbox]) -> float:
    """Every device drains its full outbox; from the first connection to the last row acknowledged and deleted."""
    total = sum(outbox.depth() for outbox in outboxes.values())
    begun_s = time.perf_counter()
    buses = {device: await Bus.connect(url, device, tls=TlsFiles(*map(Path, devices[device]))) for device in outboxes}
    tasks = [
        asyncio.create_task(Uplink(bus, outboxes[device], device).run(), name=device) for device, bus in buses.items()
    ]
    while any(outbox.depth() for outbox in outboxes.values()):
        if failed := [task for task in tasks if task.done()]:
            failed[0].result()
        await asyncio.sleep(0.01)
    took_s = time.perf_counter() - begun_s
    for task in tasks:
        task.cancel()
    for bus in buses.values():
        await bus.close()
    return total / took_s


def end_to_end(folder: Path) -> dict[str, Any]:
    """Windows of draining, then the books: recorded, stored, lost, twice."""
    command = [sys.executable, "-m", "bench.outbox", "--serve", str(folder)]
    cloud = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert cloud.stdout is not None
    about = json.loads(cloud.stdout.readline())
    outboxes = {device: Outbox(folder / f"{device}.db") for device in about["devices"]}
    rates = []
    try:
        for window in range(WINDOWS):
            for outbox in outboxes.values():
                outbox.append([event(window * DEVICE_EVENTS + n) for n in range(DEVICE_EVENTS)])
            rates.append(asyncio.run(drain_per_s(about["url"], about["devices"], outboxes)))
            print(f"window {window + 1}   outbox → broker → ingest → SQLite   {rates[-1]:9,.0f} events/s")
    finally:
        cloud.communicate()
    recorded = WINDOWS * DEVICES * DEVICE_EVENTS
    with sqlite3.connect(folder / "cloud.db") as database:
        query = "SELECT count(*), count(DISTINCT device || stream || sequence) FROM events"
        stored, unique = database.execute(query).fetchone()
    database.close()
    for outbox in outboxes.values():
        outbox.close()
    return {
        "end_to_end_per_s": round(statistics.median(rates)),
        "devices": DEVICES,
        "recorded": recorded,
        "stored": stored,
        "lost": recorded - unique,
        "duplicated": stored - unique,
    }


def main() -> None:
    naive: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for window in range(WINDOWS):
            naive.append(naive_per_s(folder / f"naive-{window}.db"))
            ours.append(enqueue_per_s(folder / f"ours-{window}.db"))
            print(
                f"window {window + 1}   one commit an event {naive[-1]:9,.0f} events/s"
                f"   outbox {ours[-1]:9,.0f} events/s, all durable"
            )
        books = end_to_end(folder)
    ratio, enqueue_s = statistics.median(ours) / statistics.median(naive), statistics.median(ours)
    reached = (
        enqueue_s >= GOAL_ENQUEUE_S
        and books["end_to_end_per_s"] >= GOAL_END_TO_END_S
        and books["lost"] == books["duplicated"] == 0
    )
    figures = {
        "baseline": "one SQLite commit an event, WAL, synchronous=FULL",
        "baseline_per_s": round(statistics.median(naive)),
        "enqueue_per_s": round(enqueue_s),
        "goal_enqueue_per_s": GOAL_ENQUEUE_S,
        "goal_end_to_end_per_s": GOAL_END_TO_END_S,
        **books,
    }
    conclude("outbox", ratio, GOAL_RATIO, figures, also=reached)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(Path(sys.argv[2])))
    else:
        main()
