"""A broker, the agent as a real process, and a cloud in a page: it says what to run and sees what came."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.bus import subjects
from marram.bus.client import Message
from marram.bus.codec import (
    BlobAsk,
    MetadataAsk,
    pack_ack,
    pack_blob,
    pack_desired,
    pack_metadata,
    unpack_batch,
    unpack_report,
)
from marram.edge.state import Credentials, Folder, write_atomic
from marram.lab.attacks.publisher import Publisher
from marram.lab.gatehouse import Gatehouse
from marram.schema.device import AppState, Desired, DesiredApp, Reported, ReportedApp
from marram.schema.errors import Missing
from marram.schema.event import Event, EventKind
from marram.schema.model import File, Manifest

DEVICE = "pi-1"
# What nobody may ever read in a device's words.
SECRET = "PRIVATE KEY"
LONG_S = 40.0


class Cloud:
    """The cloud's side of the bus, in memory. `spoil` may change a range before it leaves."""

    def __init__(self, folder: Path) -> None:
        self.server = Gatehouse(folder, [DEVICE])
        self.desired = Desired()
        self.blobs: dict[str, bytes] = {}
        self.reports: list[Reported] = []
        self.stored: Counter[tuple[str, int]] = Counter()
        self.events: list[Event] = []  # each record's once, as the cloud's database has them
        self.kinds: Counter[EventKind] = Counter()  # of `events`
        self.spoil: Callable[[BlobAsk, bytes], bytes] = lambda ask, data: data
        self.asked: list[BlobAsk] = []
        # What it signs; `serve` may be another's, or spoil it.
        self.publisher = Publisher()
        self.serve: Callable[[str, int], bytes | None] = self.publisher.serve
        self.named: list[str] = []
        self._news = asyncio.Event()

    async def open(self) -> None:
        await asyncio.to_thread(self.server.start)
        self.bus = await self.server.connect()
        await self.bus.subscribe(subjects.REPORTS, self._report, "fleet")
        await self.bus.subscribe(subjects.BLOBS, self._blob, "fleet", parallel=8)
        await self.bus.subscribe(subjects.METADATA, self._metadata, "fleet", parallel=8)
        await self.bus.subscribe(subjects.INGEST, self._ingest, "ingest")
        await self.bus.wait_connected(10)

    async def close(self) -> None:
        await self.bus.close()
        await asyncio.to_thread(self.server.stop)

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def manifest(self, files: dict[str, bytes]) -> Manifest:
        return Manifest(
            files=[File(path=path, sha256=self.put(body), size_bytes=len(body)) for path, body in files.items()]
        )

    def app(self, name: str, version: int, files: dict[str, bytes], **more: Any) -> DesiredApp:
        return DesiredApp(name=name, version=version, files=self.manifest(files), **more)

    async def want(self, *apps: DesiredApp, attempts: dict[str, int] | None = None) -> None:
        self.publisher.sign(apps)
        self.desired = Desired(version=self.desired.version + 1, apps=list(apps), attempts=attempts or {})
        await self.bus.publish(subjects.desired(DEVICE), b"")

    async def until(self, condition: Callable[[Reported], bool], timeout_s: float = LONG_S) -> Reported:
        """The first report from now on that fulfils `condition`."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._news.clear()
                    await self._news.wait()
                    if condition(self.reports[-1]):
                        return self.reports[-1]
        except TimeoutError:
            raise AssertionError(f"never so; last report: {self.reports[-1:]}") from None

    async def until_state(self, name: str, state: AppState, version: int | None = None) -> ReportedApp:
        report = await self.until(
            lambda r: any(a.name == name and a.state is state and version in (None, a.version) for a in r.apps)
        )
        return next(app for app in report.apps if app.name == name)

    async def until_stored(self, more: int) -> None:
        """Until `more` further events are stored."""
        goal = self.stored.total() + more
        async with asyncio.timeout(LONG_S):
            while self.stored.total() < goal:
                await asyncio.sleep(0.02)

    async def _report(self, message: Message) -> bytes:
        reported = unpack_report(message.payload)
        self.reports.append(reported)
        self._news.set()
        return pack_desired(self.desired if self.desired.version != reported.desired_version else None)

    async def _blob(self, message: Message) -> bytes:
        ask = BlobAsk.unpack(message.payload)
        self.asked.append(ask)
        if ask.sha256 not in self.blobs:
            raise Missing("no such file")
        body = self.blobs[ask.sha256]
        return pack_blob(self.spoil(ask, body[ask.offset : ask.offset + ask.length]), len(body))

    async def _metadata(self, message: Message) -> bytes:
        ask = MetadataAsk.unpack(message.payload)
        if not ask.offset:
            self.named.append(ask.name)
        content = self.serve(ask.name, ask.length)
        if content is None:
            return pack_metadata(b"", None)
        return pack_metadata(content[ask.offset : ask.offset + ask.length], len(content))

    async def _ingest(self, message: Message) -> bytes:
        batch = unpack_batch(message.payload)
        for record in batch:
            self.stored[(record.stream, record.sequence)] += 1
            if self.stored[(record.stream, record.sequence)] == 1:
                self.kinds[record.event.kind] += 1
                self.events.append(record.event)
        return pack_ack(len(batch), max((r.sequence for r in batch), default=0))


class Device:
    """An agent process on a folder of its own."""

    def __init__(self, path: Path, cloud: Cloud) -> None:
        self.folder = Folder(path)
        self.log = path.parent / f"{path.name}.log"
        self.process: asyncio.subprocess.Process | None = None
        self.folder.make()
        given, kept = cloud.server.identity(DEVICE), self.folder.identity
        write_atomic(kept.own, given.identity.read_bytes())
        write_atomic(kept.authority, given.authority.read_bytes())
        self.folder.save_credentials(Credentials(device=DEVICE, brokers=[cloud.server.url]))
        self.folder.identity.root.write_bytes(cloud.publisher.root)

    async def start(self, **environment: str) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "marram.edge", str(self.folder.path), "0.2",
                stderr=log, stdout=log, env={**os.environ, **environment},
            )  # fmt: skip

    async def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), LONG_S)

    def words(self) -> str:
        return self.log.read_text()

    def workers(self) -> list[int]:
        """The worker processes of this agent that run now."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if b"marram.edge.worker" in arguments and int(arguments[-2]) == self.process.pid:
                    found.append(int(entry.name))
        return sorted(found)


ROWS = b"x\n" + b"0\n1\n" * 25


def ticking(extra: str = "", every: str = "20 ms") -> dict[str, bytes]:
    """An app's files: a reading every 20 ms for ever, each second one an alert."""
    text = f"""
app: ticking
source: {{series: rows.csv, every: {every}, repeat: true}}
steps:
  - alert: reading.x > 0.5
send: alerts
files: [rows.csv]
{extra}
"""
    return {"app.yaml": text.encode(), "rows.csv": ROWS}


async def gone(pids: list[int]) -> None:
    """Until none of these processes is left."""
    deadline_s = time.monotonic() + LONG_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, f"still there: {pids}"
        await asyncio.sleep(0.02)
