"""How soon a new version runs, and how fast its files come: a real cloud and a real agent. `python -m bench.deploy`

- From `desired` set (the cloud is told to deploy) to `committed` on the device, a bundle of 5 MB: asked, verified,
  fetched, checked, installed, loaded, on trial for its second.
- A file of 20 MB as the agent fetches it (checked, on disk under its name), from a real fleet role over a real
  nats-server. The baseline is what one writes first on the same connection: one request after the other, 64 KB each, as
  NATS advises, appended to a file and its digest taken at the end. Rounds of both alternate; medians are compared.
- The same file with the agent killed half-way: bytes asked for twice.

`ratio` is the fetcher's rate over the baseline's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench._verdict import conclude
from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.codec import BlobAsk, unpack_blob
from marram.bus.http import CloudApi
from marram.edge import status
from marram.edge.agent import connect
from marram.edge.bundles import Bundles
from marram.edge.fetch import Fetcher
from marram.edge.state import Folder
from marram.lab.stage import Stage
from marram.schema.model import File, Manifest

BUNDLE_BYTES = 5_000_000
FILE_BYTES = 20_000_000
RANGE_BYTES = 1_000_000  # the most that is under way
NAIVE_BYTES = 64_000
ROUNDS = 5
GOAL_RATIO = 1.5
GOAL_COMMITTED_S = 3.0
GOAL_FETCH_MB_S = 60.0
APP = """\
app: bench
source: {{series: rows.csv, every: 20 ms, repeat: true}}
steps:
  - filter: "reading.x >= 0"
files: [rows.csv, {data}]
"""


def uploaded(api: CloudApi, folder: Path, name: str, size_bytes: int) -> tuple[str, Manifest]:
    """One more version of the app, with so much data: its page, and its files in the cloud."""
    place = folder / f"app-{name}"
    place.mkdir()
    data = f"{name}.bin"
    (place / data).write_bytes(os.urandom(size_bytes))
    (place / "rows.csv").write_text("x\n" + "1\n" * 50)
    return APP.format(data=data), api.put_folder(place, ["rows.csv", data])


def committed_s(stage: Stage, api: CloudApi, folder: Folder, number: int) -> float:
    """Seconds from the deployment of one more version of 5 MB to the agent saying that it is committed."""
    page, files = uploaded(api, stage.folder, f"data-{number}", BUNDLE_BYTES)
    begun_s = time.monotonic()
    api.deploy(page, files)

    def there() -> bool:
        apps = (status.ask(folder.path) or {"reported": {"apps": []}})["reported"]["apps"]
        return any(app["version"] == number + 1 and app["state"] == "committed" for app in apps)

    stage.until(f"version {number + 1}", there, every_s=0.01)
    return time.monotonic() - begun_s


class Counted:
    """A `Requester` that knows how much was asked for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.asked_bytes = 0

    @property
    def connected(self) -> bool:
        return self._bus.connected

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        self.asked_bytes += BlobAsk.unpack(payload).length
        return await self._bus.request(subject, payload, timeout_s)


async def fetched_s(bus: Bus, file: File, device: str, place: Path) -> float:
    """Seconds for one file, from asking to its name."""
    bundles = Bundles(place)
    bundles.make()
    begun_s = time.perf_counter()
    await Fetcher(bus, bundles, device).fetch([file], lambda _: None)
    took_s = time.perf_counter() - begun_s
    assert not bundles.lacks(file)
    return took_s


async def naive_s(bus: Bus, file: File, device: str, place: Path) -> float:
    """The same by one request after the other, its digest checked, on disk."""
    begun_s = time.perf_counter()
    with place.open("wb") as out:
        while out.tell() < file.size_bytes:
            ask = BlobAsk(file.sha256, out.tell(), min(NAIVE_BYTES, file.size_bytes - out.tell()))
            data, _ = unpack_blob(await bus.request(subjects.blob(device), ask.pack(), 20))
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
    with place.open("rb") as written:
        assert hashlib.file_digest(written, "sha256").hexdigest() == file.sha256
    return time.perf_counter() - begun_s


async def refetched_bytes(bus: Bus, file: File, device: str, place: Path) -> int:
    """What is asked for twice where the agent is gone half-way."""
    bundles, counted = Bundles(place), Counted(bus)
    bundles.make()
    first = Fetcher(counted, bundles, device)
    task = asyncio.create_task(first.fetch([file], lambda _: None))
    while first.fetched_bytes < file.size_bytes // 2:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await Fetcher(counted, bundles, device).fetch([file], lambda _: None)
    return counted.asked_bytes - file.size_bytes


async def fetching(folder: Folder, file: File, scratch: Path) -> dict[str, float]:
    """The figures of the 20 MB, over the device's own connection."""
    credentials = folder.credentials()
    device = credentials.device
    found: dict[str, list[float]] = {"naive": [], "ours": []}
    async with await connect(folder, credentials) as bus:
        await bus.wait_connected(20)
        for number in range(ROUNDS + 1):
            ours_s = await fetched_s(bus, file, device, scratch / f"ours-{number}")
            naive = await naive_s(bus, file, device, scratch / f"naive-{number}")
            if number:  # the first of each warms up
                found["ours"].append(ours_s)
                found["naive"].append(naive)
        again = await refetched_bytes(bus, file, device, scratch / "cut")
    rates = {name: FILE_BYTES / 1e6 / statistics.median(spans) for name, spans in found.items()}
    return {"fetch_mb_s": rates["ours"], "naive_mb_s": rates["naive"], "refetched_bytes": again}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, Stage(Path(temporary)) as stage:
        stage.cloud()
        home = stage.device("bench")
        api, folder = stage.api(), Folder(home / "marram" / "edge")
        spans = [committed_s(stage, api, folder, number) for number in range(ROUNDS)]
        for number, span_s in enumerate(spans):
            print(f"desired to committed     {span_s:.2f} s" + ("" if number else "   (first version)"))
        # From now on its connection is ours.
        stage.children["bench"].stop()
        page, files = uploaded(api, stage.folder, "large", FILE_BYTES)
        api.deploy(page, files)
        file = max(files.files, key=lambda each: each.size_bytes)
        scratch = Path(temporary) / "scratch"
        scratch.mkdir()
        figures = asyncio.run(fetching(folder, file, scratch))
        api.close()
    committed = statistics.median(spans)
    ours, naive = figures["fetch_mb_s"], figures["naive_mb_s"]
    print(f"20 MB fetched            {ours:.0f} MB/s (one request at a time: {naive:.0f})")
    print(f"asked for twice          {figures['refetched_bytes'] / 1e3:.0f} kB after a cut")
    reached = committed <= GOAL_COMMITTED_S and ours >= GOAL_FETCH_MB_S and figures["refetched_bytes"] <= RANGE_BYTES
    goals = {"goal_committed_s": GOAL_COMMITTED_S, "goal_fetch_mb_s": GOAL_FETCH_MB_S}
    rounded = {name: round(value, 1) for name, value in figures.items()}
    conclude("deploy", ours / naive, GOAL_RATIO, {"committed_s": round(committed, 3)} | rounded | goals, also=reached)


if __name__ == "__main__":
    main()
