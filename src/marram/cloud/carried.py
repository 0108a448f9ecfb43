"""What inferences are on the bus and what they are to `serving.contract`: there and back, at both ends.

A replica makes a `Question` of what came and a reply of its `Answer`; who asks replicas does the reverse. What came is
believed nowhere: Invalid is raised for whatever is not what it says.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from marram.bus import subjects
from marram.bus.inferences import InferReply, InferRequest, pack_tensors, unpack_tensors
from marram.bus.packing import pack, unpack
from marram.runtime.contract import Tensor
from marram.runtime.postprocess.contract import Options
from marram.schema.errors import KINDS, Busy, Invalid, MarramError, Permanent
from marram.schema.payload import TENSORS, Payload, RawTensor
from marram.schema.result import Result
from marram.serving.contract import Answer, Answering, Question, ServedModel
from marram.serving.wire import served_in, served_out

log = logging.getLogger(__name__)

_DTYPES = {
    np.dtype(name).name: np.dtype(name) for name in ("?", *(f"<{kind}{size}" for kind in "iu" for size in "1248"))
} | {np.dtype(f"<f{size}").name: np.dtype(f"<f{size}") for size in "248"}


def question_of(model: str, version: int, request: InferRequest) -> Question:
    """What a replica was asked. Raises Invalid."""
    usual = Options()
    options = Options(usual.top if request.top is None else request.top, request.min_confidence)
    question = Question(model, version, options=options, left_s=request.left_s)
    if request.payload.media == TENSORS:
        return replace(question, tensors=_arrays(unpack_tensors(request.payload.body)))
    return replace(question, payload=request.payload)


def request_of(question: Question) -> InferRequest:
    """The reverse of `question_of`; whom it asks is the subject's to say."""
    payload = question.payload or Payload(TENSORS, pack_tensors(_raw(question.tensors)))
    return InferRequest(payload, question.left_s, question.options.top, question.options.min_confidence)


def reply_of(answer: Answer) -> InferReply:
    """An answer, to be given a name and loads."""
    return InferReply(
        None if answer.result is None else answer.result.to_dict(),
        None,
        answer.queue_s,
        answer.service_s,
        answer.waiting,
        outputs=pack_tensors(_raw(answer.outputs)) if answer.outputs else b"",
    )


def answer_of(question: Question, version: int, reply: InferReply) -> Answer:
    """What a reply says. Raises what the replica's end raised; Invalid for nonsense."""
    if reply.busy:
        raise Busy(reply.error or "busy", queue_s=reply.queue_s, waiting=reply.waiting)
    if reply.error is not None:
        raise KINDS.get(reply.kind, Permanent)(reply.error)
    answer = Answer(question.model, version, None, {}, reply.queue_s, reply.service_s, reply.waiting)
    if reply.outputs:
        return replace(answer, outputs=_arrays(unpack_tensors(reply.outputs)))
    try:
        return replace(answer, result=Result.from_dict(reply.result or {}))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise Invalid("a replica answered with what is no result", where=question.model) from error


async def replied(answering: Answering, model: str, version: int, message: bytes) -> InferReply:
    """A replica's reply to one inference off the bus; always one, to be given its name and loads."""
    try:
        return reply_of(await answering.infer(question_of(model, version, InferRequest.unpack(message))))
    except MarramError as error:
        return InferReply.refusal(error)
    except Exception as error:
        log.exception("an inference failed")
        return InferReply(None, f"the replica failed: {type(error).__name__}", 0.0, 0.0, kind=Permanent.kind)


def pack_served(replica: str, models: Sequence[ServedModel]) -> bytes:
    """What a replica serves, by its name. Labels stay there: they may be many, and nobody asks for them."""
    rows = [served_out(replace(each, card=each.card.model_copy(update={"labels": None}))) for each in models]
    return pack([replica, rows])


def unpack_served(message: bytes) -> tuple[str, list[ServedModel]]:
    """The inverse of `pack_served`. Raises Invalid."""
    try:
        replica, rows = unpack(message)
        served = [served_in(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:  # pydantic's is a ValueError
        raise Invalid("not what a replica serves") from error
    if not subjects.is_replica(replica):
        raise Invalid("not what a replica serves: it has no name")
    return replica, served


def _raw(tensors: Mapping[str, Tensor]) -> list[RawTensor]:
    return [
        RawTensor(name, each.dtype.name, each.shape, np.ascontiguousarray(each, _DTYPES[each.dtype.name]).tobytes())
        for name, each in tensors.items()
    ]


def _arrays(sent: Sequence[RawTensor]) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for each in sent:
        dtype = _DTYPES.get(each.dtype)
        if dtype is None or each.name in arrays or not 0 < len(each.shape) <= 16 or min(each.shape) < 1:
            raise Invalid("not a tensor: its name, type or shape is none", where=each.name[:80])
        if math.prod(each.shape) * dtype.itemsize != len(each.body):
            raise Invalid(f"{len(each.body)} bytes are no {dtype.name} {list(each.shape)}"[:200], where=each.name[:80])
        arrays[each.name] = np.frombuffer(each.body, dtype).reshape(each.shape)
    return arrays
