"""Several models in one process, each with its own queue: loaded, swapped, put aside and brought back while it answers.

`Host` is `serving.contract.Answering` by engines in this process. A model version is offered with `put`, which returns
once it is warm; from then on whoever names no version gets it, and `drop` of the older one lets that finish what it
began. So a swap is a `put` and a `drop`, and no question fails for it. The same version put again replaces itself so.

Where models together take more memory than they may, the least worth is put aside and loaded again when it is asked
for; whoever asks waits for that. Each cut of a model is a part of its own, loaded when it is first asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from marram.runtime.bundle import Bundle
from marram.schema.errors import Invalid, MarramError, Missing, Retryable
from marram.serving.batching import Speed
from marram.serving.contract import Answer, Question, ServedModel
from marram.serving.lanes import Job, Lanes
from marram.serving.parts import Limits as Limits
from marram.serving.parts import Part, Parts

Key = tuple[str, int]
DEFAULT = Limits()


@dataclass(eq=False, slots=True)
class _Offer:
    """One version: what is known of it, and its parts by cut."""

    bundle: Bundle
    parts: dict[str, Part]
    served: ServedModel


class Host:
    """See the module's words. All methods on one event loop; `close` at the end."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.limits = limits
        self._offers: dict[Key, _Offer] = {}
        self._newest: dict[str, _Offer] = {}
        self._models: tuple[ServedModel, ...] = ()
        self._asked: dict[Job, asyncio.Future[Answer]] = {}
        self._parts = Parts(limits, self._delivered)
        self._putting = asyncio.Lock()

    # ------------------------------------------------------------ answering

    async def infer(self, question: Question) -> Answer:
        """See `Answering.infer`."""
        part = self._part(question)
        lanes = part.lanes
        if lanes is None:
            began_s = time.monotonic()
            lanes = await self._parts.brought(part, question)
            if question.left_s is not None:
                question = replace(question, left_s=question.left_s - (time.monotonic() - began_s))
        self._parts.used(part)
        job = lanes.submit(question, self.limits.waiting)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[job] = future
        try:
            return await future
        except asyncio.CancelledError:
            lanes.withdraw(job)
            raise
        finally:
            del self._asked[job]

    def models(self) -> Sequence[ServedModel]:
        """See `Answering.models`."""
        return self._models

    def queue_s(self, name: str, version: int) -> float:
        """How long a question to that model would wait now; 0 for one that is not in memory."""
        lanes = self._lanes(name, version)
        return lanes.queue_s() if lanes is not None else 0.0

    def waiting(self, name: str, version: int) -> int:
        """How many questions to that model wait or run."""
        lanes = self._lanes(name, version)
        return lanes.waiting if lanes is not None else 0

    def busy(self, name: str, version: int) -> bool:
        """Whether every lane of that model is at work."""
        lanes = self._lanes(name, version)
        return lanes is not None and lanes.busy

    def service_s(self, name: str, version: int) -> float:
        """How long one question to that model takes once it has its turn, as far as is known; 0 where nothing is."""
        speed = self.speed(name, version)
        return speed.run_s(1) + speed.prepare_s if speed is not None else 0.0

    def speed(self, name: str, version: int) -> Speed | None:
        """What is known of how fast that model is; None for one that is not in memory."""
        lanes = self._lanes(name, version)
        return lanes.speed if lanes is not None else None

    # ------------------------------------------------------------ what is served

    async def put(self, bundle: Bundle | Path) -> ServedModel:
        """Serve this version; returns once it is warm. One of the same name and version answers until then.

        Raises Missing, Invalid (the bundle), NotReady (no engine, no room), Permanent (it does not run). Then what was
        served before still is.
        """
        opened = bundle if isinstance(bundle, Bundle) else await self._parts.in_thread(Bundle.open, bundle)
        card = opened.card
        key = (card.model, card.version)
        # On a device that serves what it runs, the fronts of cuts may lie, and no back.
        backs = [cut.name for cut in card.cuts if (opened.folder / cut.back).is_file()]
        parts = {cut: Part(opened, cut) for cut in ("", *backs)}
        offer = _Offer(opened, parts, ServedModel(card, False, reason="being loaded"))
        async with self._putting:
            before = self._offers.get(key)
            if before is None:
                self._offers[key] = offer
                self._changed()
            try:
                lanes = await self._parts.load(parts[""])
            except BaseException as error:
                if isinstance(error, MarramError):
                    offer.served = replace(offer.served, reason=str(error))
                elif before is None:
                    self._offers.pop(key, None)
                self._changed()
                raise
            session, engine = lanes.answerer.session, _engine(lanes)
            offer.served = ServedModel(card, True, session.inputs, session.outputs, engine)
            self._offers[key] = offer
            self._changed()
        if before is not None:
            await self._retire(before)
        return offer.served

    async def drop(self, name: str, version: int) -> None:
        """Serve it no more: it takes no more questions, and goes once those it has are answered. Not there: nothing."""
        offer = self._offers.pop((name, version), None)
        if offer is not None:
            self._changed()
            await self._retire(offer)

    async def close(self) -> None:
        """Answer what waits, then unload all."""
        for name, version in list(self._offers):
            await self.drop(name, version)
        self._parts.close()

    def _changed(self) -> None:
        self._newest = {}
        for (name, _), offer in sorted(self._offers.items()):
            if offer.served.ready or name not in self._newest:
                self._newest[name] = offer
        self._models = tuple(offer.served for _, offer in sorted(self._offers.items()))

    # ------------------------------------------------------------ finding

    def _part(self, question: Question) -> Part:
        if question.version is None:
            offer = self._newest.get(question.model)
        else:
            offer = self._offers.get((question.model, question.version))
        if offer is None:
            wanted = question.model if question.version is None else f"{question.model}@{question.version}"
            here = ", ".join(served.card.reference for served in self._models) or "nothing"
            raise Missing(f"{wanted[:100]} is not served here", hint=f"Served here: {here}.")
        if (question.payload is None) == (not question.tensors):
            raise Invalid("a question has either a payload or tensors", where=question.model)
        cut = question.payload.cut if question.payload is not None else ""
        part = offer.parts.get(cut)
        if part is None:
            raise Missing(f'no cut "{cut[:100]}"', where=offer.bundle.reference)
        return part

    def _lanes(self, name: str, version: int) -> Lanes | None:
        offer = self._offers.get((name, version))
        return offer.parts[""].lanes if offer is not None else None

    async def _retire(self, offer: _Offer) -> None:
        for part in offer.parts.values():
            await self._parts.retire(part)

    def _delivered(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            future = self._asked.get(job)
            if future is None or future.done():
                continue
            outcome = job.outcome
            if isinstance(outcome, Answer):
                future.set_result(outcome)
            else:
                future.set_exception(outcome or Retryable("it ended without an answer"))


def _engine(lanes: Lanes) -> str:
    variant = getattr(lanes.answerer, "variant", None)
    return str(variant.engine.value) if variant is not None else ""
