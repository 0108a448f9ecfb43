"""Brings signed metadata over the bus, in ranges: bounded in size and in slowness, and believed by nobody yet.

What it brings is verified where it is used (`trust/verifier.py`); here is only what could keep a device busy: a file
that does not end, one that comes byte by byte.
"""

from __future__ import annotations

from marram.bus import subjects
from marram.bus.codec import MetadataAsk, unpack_metadata
from marram.edge.relay import Requester
from marram.edge.trickle import Floor
from marram.schema.errors import Threat, Untrusted

# Most files fit; on a link of 20 kbit/s it takes 7 s.
_RANGE_BYTES = 16_384
_TIMEOUT_S = 20.0


class SignedMetadata:
    """One device's way to its cloud's metadata; `fetch` is an `edge.trustee.Metadata`."""

    def __init__(self, bus: Requester, device: str) -> None:
        self._bus, self._subject = bus, subjects.metadata(device)

    async def fetch(self, name: str, most_bytes: int) -> bytes | None:
        """A metadata file by name; None where the cloud has none of that name.

        Raises Untrusted (ENDLESS: larger than `most_bytes`, SLOW), Retryable (link away), Invalid (no answer of ours).
        """
        content, floor = bytearray(), Floor(name)
        size_bytes: int | None = None
        while size_bytes is None or len(content) < size_bytes:
            length = min(_RANGE_BYTES, most_bytes - len(content) + 1)
            ask = MetadataAsk(name, len(content), length)
            data, whole_bytes = unpack_metadata(await self._bus.request(self._subject, ask.pack(), _TIMEOUT_S))
            if whole_bytes is None and size_bytes is None:
                return None
            if whole_bytes is None or (size_bytes is not None and whole_bytes != size_bytes):
                raise Untrusted(f"{name} changed its size while it came", threat=Threat.TAMPERED)
            if whole_bytes > most_bytes or len(data) > length:
                raise Untrusted(
                    f"{name} is announced with {whole_bytes} bytes; {most_bytes} is the most it may have",
                    threat=Threat.ENDLESS,
                )
            size_bytes = whole_bytes
            content += data
            floor.came(len(data))
            if not data and len(content) < size_bytes:
                raise Untrusted(f"{name}: an answer without a byte", threat=Threat.SLOW)
        return bytes(content)
