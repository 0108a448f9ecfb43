"""The cloud's models as one `serving.contract.Answering`: whatever replica takes the question answers it, over the bus.

It remembers nothing but what the replicas said a moment ago: every second it asks all of them what they serve. So
an API process needs no replicas of its own, and one that is started, swapped or lost is seen within a look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.bus.inferences import InferReply
from marram.cloud.carried import answer_of, request_of, unpack_served
from marram.cloud.loops import for_ever
from marram.runtime.contract import Tensor
from marram.schema.errors import Invalid, MarramError, Missing, NotReady, Retryable
from marram.schema.model import ModelCard
from marram.serving.contract import Answer, Question, ServedModel

log = logging.getLogger(__name__)

_LOOK_S = 1.0
# How long all replicas together have to say what they serve, and how long none may say anything for it to be all.
_TELL_S, _QUIET_S = 1.0, 0.2
# Looks that nobody answers, one after the other, until what was served is forgotten.
_MOST_UNANSWERED = 10
# A replica that left so many unanswered is gone; what none serves after as many is not expected any more.
_MOST_LOOKS = 60
# A question that is not answered for so long is asked of another replica too, where one says nothing any more.
_SECOND_S = 2.0
# An answer takes so long at most where the asker does not say less.
_PATIENCE_S = 30.0
# A message's room, less what is around the tensors.
_ROOM_BYTES = MAX_MESSAGE_BYTES - 64_000
# Of one question's tensors: messages under way at a time.
_AT_ONCE = 4

Key = tuple[str, int]


@dataclass(slots=True)
class _Replica:
    serves: set[Key]
    unanswered: int = 0


class OverBus:
    """See the module's words. All methods on one event loop."""

    def __init__(self, bus: Bus, expected: Sequence[ModelCard] = ()) -> None:
        """`expected`: what replicas are going to serve: until one does, for a minute at most, it is being loaded."""
        self._bus = bus
        loading = [ServedModel(card, ready=False, reason="being loaded") for card in expected]
        self._expected = {(each.card.model, each.card.version): each for each in loading}
        self._served = dict(self._expected)
        self._looks = 0
        self._unanswered = 0
        # Each replica by its name: what it serves, and how many looks it left unanswered since it said so.
        self._replicas: dict[str, _Replica] = {}
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on it knows what is served."""
        self._task = asyncio.create_task(for_ever("replicas were not looked for", self._look, _LOOK_S), name="served")

    async def stop(self) -> None:
        """Any number of times."""
        tasks = [task for task in (self._task, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def models(self) -> Sequence[ServedModel]:
        """See `Answering.models`."""
        return tuple(self._served.values())

    async def infer(self, question: Question) -> Answer:
        """See `Answering.infer`."""
        try:
            async with asyncio.timeout(_PATIENCE_S if question.left_s is None else min(question.left_s, _PATIENCE_S)):
                return await self._infer(question, await self._version(question))
        except TimeoutError as error:
            raise Retryable("no answer in time", where=question.model) from error

    async def _version(self, question: Question) -> int:
        found = self._found(question)
        if found is None:
            await self._look_now()  # it may have come since
            found = self._found(question)
        if found is None:
            wanted = question.model if question.version is None else f"{question.model}@{question.version}"
            raise Missing(f"{wanted[:100]} is not served here", hint="marram cloud --serve NAME serves a model.")
        return found.card.version

    def _found(self, question: Question) -> ServedModel | None:
        fitting = [
            each
            for (name, version), each in self._served.items()
            if name == question.model and question.version in (None, version)
        ]
        return max(fitting, key=lambda each: (each.ready, each.card.version), default=None)

    async def _infer(self, question: Question, version: int) -> Answer:
        parts = _parts(question.tensors) if question.tensors else []
        if len(parts) < 2:
            return await self._ask(question, version)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(tensors: dict[str, Tensor]) -> Answer:
            async with gate:
                return await self._ask(replace(question, tensors=tensors), version)

        tasks = [asyncio.ensure_future(ask(dict(each))) for each in parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        outputs = {name: np.concatenate([each.outputs[name] for each in answers]) for name in answers[0].outputs}
        return replace(
            answers[0],
            outputs=outputs,
            queue_s=max(each.queue_s for each in answers),
            service_s=sum(each.service_s for each in answers),
        )

    async def _ask(self, question: Question, version: int) -> Answer:
        message = request_of(question).pack()
        if len(message) > MAX_MESSAGE_BYTES:
            raise Invalid(
                f"{len(message) / 1e6:.1f} MB are more than one inference may have here",
                where=question.model,
                hint=f"Send {MAX_MESSAGE_BYTES / 1e6:.0f} MB at most: a smaller picture.",
            )
        return answer_of(question, version, InferReply.unpack(await self._reply((question.model, version), message)))

    async def _reply(self, key: Key, message: bytes) -> bytes:
        """Of whichever replica takes it; while one of them says nothing, of one that does.

        A replica that hangs is still given its share by the broker, until whoever keeps it has ended it.
        """
        tasks = [asyncio.ensure_future(self._request(key, message, self._lively(key)))]
        try:
            while True:
                patience_s = _SECOND_S if len(tasks) == 1 else None
                done, _ = await asyncio.wait(tasks, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return done.pop().result()
                another = self._lively(key)
                if another is not None:
                    tasks.append(asyncio.ensure_future(self._request(key, message, another)))
        finally:
            for task in tasks:
                task.cancel()

    def _lively(self, key: Key) -> str | None:
        """One that answers, where not all do; None: whichever takes it."""
        if not any(each.unanswered for each in self._replicas.values()):
            return None
        lively = [name for name, each in self._replicas.items() if not each.unanswered and key in each.serves]
        return random.choice(lively) if lively else None

    async def _request(self, key: Key, message: bytes, replica: str | None) -> bytes:
        try:
            if replica is not None:
                with contextlib.suppress(NotReady):  # it has gone: whoever is there
                    return await self._bus.request(subjects.infer(*key, replica), message, _PATIENCE_S)
            return await self._bus.request(subjects.infer(*key), message, _PATIENCE_S)
        except NotReady as error:
            raise NotReady("no replica serves it now", where=key[0], hint="Try again in a moment.") from error

    # ------------------------------------------------------------ what is served

    async def _look_now(self) -> None:
        """One look for all who miss something now."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="served now")
        with contextlib.suppress(MarramError):
            await asyncio.shield(self._looking)

    async def _look(self) -> None:
        try:
            told = await self._bus.gather(subjects.SERVED, b"", _TELL_S, _QUIET_S)
        except NotReady:
            return  # the broker is away: what was served still is, as far as anybody knows
        except Retryable:
            told = []  # replicas are there, and too busy to say so
        self._looks += 1
        answers = [message for message in told if message]
        if answers:
            self._unanswered = 0
        elif self._unanswered < _MOST_UNANSWERED:
            # Who asks now is to ask again, and not told that there is no such model.
            self._unanswered += 1
            if told:  # an empty one is the broker's: there is no replica at all
                lost = "no replica is there now"
                self._served = {key: replace(each, ready=False, reason=lost) for key, each in self._served.items()}
            return
        for replica in self._replicas.values():
            replica.unanswered += 1
        served: dict[Key, ServedModel] = {}
        for message in answers:
            name, models = _understood(message)
            self._replicas[name] = _Replica({(each.card.model, each.card.version) for each in models if each.ready})
            for each in models:
                key = (each.card.model, each.card.version)
                if key not in served or each.ready > served[key].ready:
                    served[key] = each
        late = self._looks >= _MOST_LOOKS
        self._expected = {} if late else {key: each for key, each in self._expected.items() if key not in served}
        self._served = self._expected | served
        self._replicas = {name: each for name, each in self._replicas.items() if name and each.unanswered < _MOST_LOOKS}


def _understood(message: bytes) -> tuple[str, list[ServedModel]]:
    try:
        return unpack_served(message)
    except Invalid as error:
        log.warning("a replica said what it serves, in words of another version: %s", error)
        return "", []


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The same items in as few parts as have room in a message each, along the first dimension."""
    items = next(iter(tensors.values())).shape[0]
    each_bytes = math.ceil(sum(tensor.nbytes for tensor in tensors.values()) / items)
    step = max(1, _ROOM_BYTES // max(1, each_bytes))
    return [{name: each[at : at + step] for name, each in tensors.items()} for at in range(0, items, step)]
