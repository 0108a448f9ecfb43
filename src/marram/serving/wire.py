"""What goes between the process that is asked and the one that holds the engines: MessagePack, and bytes beside it.

A message is a document and one run of bytes: a payload's body, or tensors one after another, which lies in a slot of
shared memory where one is free and it has room, else in the message itself.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np

from marram.runtime.contract import Tensor, TensorInfo
from marram.runtime.postprocess.contract import Options
from marram.schema.errors import KINDS, Busy, MarramError, Retryable
from marram.schema.model import ModelCard
from marram.schema.payload import Payload
from marram.schema.result import Result
from marram.serving.contract import Answer, Question, ServedModel
from marram.serving.shm import Slots

_LENGTH = struct.Struct("<I")
# Longer messages are not ours.
_MOST_BYTES = 2**30

Document = dict[str, Any]
Parts = list[bytes | memoryview]


class Pipe:
    """Documents both ways over a stream of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, document: Document) -> None:
        """Send it; what the other end does not take yet is kept: it is bounded by how much may be asked at once."""
        message = msgpack.packb(document)
        self._writer.write(_LENGTH.pack(len(message)) + message)

    async def receive(self) -> Document | None:
        """The next; None where the other end is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > _MOST_BYTES:
                return None
            document: Document = msgpack.unpackb(await self._reader.readexactly(length))
            return document
        except (asyncio.IncompleteReadError, OSError):
            return None

    def close(self) -> None:
        self._writer.close()


def put_beside(document: Document, parts: Parts, slots: Slots, slot: int | None) -> None:
    """Put the bytes where `taken_from` finds them."""
    size_bytes = sum(len(part) for part in parts)
    if slot is not None and slots.write(slot, parts, size_bytes):
        document |= {"slot": slot, "length": size_bytes}
    else:
        document["bytes"] = b"".join(parts)


def taken_from(document: Document, slots: Slots) -> bytes:
    """A copy of the bytes beside the document."""
    if "bytes" in document:
        return bytes(document["bytes"])
    return slots.read(document["slot"], document["length"])


# ---------------------------------------------------------------- questions and answers


def question_out(question: Question) -> tuple[Document, Parts]:
    """The inverse of `question_in`."""
    document: Document = {
        "model": question.model,
        "version": question.version,
        "left": question.left_s,
        "top": question.options.top,
        "least": question.options.min_confidence,
    }
    sent = question.payload
    if sent is None:
        rows, parts = _tensors_out(question.tensors)
        return document | {"tensors": rows}, parts
    document["payload"] = [sent.media, sent.shape, sent.frame_size, sent.cut, sent.scale, sent.zero_point]
    return document, [sent.body]


def question_in(document: Document, body: bytes) -> Question:
    """What was asked."""
    question = Question(
        document["model"],
        document["version"],
        options=Options(document["top"], document["least"]),
        left_s=document["left"],
    )
    if "tensors" in document:
        return replace(question, tensors=_tensors_in(document["tensors"], body))
    media, shape, frame_size, cut, scale, zero_point = document["payload"]
    frame = None if frame_size is None else (frame_size[0], frame_size[1])
    return replace(question, payload=Payload(media, body, tuple(shape), frame, cut, scale, zero_point))


def answer_out(answer: Answer) -> tuple[Document, Parts]:
    """The inverse of `answer_in`."""
    rows, parts = _tensors_out(answer.outputs)
    return {
        "answer": [answer.model, answer.version, answer.queue_s, answer.service_s, answer.waiting],
        "result": None if answer.result is None else answer.result.to_dict(),
        "tensors": rows,
    }, parts


def answer_in(document: Document, body: bytes) -> Answer:
    """What was answered."""
    model, version, queue_s, service_s, waiting = document["answer"]
    result = None if document["result"] is None else Result.from_dict(document["result"])
    return Answer(model, version, result, _tensors_in(document["tensors"], body), queue_s, service_s, waiting)


def fault_out(error: MarramError) -> Document:
    """The inverse of `fault_in`."""
    document: Document = {"kind": error.kind, "fault": [error.what, error.where, error.hint]}
    return document | ({"queue": error.queue_s, "waiting": error.waiting} if isinstance(error, Busy) else {})


def fault_in(document: Document) -> MarramError:
    """What went wrong."""
    what, where, hint = document["fault"]
    kind = KINDS.get(document["kind"], Retryable)
    if issubclass(kind, Busy):
        return kind(what, queue_s=document["queue"], waiting=document["waiting"], where=where, hint=hint)
    return kind(what, where=where, hint=hint)


def served_out(served: ServedModel) -> Document:
    """The inverse of `served_in`."""
    return {
        "card": served.card.model_dump(mode="json"),
        "ready": served.ready,
        "inputs": [_info_out(info) for info in served.inputs],
        "outputs": [_info_out(info) for info in served.outputs],
        "engine": served.engine,
        "reason": served.reason,
    }


def served_in(document: Document) -> ServedModel:
    """What is served. Raises KeyError, TypeError, ValueError (also pydantic's) where it is another document."""
    return ServedModel(
        ModelCard.model_validate(document["card"]),
        document["ready"] is True,
        tuple(_info_in(row) for row in document["inputs"]),
        tuple(_info_in(row) for row in document["outputs"]),
        str(document["engine"]),
        str(document["reason"]),
    )


def _info_out(info: TensorInfo) -> list[Any]:
    return [info.name, info.shape, info.dtype, info.scale, info.zero_point]


def _info_in(row: list[Any]) -> TensorInfo:
    name, shape, dtype, scale, zero_point = row
    if not isinstance(shape, list) or not isinstance(zero_point, int) or not isinstance(scale, float | None):
        raise ValueError("not a tensor")
    return TensorInfo(str(name), tuple(int(length) for length in shape), str(dtype), scale, zero_point)


def _tensors_out(tensors: Mapping[str, Tensor]) -> tuple[list[Any], Parts]:
    plain = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    rows = [[name, tensor.dtype.str, tensor.shape] for name, tensor in plain.items()]
    return rows, [tensor.reshape(-1).view(np.uint8).data for tensor in plain.values()]


def _tensors_in(rows: list[Any], body: bytes) -> dict[str, Tensor]:
    tensors, at = {}, 0
    for name, dtype, shape in rows:
        count = int(np.prod(shape, dtype=np.int64))
        tensors[name] = np.frombuffer(body, np.dtype(dtype), count, at).reshape(shape)
        at += tensors[name].nbytes
    return tensors
