"""The seam of serving: who asks (the bus, HTTP, gRPC, a peer) and what answers (this process, another, a replica).

`Answering.infer` takes one question and gives one answer. Everything that speaks a protocol is written against it, so
the Open Inference Protocol answers alike from an engine in this process, from one behind shared memory, and from
replicas on the bus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from marram.runtime.contract import Tensor, TensorInfo
from marram.runtime.postprocess.contract import Options
from marram.schema.model import ModelCard
from marram.schema.payload import Payload
from marram.schema.result import Result

DEFAULT = Options()


@dataclass(frozen=True, slots=True)
class Question:
    """One inference. Either `payload` (one encoded input: the answer has a `result`), or `tensors` by name, as the
    model's file declares them but with any number of items in the first dimension (the answer has `outputs`).

    `version` None: the newest served. `left_s`: after so long from now nobody needs the answer any more.
    """

    model: str
    version: int | None = None
    payload: Payload | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    options: Options = DEFAULT
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`result` or `outputs` (by name, float32), as asked. `queue_s`: waited, `service_s`: decoding, engine and
    interpreting; both of this inference. `waiting`: how many others wait now.
    """

    model: str
    version: int
    result: Result | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    queue_s: float = 0.0
    service_s: float = 0.0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model version that is served, ready or not (`reason` says why not). Tensors as the file declares them."""

    card: ModelCard
    ready: bool
    inputs: Sequence[TensorInfo] = ()
    outputs: Sequence[TensorInfo] = ()
    engine: str = ""
    reason: str = ""


class Answering(Protocol):
    """What answers inferences. All on one event loop."""

    async def infer(self, question: Question) -> Answer:
        """Raises Missing (no such model here), Invalid (malformed input), Busy (refused early; with the time it would
        have waited), NotReady (being loaded, or away), Retryable (ended meanwhile), Permanent (the model failed).
        """
        ...

    def models(self) -> Sequence[ServedModel]:
        """Every version served."""
        ...
