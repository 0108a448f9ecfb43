"""The step that asks a model: each frame at the edge or in the cloud, wherever the policy expects the answer sooner.

`T = min(T_trans + T_proc_cloud, T_proc_edge)`, decided for each frame. A cloud that does not answer in time is answered
for by the edge, so it never costs a frame its answer. What may not leave the device (`raw:`) is no choice the policy
has: it is no way of the ask's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from marram.pipeline.audit import Audit
from marram.pipeline.contract import CloudInput, Frame, Placed, Reply, StepContext
from marram.pipeline.edge_pool import EdgePool, slowdown
from marram.pipeline.faults import words
from marram.pipeline.inputs import check_same_input, pixels_key, readings, readings_key
from marram.pipeline.offload import Offload
from marram.pipeline.runner import Slot
from marram.pipeline.shadow import Shadow
from marram.pipeline.stats import Stats
from marram.placement.contract import Ask, Decision, EdgeOutcome, Way
from marram.runtime import image as pictures
from marram.runtime.contract import Tensor
from marram.runtime.model import Model, Options, fit_for
from marram.schema.app import App, ClassifyStep, DetectStep, InferStep
from marram.schema.errors import Invalid, MarramError
from marram.schema.model import ModelCard
from marram.schema.payload import Payload
from marram.schema.result import Place, Result

# In flight to the cloud at most, besides what waits at the edge: beyond that a live source had better skip.
CLOUD_WINDOW = 8
# Where an app asks the cloud only, one request travels while one is answered; more would only queue.
CLOUD_ONLY_WINDOW = 2
# In an audit block the cloud has this long: long enough to measure a slow link, short enough to bear if it fails.
AUDIT_TIMEOUT_S = 3.0
# A JPEG of quality 85 has about this many bytes a pixel; the first guess, before one was made.
BYTES_A_PIXEL = 0.25
# A live frame is taken for the cloud once that takes no more than this times what the better place takes when idle.
FRESH = 1.2
_READY_POLL_S = 0.01


def load_models(spec: InferStep, context: StepContext) -> list[Model]:
    """One model instance for each of `parallel`.

    Raises Missing, NotReady (no such model, no engine for it), Invalid (wrong model file, or a model for another task).
    """
    where = f"{spec.verb}: {spec.model}"
    bundle = context.resolve(spec.model)
    check_task(spec, bundle.card, where)
    models: list[Model] = []
    try:
        for _ in range(spec.parallel):
            models.append(Model.load(bundle, variant=spec.variant))
    except MarramError:
        for model in models:
            model.close()
        raise
    return models


def check_task(spec: InferStep, card: ModelCard, where: str) -> None:
    """Raises Invalid where the model answers another question than the step asks."""
    if card.task is not spec.task:
        verb = {"classification": "classify", "detection": "detect", "regression": "estimate", "anomaly": "score"}
        raise Invalid(f"is a model for {card.task}", where=where, hint=f"Use the step `{verb[card.task]}`.")


def cloud_model(spec: InferStep, cards: Mapping[str, ModelCard]) -> ModelCard | None:
    """The card of the cloud model that `spec` names; None where it names none, or the cloud does not serve it (yet)."""
    if spec.cloud is None or spec.cloud not in cards:
        return None
    card = cards[spec.cloud]
    check_task(spec, card, f"cloud: {spec.cloud}")
    return card


def may_leave(app: App, frame: Frame) -> bool:
    """Whether the frame's input may leave the device, as the app's `raw` says."""
    return app.raw == "allowed" or (app.raw == "redacted" and frame.redacted)


class Infer:
    """See `runner.Asker`. `offload` and `cloud` are both None where only the edge answers.

    `shadow`: is offered what the edge answered.
    """

    def __init__(
        self,
        spec: InferStep,
        app: App,
        models: list[Model],
        stats: Stats,
        *,
        offload: Offload | None = None,
        cloud: ModelCard | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self._shadow = shadow
        self._spec, self._app, self._stats = spec, app, stats
        self._offload = offload if cloud is not None else None
        self._cloud = cloud if offload is not None else None
        self._options = Options(
            top=spec.top if isinstance(spec, ClassifyStep) else 5,
            min_confidence=spec.min_confidence if isinstance(spec, DetectStep) else None,
        )
        first = models[0]
        self._takes_picture = first.card.input.kind == "image"
        # Delays are learnt by model and shape; at the edge a picture's size counts: fitting it is part of the work.
        self._shape_of = pixels_key if self._takes_picture else readings_key
        self._edge = f"{first.bundle.reference}/{first.variant.name}"
        if self._cloud is not None:
            check_same_input(first.card, self._cloud)
        self._pool = EdgePool(models, slowdown())
        self._parallel = len(models)
        self._audit = Audit(spec.audit, time.monotonic())
        self.window = 2 * self._parallel + (CLOUD_WINDOW if self._cloud else 0)
        # What is at the edge and under way to the cloud now; who waits for either waits on this condition.
        self._changed = threading.Condition()
        self._at_edge = 0
        self._under_way = 0
        self._audited = 0  # of those, the ones of an audit block
        self._abandoned = False
        self._payload_bytes = self._first_guess()
        # Whether the last frame was allowed out, and its shape: what the next one is expected to be before it is seen.
        self._allowed = app.raw == "allowed"
        self._shape = "x".join(str(length) for length in first.card.input.size)

    # ------------------------------------------------ runner.Asker

    def start(self, slot: Slot) -> None:
        """Place one frame; see `runner.Asker`."""
        frame = slot.frame
        assert frame is not None
        if self._abandoned:
            self._give_up(slot)
            return
        self._shape = self._shape_of(frame)
        if self._offload is None or self._cloud is None:
            self._to_edge(slot, _ALWAYS_EDGE)
            return
        now_s = time.monotonic()
        self._allowed = may_leave(self._app, frame)
        block = self._block(now_s) if self._allowed else None
        if block is Place.EDGE:
            self._to_edge(slot, _AUDIT_EDGE)
            return
        if block is Place.CLOUD:
            self._wait_alone()
            self._to_cloud(slot, frame, _AUDIT_CLOUD, AUDIT_TIMEOUT_S)
            return
        decision = self._decide(self._offload)
        choice = _Choice(decision.predicted_s, decision.reason)
        if decision.place is Place.DROP:
            self._stats.count("dropped")
            slot.finish(None)
        elif decision.place is Place.CLOUD:
            self._to_cloud(slot, frame, choice, _wait_s(decision))
        else:
            self._to_edge(slot, choice)

    def wait_ready(self, timeout_s: float) -> bool:
        """See `runner.Asker`: the place that answers soonest is free: an edge instance, or the link."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            if self._ready(now_s):
                return True
            if now_s >= deadline_s:
                return False
            with self._changed:
                # The poll is for what no event tells: the clock itself moves predictions and audit blocks.
                self._changed.wait(min(_READY_POLL_S, deadline_s - now_s))

    def released(self, frame: Frame) -> None:
        """See `runner.Asker`: the answer is there for whoever wants it; the delay from capture ends here."""
        placed = frame.placed
        assert placed is not None
        frame.placed = placed = replace(placed, latency_s=time.monotonic() - frame.captured_s)
        self._stats.placed(placed, away=self._offload is not None and self._offload.away)

    def abandon(self) -> None:
        """See `runner.Asker`."""
        self._abandoned = True
        self._pool.abandon()
        if self._offload is not None:
            self._offload.abandon()

    def close(self) -> None:
        """See `runner.Asker`."""
        if self._shadow is not None:
            self._shadow.close()
        self._pool.close()

    # ------------------------------------------------ where

    def _ready(self, now_s: float) -> bool:
        if self._abandoned:
            return True
        edge_free = self._at_edge < self._parallel
        if self._offload is None or self._cloud is None or not self._allowed:
            return edge_free
        block = self._block(now_s)
        if block is not None:
            return edge_free if block is Place.EDGE else self._under_way == 0
        if self._audited:
            # Order is kept: a frame taken now would wait for the block's last one, and its delay would be the audit's.
            return False
        if self._spec.place == "cloud" and not self._offload.away:
            return self._under_way < CLOUD_ONLY_WINDOW
        decision = self._offload.decide(self._ask(now_s))
        if decision.place is Place.CLOUD:
            # Behind our own earlier work a frame only grows old; a newer one a little later has its answer no later.
            idle = not self._at_edge and not self._under_way
            return idle or decision.idle_s is None or decision.predicted_s <= FRESH * decision.idle_s
        return edge_free

    def _block(self, now_s: float) -> Place | None:
        assert self._offload is not None
        block = self._audit.block(now_s)
        return None if block is None or self._offload.away else block

    def _ask(self, now_s: float) -> Ask:
        assert self._cloud is not None
        ways = [Way(Place.EDGE, f"{self._edge} {self._shape}")]
        if self._allowed:
            ways.append(Way(Place.CLOUD, self._cloud_key(self._shape), self._payload_bytes))
        return Ask(
            now_s=now_s,
            ways=tuple(ways),
            edge_waiting=self._at_edge,
            edge_parallel=self._parallel,
            deadline_s=self._spec.deadline,
            objective=self._spec.place,
        )

    def _cloud_key(self, shape: str) -> str:
        """The cloud is sent pictures already fitted to its model: all of one shape."""
        assert self._cloud is not None
        return self._cloud.reference if self._cloud.input.kind == "image" else f"{self._cloud.reference} {shape}"

    def _give_up(self, slot: Slot) -> None:
        """The app ends before this frame was answered."""
        self._stats.count("dropped")
        slot.finish(None)

    def _decide(self, offload: Offload) -> Decision:
        """The policy's decision, once that can begin: the edge's queue has an end, for files too."""
        while True:
            decision = offload.decide(self._ask(time.monotonic()))
            if decision.place is not Place.EDGE or self._at_edge < 2 * self._parallel or self._abandoned:
                return decision
            with self._changed:
                self._changed.wait(_READY_POLL_S)

    def _wait_alone(self) -> None:
        """In an audit block of the cloud one request is under way at a time; each has its time limit, so this ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0 or self._abandoned)

    # ------------------------------------------------ the edge

    def _to_edge(self, slot: Slot, choice: _Choice) -> None:
        frame = slot.frame
        assert frame is not None
        with self._changed:
            self._at_edge += 1
        self._pool.put(
            lambda model: model.predict(self._input(frame), None, self._options),
            lambda result, service_s, failure: self._from_edge(slot, frame, choice, (result, service_s, failure)),
        )

    def _input(self, frame: Frame) -> Tensor:
        if self._takes_picture:
            if frame.image is None:
                raise Invalid(f"frame {frame.index} has no picture, which {self._edge} needs")
            return frame.image
        return readings(frame)

    def _from_edge(
        self, slot: Slot, frame: Frame, choice: _Choice, outcome: tuple[Result | None, float, Exception | None]
    ) -> None:
        result, service_s, failure = outcome
        with self._changed:
            self._at_edge -= 1
            self._changed.notify_all()
        if failure is not None:
            self._stats.error(words(failure))
            slot.finish(None)
            return
        if result is None:
            self._give_up(slot)
            return
        if self._offload is not None:
            key = f"{self._edge} {self._shape_of(frame)}"
            self._offload.learn(EdgeOutcome(time.monotonic(), key, service_s))
        frame.result = result
        frame.placed = choice.placed(Place.EDGE)
        self._stats.sure(result)
        # Steps after this one may put another picture into the frame.
        data = self._input(frame) if self._shadow is not None else None
        slot.finish(frame)
        if self._shadow is not None and data is not None:
            self._shadow.offer(data, result, idle=not self._at_edge)

    # ------------------------------------------------ the cloud

    def _to_cloud(self, slot: Slot, frame: Frame, choice: _Choice, wait_s: float) -> None:
        assert self._offload is not None and self._cloud is not None
        try:
            request = self._request(frame)
        except MarramError as error:
            self._stats.error(words(error))
            slot.finish(None)
            return
        choice = replace(choice, sent_bytes=len(request.payload.body))
        with self._changed:
            self._under_way += 1
            self._audited += choice.audit
        key = self._cloud_key(self._shape_of(frame))
        self._offload.ask(request, key, wait_s, partial(self._from_cloud, slot, frame, choice))

    def _request(self, frame: Frame) -> CloudInput:
        assert self._cloud is not None
        name, version = self._cloud.model, self._cloud.version
        if self._cloud.input.kind == "image":
            if frame.image is None:
                raise Invalid(f"frame {frame.index} has no picture, which {self._cloud.reference} needs")
            body = pictures.encode_jpeg(fit_for(self._cloud, frame.image))
            # Pictures of one source resemble each other: the next one will be about as large.
            self._payload_bytes += (len(body) - self._payload_bytes) // 4
            return CloudInput(name, version, Payload("image/jpeg", body, frame_size=frame.image.shape[:2]))
        tensor = np.ascontiguousarray(readings(frame), "<f4")
        self._payload_bytes = tensor.nbytes
        return CloudInput(name, version, Payload("application/x-tensor", tensor.tobytes(), tensor.shape))

    def _from_cloud(
        self,
        slot: Slot,
        frame: Frame,
        choice: _Choice,
        reply: Reply | None,
        timed_out: bool,
        fault: BaseException | None,
    ) -> None:
        with self._changed:
            self._under_way -= 1
            self._audited -= choice.audit
            self._changed.notify_all()
        if timed_out:
            self._stats.count("timeouts")
        if fault is not None:
            self._stats.error(f"asking the cloud failed: {words(fault)}")
        if reply is not None and reply.result is not None:
            frame.result = reply.result
            frame.placed = choice.placed(Place.CLOUD)
            slot.finish(frame)
        elif self._abandoned:
            self._give_up(slot)
        else:
            if choice.audit:
                self._audit.give_up(time.monotonic())
            self._to_edge(slot, replace(choice, fallback=True))

    def _first_guess(self) -> int:
        if self._cloud is None:
            return 0
        size = self._cloud.input.size
        return int(np.prod(size) * (BYTES_A_PIXEL if self._cloud.input.kind == "image" else 4))


@dataclass(frozen=True, slots=True)
class _Choice:
    """Why a frame goes where it goes; what `Placed` will say of it."""

    predicted_s: float | None
    reason: str
    audit: bool = False
    fallback: bool = False
    sent_bytes: int = 0

    def placed(self, place: Place) -> Placed:
        return Placed(place, 0.0, self.predicted_s, self.audit, self.fallback, self.reason, self.sent_bytes)


_ALWAYS_EDGE = _Choice(None, "the edge alone")
_AUDIT_EDGE = _Choice(None, "audit: all at the edge", audit=True)
_AUDIT_CLOUD = _Choice(None, "audit: all in the cloud", audit=True)


def _wait_s(decision: Decision) -> float:
    return decision.timeout_s if decision.timeout_s is not None else AUDIT_TIMEOUT_S
