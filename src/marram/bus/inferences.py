"""What travels on the bus of inferences, as msgpack: questions, replies, tensors, what replicas tell of their load.

Decoding trusts nothing: a malformed message raises Invalid, never anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from marram.bus.packing import pack, unpack, unpack_dict
from marram.schema.errors import Busy, Invalid, MarramError
from marram.schema.load import Load
from marram.schema.payload import Payload, RawTensor

# Of replicas, in one answer: more are not chosen among.
MAX_LOADS = 16
# A file has so many inputs, or outputs, at most.
MAX_TENSORS = 32


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference asked of a replica. `left_s`: after so long nobody needs the answer any more (None: no limit).

    `top`: how many classes to name, `min_confidence`: from which on; None: as the card and the replica have it.
    """

    payload: Payload
    left_s: float | None = None
    top: int | None = None
    min_confidence: float | None = None

    def pack(self) -> bytes:
        sent = self.payload
        document: dict[str, Any] = {
            "media": sent.media,
            "body": sent.body,
            "shape": list(sent.shape),
            "frame": sent.frame_size,
        }
        if sent.cut:
            document |= {"cut": sent.cut, "scale": sent.scale, "zero": sent.zero_point}
        if self.left_s is not None:
            document["left"] = self.left_s
        if self.top is not None:
            document["top"] = self.top
        if self.min_confidence is not None:
            document["least"] = self.min_confidence
        return pack(document)

    @classmethod
    def unpack(cls, message: bytes) -> InferRequest:
        """Raises Invalid."""
        document = unpack_dict(message)
        try:
            size, left_s = document["frame"], document.get("left")
            top, least = document.get("top"), document.get("least")
            payload = Payload(
                str(document["media"]),
                _bytes(document["body"]),
                tuple(int(n) for n in document["shape"]),
                None if size is None else (int(size[0]), int(size[1])),
                str(document.get("cut", "")),
                float(document.get("scale", 1.0)),
                int(document.get("zero", 0)),
            )
            return cls(
                payload,
                None if left_s is None else float(left_s),
                None if top is None else min(1000, max(1, int(top))),
                None if least is None else float(least),
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise Invalid(f"not an inference: {error!r}") from error


@dataclass(frozen=True, slots=True)
class InferReply:
    """A replica's answer: `result` or `error`, the seconds it queued and computed; `waiting`: others queued there.

    `busy`: nothing is wrong with the question, too many wait; `queue_s` is then how long this one would have waited.
    `replica`: its name, "" where it has none. `loads`: what it knows of those that serve this model, itself among them.
    `outputs`: the file's own, packed by `pack_tensors`, where its own tensors were sent. `kind`: of the error.
    """

    result: dict[str, Any] | None
    error: str | None
    queue_s: float
    service_s: float
    waiting: int = 0
    busy: bool = False
    replica: str = ""
    loads: tuple[Load, ...] = ()
    outputs: bytes = b""
    kind: str = ""

    @classmethod
    def refusal(cls, error: MarramError) -> InferReply:
        """The reply that says what was wrong."""
        busy = error if isinstance(error, Busy) else Busy("")
        refused = isinstance(error, Busy)
        return cls(None, str(error), busy.queue_s, 0.0, busy.waiting, busy=refused, kind=error.kind)

    def pack(self) -> bytes:
        document: dict[str, Any] = {
            "result": self.result,
            "error": self.error,
            "queue": self.queue_s,
            "service": self.service_s,
            "waiting": self.waiting,
            "busy": self.busy,
            "replica": self.replica,
            "loads": [_load_row(load) for load in self.loads[:MAX_LOADS]],
        }
        if self.outputs:
            document["outputs"] = self.outputs
        if self.kind:
            document["kind"] = self.kind
        return pack(document)

    @classmethod
    def unpack(cls, message: bytes) -> InferReply:
        """Raises Invalid."""
        document = unpack_dict(message)
        try:
            return cls(
                document["result"],
                document["error"],
                float(document["queue"]),
                float(document["service"]),
                int(document["waiting"]),
                bool(document.get("busy", False)),
                str(document.get("replica", "")),
                tuple(_load(row) for row in document.get("loads", ())[:MAX_LOADS]),
                _bytes(document.get("outputs", b"")),
                str(document.get("kind", "")),
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise Invalid(f"not a reply: {error!r}") from error


def pack_tensors(tensors: Iterable[RawTensor]) -> bytes:
    """A file's own tensors: the body of an `application/x-tensors`, or an answer to one."""
    return pack([[each.name, each.dtype, list(each.shape), each.body] for each in tensors])


def unpack_tensors(message: bytes) -> list[RawTensor]:
    """The inverse of `pack_tensors`. Whoever uses them looks whether bytes and shape fit together. Raises Invalid."""
    rows = unpack(message)
    try:
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_TENSORS:
            raise Invalid(f"not tensors: 1 to {MAX_TENSORS} of them belong here")
        return [
            RawTensor(str(name), str(dtype), tuple(int(length) for length in shape), _bytes(body))
            for name, dtype, shape, body in rows
        ]
    except (TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"not tensors: {error!r}") from error


def _bytes(value: Any) -> bytes:
    """Of what should be bytes; `bytes` itself makes room for a number of them."""
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} where bytes belong")
    return value


def pack_load(load: Load) -> bytes:
    """What a replica tells the others, on `load.<model>.<version>`."""
    return pack(_load_row(load))


def unpack_load(message: bytes) -> Load:
    """The inverse of `pack_load`. Raises Invalid."""
    try:
        return _load(unpack(message))
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise Invalid(f"not a load: {error!r}") from error


def _load_row(load: Load) -> list[Any]:
    return [load.replica, load.model, load.waiting, load.queue_s, load.service_s, load.age_s]


def _load(row: Any) -> Load:
    replica, model, waiting, queue_s, service_s, age_s = row
    return Load(str(replica), str(model), int(waiting), float(queue_s), float(service_s), float(age_s))
