"""The worker's side of answering other devices: what the agent brought goes to the pipeline, its answer back.

There is always an answer, and it comes from another thread where it takes any time: the one that hears the agent never
waits for a model.
"""

from __future__ import annotations

from typing import Any

from marram.bus.inferences import InferReply, InferRequest
from marram.edge.channel import WorkerEnd
from marram.pipeline.guests import Guests
from marram.schema.errors import Busy, MarramError
from marram.schema.load import is_duration
from marram.schema.result import Result


def answer(message: dict[str, Any], guests: Guests | None, channel: WorkerEnd) -> None:
    """Take one `asked`. `guests`: None while the app does not run."""

    def answered(said: Result | MarramError, service_s: float) -> None:
        if isinstance(said, Result):
            reply = InferReply(said.to_dict(), None, 0.0, service_s)
        else:
            reply = InferReply.refusal(said)
        channel.send({"t": "answer", "id": message["id"], "payload": reply.pack()})

    if guests is None:
        answered(Busy("the app does not run now"), 0.0)
        return
    try:
        request = InferRequest.unpack(message["payload"])
    except MarramError as error:
        answered(error, 0.0)
        return
    name, version = message["model"]
    left_s = request.left_s if is_duration(request.left_s) else None
    guests.ask((name, version), request.payload, left_s, answered)
