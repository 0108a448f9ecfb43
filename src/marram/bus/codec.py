"""What travels on the bus, as msgpack: batches of events, reports and desired states, files. (`inferences.py`: those.)

Decoding trusts nothing: a malformed message raises Invalid, never anything else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import msgpack
from pydantic import ValidationError

from marram.bus.packing import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from marram.bus.packing import pack as pack
from marram.bus.packing import unpack as unpack
from marram.bus.packing import unpack_dict as unpack_dict
from marram.schema.device import Desired, Reported
from marram.schema.errors import Invalid, Threat, Untrusted
from marram.schema.event import Event, EventKind, Recorded
from marram.schema.model import TRAVERSAL

# How deep what a device says may nest: somewhere beyond, those who read it later (JSON writers, people) give up.
MAX_DEPTH = 64

# Of what a device says of itself: a hundred apps that say all they may, and every package there is.
MAX_REPORT_BYTES = 1_000_000


def encode_event(event: Event) -> bytes:
    """One event, as the outbox keeps it. Raises Invalid where it holds more than plain data.

    NaN and infinity, which JSON and databases do not have, become null; keys become text.
    """
    try:
        try:
            json.dumps(event.data, allow_nan=False)  # the cheapest full check there is
            return _encode(event, event.data)
        except ValueError:
            return _encode(event, _plain(event.data))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid(f"an event ({event.kind}) holds more than plain data: {error}", where=event.app) from error


def decode_event(record: bytes) -> Event:
    """The inverse of `encode_event`. Raises Invalid."""
    row = unpack(record)
    if not isinstance(row, list) or len(row) != 6:
        raise Invalid("not an event of ours")
    return _event(row)


def _encode(event: Event, data: Any) -> bytes:
    record = pack([event.kind.value, event.app, event.time_s, data, event.body, event.media])
    try:
        decode_event(record)
    except Invalid as error:
        raise ValueError(str(error)) from error
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pack_batch(stream: str, records: list[Recorded]) -> bytes:
    """A batch of one outbox's events. Raises Invalid."""
    return pack_encoded(stream, [(r.sequence, encode_event(r.event)) for r in records])


def pack_encoded(stream: str, records: list[tuple[int, bytes]]) -> bytes:
    """Like `pack_batch`, of (sequence, `encode_event`) pairs, which need no decoding for it."""
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    packer.pack_map_header(2)
    packer.pack("stream")
    packer.pack(stream)
    packer.pack("events")
    packer.pack_array_header(len(records))
    parts = [packer.bytes()]
    for sequence, record in records:
        # An event is a list of 6 (0x96 …); in a batch its sequence comes first, in a list of 7 (0x97 …).
        parts += (b"\x97", msgpack.packb(sequence), record[1:])
    return b"".join(parts)


def unpack_batch(message: bytes) -> list[Recorded]:
    """The events of a batch. Raises Invalid where any part is malformed: a batch is taken whole or not at all."""
    document = unpack_dict(message)
    try:
        stream = document["stream"]
        if not isinstance(stream, str) or not 8 <= len(stream) <= 64:
            raise Invalid("a batch names its stream in 8 to 64 characters")
        return [Recorded(stream, _sequence(row[0]), _event(row[1:])) for row in document["events"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Invalid(f"not a batch of events: {error!r}") from error


def _sequence(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value < 2**63:
        raise Invalid(f"{value!r} is not a sequence number")
    return value


def _event(row: list[Any]) -> Event:
    kind, app, time_s, data, body, media = row
    if not (
        isinstance(app, str)
        and isinstance(time_s, int | float)
        and math.isfinite(time_s)
        and isinstance(data, dict)
        and isinstance(body, bytes | None)
        and isinstance(media, str | None)
    ):
        raise Invalid("an event of the batch has fields of wrong types")
    _check_depth(data)
    try:
        return Event(EventKind(kind), app, float(time_s), data, body, media)
    except (ValueError, OverflowError) as error:
        raise Invalid(f"not an event: {error}") from error


def _check_depth(data: dict[str, Any]) -> None:
    """Raises Invalid where `data` nests deeper than MAX_DEPTH."""
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for outer in level
            for part in (outer.values() if type(outer) is dict else outer)
            if type(part) is dict or type(part) is list
        ]
        if not level:
            return
    raise Invalid(f"data nested more than {MAX_DEPTH} levels deep")


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a batch, sent only after the transaction that holds all of it has committed.

    `stored`: how many of them are new (a batch sent twice has 0 the second time); `high`: the batch's highest sequence;
    `service_s`: how long the cloud took, so that the device can tell a slow link from a busy cloud.
    """

    stored: int
    high: int
    service_s: float = 0.0


def pack_ack(stored: int, high: int, service_s: float = 0.0) -> bytes:
    """See `Ack`."""
    return pack({"stored": stored, "high": high, "service": service_s})


def unpack_ack(message: bytes) -> Ack:
    """The inverse of `pack_ack`. Raises Invalid."""
    document = unpack_dict(message)
    stored, high = document.get("stored"), document.get("high")
    if type(stored) is not int or type(high) is not int or stored < 0 or high < 0:
        raise Invalid("not an acknowledgement: it needs the whole numbers stored and high")
    service_s = document.get("service", 0.0)
    return Ack(stored, high, max(0.0, service_s) if isinstance(service_s, float) else 0.0)


def pack_report(state: Reported) -> bytes:
    """What a device says of itself, on `d.<id>.report`."""
    return pack(state.model_dump(mode="json"))


def unpack_report(message: bytes) -> Reported:
    """The inverse of `pack_report`. Raises Invalid."""
    try:
        if len(message) > MAX_REPORT_BYTES:
            raise Invalid(f"a report of {len(message)} bytes is more than a device has to say")
        state = Reported.model_validate(unpack_dict(message))
        for app in state.apps:
            _check_depth(app.stats)
        state.model_dump_json()  # `stats` may hold anything; what cannot be shown to anybody is no report
    except ValidationError as error:
        raise Invalid(f"not a report: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise Invalid(f"not a report: {error}") from error
    return state


def pack_desired(desired: Desired | None, secrets: dict[str, int] | None = None) -> bytes:
    """The answer to a report: what the device should run, None where it knows that already.

    `secrets`: which ones it should have, each with its version.
    """
    answer = {"desired": None if desired is None else desired.model_dump(mode="json")}
    return pack(answer | {"secrets": secrets} if secrets else answer)


def unpack_secrets(message: bytes) -> dict[str, int]:
    """Which secrets the answer to a report names, each with its version. Raises Invalid."""
    named = unpack_dict(message).get("secrets") or {}
    if not isinstance(named, dict) or not all(type(version) is int for version in named.values()):
        raise Invalid("not an answer to a report: `secrets` is no mapping of names to versions")
    return named


def unpack_desired(message: bytes) -> Desired | None:
    """The inverse of `pack_desired`. Raises Invalid, Untrusted (TRAVERSAL)."""
    document = unpack_dict(message)
    try:
        return None if document["desired"] is None else Desired.model_validate(document["desired"])
    except KeyError as error:
        raise Invalid("not an answer to a report: it has no `desired`") from error
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)
        out = next((fault for fault in faults if fault["type"] == TRAVERSAL), None)
        if out is not None:
            raise Untrusted(f"{out['msg']}, in {out['loc']}", threat=Threat.TRAVERSAL) from error
        raise Invalid(f"not a desired state: {faults[0]['loc']}: {faults[0]['msg']}") from error


@dataclass(frozen=True, slots=True)
class BlobAsk:
    """One range of a file by content, on `d.<id>.blob`; the answer is `pack_blob`."""

    sha256: str
    offset: int
    length: int

    def pack(self) -> bytes:
        return pack({"digest": self.sha256, "offset": self.offset, "length": self.length})

    @classmethod
    def unpack(cls, message: bytes) -> BlobAsk:
        """Raises Invalid."""
        document = unpack_dict(message)
        digest, offset, length = document.get("digest"), document.get("offset"), document.get("length")
        if not isinstance(digest, str) or type(offset) is not int or type(length) is not int:
            raise Invalid("a blob is asked for by digest, offset and length")
        if offset < 0 or not 0 < length <= MAX_MESSAGE_BYTES:
            raise Invalid(f"{length} bytes from {offset} are no range")
        return cls(digest, offset, length)


@dataclass(frozen=True, slots=True)
class BenchNudge:
    """A nudge, on `d.<id>.desired`, that asks for more: measure the variants of this model (None: of all it runs)."""

    model: str | None = None

    def pack(self) -> bytes:
        return pack({"bench": self.model or ""})

    @classmethod
    def unpack(cls, message: bytes) -> BenchNudge:
        """Raises Invalid."""
        model = unpack_dict(message).get("bench")
        if not isinstance(model, str):
            raise Invalid("a nudge that asks for nothing known")
        return cls(model or None)


def pack_blob(data: bytes, size_bytes: int) -> bytes:
    """A range of a file (shorter, or empty, where the file ends), and how large the whole file is."""
    return pack({"data": data, "size": size_bytes})


def unpack_blob(message: bytes) -> tuple[bytes, int]:
    """The inverse of `pack_blob`: data, size of the whole file. Raises Invalid."""
    document = unpack_dict(message)
    data, size = document.get("data"), document.get("size")
    if not isinstance(data, bytes) or type(size) is not int or size < 0:
        raise Invalid("not a range of a file: it needs data and size")
    return data, size


@dataclass(frozen=True, slots=True)
class MetadataAsk:
    """One range of a signed metadata file by its name, on `d.<id>.metadata`; the answer is `pack_metadata`."""

    name: str
    offset: int
    length: int

    def pack(self) -> bytes:
        return pack({"name": self.name, "offset": self.offset, "length": self.length})

    @classmethod
    def unpack(cls, message: bytes) -> MetadataAsk:
        """Raises Invalid."""
        document = unpack_dict(message)
        name, offset, length = document.get("name"), document.get("offset"), document.get("length")
        if not isinstance(name, str) or type(offset) is not int or type(length) is not int:
            raise Invalid("signed metadata is asked for by name, offset and length")
        if offset < 0 or not 0 < length <= MAX_MESSAGE_BYTES:
            raise Invalid(f"{length} bytes from {offset} are no range")
        return cls(name, offset, length)


def pack_metadata(data: bytes, size_bytes: int | None) -> bytes:
    """A range of a metadata file, and how large all of it is; None: there is no such file."""
    return pack({"data": data, "size": size_bytes})


def unpack_metadata(message: bytes) -> tuple[bytes, int | None]:
    """The inverse of `pack_metadata`. Raises Invalid."""
    document = unpack_dict(message)
    data, size = document.get("data"), document.get("size")
    if not isinstance(data, bytes) or not (size is None or (type(size) is int and size >= 0)):
        raise Invalid("not a range of signed metadata: it needs data and size")
    return data, size
