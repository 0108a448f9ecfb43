"""What the protocol answers, whichever way it was asked: inferences, and what there is to ask.

A model is asked in one of two ways, and its metadata lists both:

- by the tensors of its file, any number of items in the first dimension;
- where it takes pictures, by `image` (BYTES [n]: encoded pictures, of any size) for `result` (BYTES [n]: each one's
  result, in JSON) and what is said most often of it: `label` and `confidence`, `value`, or `score`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from marram.runtime.contract import Tensor, TensorInfo
from marram.runtime.session import format_shape
from marram.schema.errors import Invalid, MarramError, Missing, NotReady
from marram.schema.model import Input, Task
from marram.schema.payload import Payload
from marram.schema.result import Result
from marram.serving.contract import Answer, Answering, Question, ServedModel
from marram.serving.oip.exchange import Asked, Given
from marram.serving.oip.tensors import BYTES, Named, datatype_of

IMAGE, RESULT = "image", "result"
# Pictures in one request, and how many of them are asked for at a time: the queue belongs to others, too.
MOST_PICTURES = 256
_AT_ONCE = 8
# What a result of each task says most often: name, datatype.
_SAID = {
    Task.CLASSIFICATION: (("label", BYTES), ("confidence", "FP32")),
    Task.DETECTION: (("label", BYTES), ("confidence", "FP32")),
    Task.REGRESSION: (("value", "FP32"),),
    Task.ANOMALY: (("score", "FP32"),),
}

_T = TypeVar("_T")
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor as metadata has it; -1 where any length is taken."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(slots=True)
class Counted:
    """What became of the inferences of one version; seconds are sums."""

    succeeded: int = 0
    failed: int = 0
    executed: int = 0
    took_s: float = 0.0
    failing_s: float = 0.0
    queue_s: float = 0.0
    service_s: float = 0.0
    last_s: float = 0.0  # Unix time


class Inference:
    """See the module's words. All on the event loop of `answering`."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._counted: dict[tuple[str, int], Counted] = {}

    # ------------------------------------------------------------ what there is

    def models(self) -> Sequence[ServedModel]:
        """Every version, by name and version."""
        return sorted(self._answering.models(), key=lambda each: (each.card.model, each.card.version))

    def ready(self) -> bool:
        """Whether every model is."""
        return all(each.ready for each in self._answering.models())

    def find(self, name: str, version: int | None) -> ServedModel:
        """That version; where none is named the newest, of those that are ready if any is. Raises Missing."""
        found = [each for each in self._answering.models() if each.card.model == name]
        fitting = [each for each in found if version in (None, each.card.version)]
        if fitting:
            return max(fitting, key=lambda each: (each.ready, each.card.version))
        if found:
            has = ", ".join(str(each.card.version) for each in sorted(found, key=lambda each: each.card.version))
            raise Missing(f"version {version} of model {name} is not served here; there is {has}")
        names = sorted({each.card.model for each in self._answering.models()})
        here = ", ".join(names[:20]) or "none"
        raise Missing(f"model {name[:80]!r} is not served here", hint=f"Served here: {here}.")

    def versions(self, name: str) -> list[int]:
        """Those of a model that are served, oldest first."""
        return sorted(each.card.version for each in self._answering.models() if each.card.model == name)

    def counted(self, model: ServedModel) -> Counted:
        """What became of its inferences."""
        return self._counted.get((model.card.model, model.card.version), Counted())

    # ------------------------------------------------------------ inferences

    async def infer(self, asked: Asked) -> Given:
        """Raises what `Answering.infer` does."""
        model = self.find(asked.model, asked.version)
        key = (model.card.model, model.card.version)
        if key not in self._counted and len(self._counted) > 4 * len(self._answering.models()) + 64:
            self._counted.clear()  # of versions long gone
        counted, began_s = self._counted.setdefault(key, Counted()), time.perf_counter()
        try:
            given = await (self._by_picture if _is_picture(asked.inputs) else self._by_tensors)(asked, model, counted)
        except MarramError:
            counted.failed += 1
            counted.failing_s += time.perf_counter() - began_s
            raise
        counted.succeeded += 1
        counted.took_s += time.perf_counter() - began_s
        counted.last_s = time.time()
        return given

    async def _by_tensors(self, asked: Asked, model: ServedModel, counted: Counted) -> Given:
        if not model.ready and not model.inputs:
            raise NotReady(
                model.reason or "is not loaded yet", where=model.card.reference, hint="Ask again in a moment."
            )
        wanted = _wanted(asked.outputs, [each.name for each in model.outputs], model)
        tensors = _matched(asked.inputs, model)
        question = Question(asked.model, asked.version, tensors=tensors, options=asked.options, left_s=asked.left_s)
        answer = _noted(counted, await self._answering.infer(question))
        outputs = [Named.of(name, answer.outputs[name]) for name in wanted or answer.outputs]
        return Given(answer.model, answer.version, outputs, asked.id)

    async def _by_picture(self, asked: Asked, model: ServedModel, counted: Counted) -> Given:
        if not _takes_pictures(model):
            raise Invalid(
                "takes no pictures", where=model.card.reference, hint=f"It takes {_said(_file_inputs(model))}."
            )
        said = _SAID[model.card.task]
        wanted = _wanted(asked.outputs, [RESULT, *(name for name, _ in said)], model)
        if len(asked.inputs) > 1:
            raise Invalid(f'"{IMAGE}" is asked alone, or the tensors of the file are', where=model.card.reference)
        pictures = asked.inputs[0].elements()
        if len(asked.inputs[0].shape) != 1 or len(pictures) > MOST_PICTURES:
            raise Invalid(f'"{IMAGE}" has the shape [n], n from 1 to {MOST_PICTURES}', where=model.card.reference)
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def ask(picture: bytes) -> Answer:
            payload = Payload(_media(picture), picture)
            # Without a version where none was named: the one found just now may give way to a newer one meanwhile.
            question = Question(asked.model, asked.version, payload, options=asked.options, left_s=asked.left_s)
            async with at_once:
                return _noted(counted, await self._answering.infer(question))

        if len(pictures) == 1:
            answers = [await ask(pictures[0])]
        else:
            answers = await _together([ask(picture) for picture in pictures])
        results = [answer.result for answer in answers if answer.result is not None]
        outputs = [_column(name, results) for name in wanted or (RESULT, *(name for name, _ in said))]
        return Given(answers[0].model, answers[0].version, outputs, asked.id)


async def _together(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """What all of them give; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _noted(counted: Counted, answer: Answer) -> Answer:
    counted.executed += 1
    counted.queue_s += answer.queue_s
    counted.service_s += answer.service_s
    return answer


# ---------------------------------------------------------------- what a model takes and gives


def inputs(model: ServedModel) -> list[Described]:
    """As metadata lists them."""
    listed = _file_inputs(model)
    return [*listed, Described(IMAGE, BYTES, (-1,), optional=True)] if _takes_pictures(model) else listed


def outputs(model: ServedModel) -> list[Described]:
    """As metadata lists them."""
    listed = [Described(info.name, "FP32", _any_number(info.shape)) for info in model.outputs]
    if not _takes_pictures(model):
        return listed
    said = [Described(name, datatype, (-1,)) for name, datatype in _SAID[model.card.task]]
    return [*listed, Described(RESULT, BYTES, (-1,)), *said]


def _file_inputs(model: ServedModel) -> list[Described]:
    return [Described(info.name, datatype_of(info), _any_number(info.shape)) for info in model.inputs]


def _any_number(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (-1, *shape[1:])


def _takes_pictures(model: ServedModel) -> bool:
    entry: Input = model.card.input
    return entry.kind == "image"


def _is_picture(sent: tuple[Named, ...]) -> bool:
    return any(each.name == IMAGE and each.datatype == BYTES for each in sent)


def _said(described: Sequence[Described]) -> str:
    return ", ".join(f'"{each.name}" ({each.datatype} {format_shape(each.shape)})' for each in described) or "nothing"


def _matched(sent: tuple[Named, ...], model: ServedModel) -> dict[str, Tensor]:
    """The tensors by name, each as the file takes it. Raises Invalid."""
    where, expected = model.card.reference, {info.name: info for info in model.inputs}
    if not sent:
        raise Invalid("a request needs inputs", where=where, hint=f"It takes {_said(inputs(model))}.")
    tensors = {each.name: each.array() for each in sent}
    if len(tensors) != len(sent):
        raise Invalid("an input was sent twice", where=where)
    if expected and tensors.keys() != expected.keys():
        named = ", ".join(f'"{each.name}" ({each.datatype})'[:80] for each in sent[:8])
        raise Invalid(f"takes {_said(inputs(model))}; got {named}", where=where)
    for name, info in expected.items():
        _check(tensors[name], info, f'{where}: input "{name}"')
    if len({tensor.shape[0] for tensor in tensors.values()}) > 1:
        raise Invalid("its inputs have different numbers of items in the first dimension", where=where)
    return tensors


def _check(tensor: Tensor, info: TensorInfo, where: str) -> None:
    shape = _any_number(info.shape)
    if len(tensor.shape) != len(shape) or any(
        wanted not in (-1, got) for wanted, got in zip(shape, tensor.shape, strict=True)
    ):
        raise Invalid(f"takes the shape {format_shape(shape)}, got {list(tensor.shape)}", where=where)
    taken = {np.dtype(info.dtype)}
    if info.scale is not None or info.dtype in ("float16", "float64"):
        taken.add(np.dtype(np.float32))
    if tensor.dtype.newbyteorder("=") not in taken:
        names = " or ".join(sorted(datatype_of(TensorInfo("", (), dtype.name)) for dtype in taken))
        raise Invalid(f"takes {names}, got {datatype_of(TensorInfo('', (), tensor.dtype.name))}", where=where)


def _wanted(asked: tuple[str, ...], there: list[str], model: ServedModel) -> tuple[str, ...]:
    """The outputs asked for. Raises Invalid for one that is not given this way."""
    for name in asked:
        if there and name not in there:
            raise Invalid(
                f"gives no output {name[:80]!r} for these inputs; it gives {', '.join(there)}",
                where=model.card.reference,
            )
    return asked


def _column(name: str, results: list[Result]) -> Named:
    """One output over all results."""
    shape = (len(results),)
    if name == RESULT:
        return Named(name, BYTES, shape, [_encode(each.to_dict()).encode() for each in results])
    if name == "label":
        return Named(name, BYTES, shape, [(each.label or "").encode() for each in results])
    values = [getattr(each, name) for each in results]
    return Named(name, "FP32", shape, np.array([0.0 if value is None else value for value in values], np.float32))


def _media(picture: bytes) -> str:
    """What a picture is, by how it begins; whoever decodes it looks for himself."""
    if picture[:2] == b"\xff\xd8":
        return "image/jpeg"
    return "image/png" if picture[:4] == b"\x89PNG" else "image/*"
