"""Attacks by a cloud that never comes to an end: too much of it, or too little at a time, in virtual time.

The victims are the device's own fetching of files and of signed metadata; the cloud answers each question as the attack
says, after as long as it says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marram.bus.codec import BlobAsk, MetadataAsk, pack_blob, pack_metadata
from marram.edge.bundles import Bundles
from marram.edge.fetch import Fetcher
from marram.edge.metadata import SignedMetadata
from marram.lab import virtual
from marram.lab.attacks.outcome import Outcome, attempt
from marram.schema.errors import Threat, Untrusted
from marram.schema.model import File

SIZE_BYTES = 400_000
# Whoever is held for longer than this (of virtual time) was not let go.
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Stream:
    """How the cloud answers: data and announced size for a range, after `delay_s`."""

    answer: Callable[[int, int], tuple[bytes, int]]
    threat: Threat
    delay_s: float = 0.01


STREAMS = {
    "more than was asked for": Stream(lambda offset, length: (bytes(length + 1), SIZE_BYTES), Threat.ENDLESS),
    "announced without end": Stream(lambda offset, length: (bytes(length), 10**15), Threat.ENDLESS),
    "one byte more than announced": Stream(lambda offset, length: (bytes(length), SIZE_BYTES + 1), Threat.ENDLESS),
    "nothing, again and again": Stream(lambda offset, length: (b"", SIZE_BYTES), Threat.SLOW, 1.0),
    "a byte each second": Stream(lambda offset, length: (b"x", SIZE_BYTES), Threat.SLOW, 1.0),
    "a byte just before the question would time out": Stream(lambda o, length: (b"x", SIZE_BYTES), Threat.SLOW, 19.0),
    "fast first, then a trickle": Stream(
        lambda offset, length: (bytes(length) if offset < SIZE_BYTES // 2 else b"x", SIZE_BYTES), Threat.SLOW, 2.0
    ),
}


class _Cloud:
    """Answers as the stream says; `edge.relay.Requester`."""

    connected = True

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        await asyncio.sleep(self._stream.delay_s)
        if subject.endswith(".metadata"):
            asked = MetadataAsk.unpack(payload)
            return pack_metadata(*self._stream.answer(asked.offset, asked.length))
        ask = BlobAsk.unpack(payload)
        return pack_blob(*self._stream.answer(ask.offset, ask.length))


def mount_all(folder: Path) -> Iterator[Outcome]:
    """Every stream, for a file and for metadata."""
    for number, (name, stream) in enumerate(STREAMS.items()):
        place = folder / str(number)
        yield _played(f"a file: {name}", stream, lambda s=stream, p=place: _file(s, p))  # type: ignore[misc]
        yield _played(f"metadata: {name}", stream, lambda s=stream: _metadata(s))  # type: ignore[misc]


def _played(name: str, stream: Stream, attack: Callable[[], Coroutine[Any, Any, None]]) -> Outcome:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await attack()

    def mounted() -> None:
        try:
            virtual.run(bounded)
        except TimeoutError:
            return  # held for ever: as good as accepted

    return attempt(name, stream.threat, mounted)


async def _metadata(stream: Stream) -> None:
    await SignedMetadata(_Cloud(stream), "victim").fetch("1.main.json", SIZE_BYTES)


async def _file(stream: Stream, folder: Path) -> None:
    bundles = Bundles(folder, reserve_bytes=0)
    bundles.make()
    file = File(path="weights", sha256=hashlib.sha256(b"other").hexdigest(), size_bytes=SIZE_BYTES)

    def waits(why: str) -> None:
        if why:
            raise Untrusted(why)  # a keeper would wait, and try again later

    await Fetcher(_Cloud(stream), bundles, "victim").fetch([file], waits)
