"""Carries out what was decided for one frame: the edge, the cloud, the front here and the back there, or several.

Whatever goes wrong elsewhere, the edge answers: a cloud that is silent, refuses, is gone or says nonsense never costs a
frame its answer. Where the reply threatens to be late the edge starts too, and the first of both answers; who has not
begun by then does not run. It decides nothing but that; `pipeline/infer.py` does, by what it asks the policy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from marram.pipeline.attempt import Attempt
from marram.pipeline.contract import CloudInput, Reply
from marram.pipeline.edge_pool import EdgePool, Job, Ran
from marram.pipeline.escalation import Escalation
from marram.pipeline.faults import words
from marram.pipeline.limits import Limits, left_s
from marram.pipeline.offload import Answered, Ended, Errand, Offload
from marram.pipeline.plausible import check_answer
from marram.pipeline.shadow import Shadow
from marram.pipeline.stats import Stats
from marram.pipeline.ways import Ways
from marram.placement.contract import EdgeOutcome, Way
from marram.runtime.model import Options
from marram.schema.errors import Invalid, MarramError, Permanent
from marram.schema.model import ModelCard
from marram.schema.payload import Payload
from marram.schema.result import Place, Result


@dataclass(frozen=True, slots=True)
class Far:
    """What is not here of one step: the way there, the card of the cloud's model, if any, the cascade, if there is one.

    `peer`: the card of the edge's model, where other devices may be asked.
    """

    offload: Offload
    card: ModelCard | None
    escalation: Escalation | None = None
    peer: ModelCard | None = None


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A question about a frame that has an answer. `late`: is given a reply that came after its time.

    `hurried`: what is left of the frame's deadline is all the time there is.
    """

    way: Way
    limits: Limits
    answered: Answered
    late: Callable[[Reply], None]
    hurried: bool = True


class Carrier:
    """One step's. `sheds`: frames come from a live source, and what cannot be on time at the edge is given up there."""

    def __init__(
        self,
        pool: EdgePool,
        ways: Ways,
        stats: Stats,
        options: Options,
        *,
        far: Far | None,
        shadow: Shadow | None,
        sheds: bool,
    ) -> None:
        self._pool, self._ways, self._stats, self._options = pool, ways, stats, options
        self._far, self._shadow, self._sheds = far, shadow, sheds
        # What is at the edge and under way to the cloud now; who waits for either waits on this condition.
        self.changed = threading.Condition()
        self.at_edge = 0
        self.under_way = 0
        self.audited = 0  # of those, the ones of an audit block
        self.audit_failed = False  # the cloud did not answer in one
        self._abandoned = False
        # What becomes of the edge's answers, where they are not simply the frame's: see `pipeline/appeals.py`.
        self.judge: Callable[[Attempt, Result], None] | None = None

    def abandon(self) -> None:
        """The app ends: what has not begun is finished with nothing, soon."""
        self._abandoned = True
        self._pool.abandon()

    def drop(self, attempt: Attempt, *, late: bool = False) -> None:
        """The frame ends here, without an answer; `late`: because it could not have been on time."""
        if attempt.settle():
            self._stats.count("dropped")
            if late:
                self._stats.count("late")
            attempt.slot.finish(None)

    # ------------------------------------------------ the edge

    def edge(self, attempt: Attempt) -> bool:
        """The edge answers, or tries to; False where it has this frame already, or had it and failed."""
        job = Job(
            lambda seat: seat.model.predict(attempt.view.data, None, self._options),
            partial(self._from_edge, attempt),
            self._ways.edge_key(attempt.view.shape),
            attempt.until_s if self._sheds else None,
        )
        self._enter_edge()
        if not attempt.to_edge(job):
            self._leave_edge()
            return False
        self._pool.put(job)
        return True

    def _from_edge(self, attempt: Attempt, ran: Ran) -> None:
        self._leave_edge()
        if ran.value is None:
            self._not_from_edge(attempt, ran)
            return
        if self._far is not None:
            offload, key = self._far.offload, self._ways.edge_key(attempt.view.shape)
            offload.learn(EdgeOutcome(offload.now_s(), key, ran.service_s))
        seen: Result = ran.value
        self._stats.sure(seen)
        if self.judge is not None:
            self.judge(attempt, seen)
        else:
            self.answer(attempt, seen, Place.EDGE)
        if self._shadow is not None:
            self._shadow.offer(attempt.view.data, seen, idle=not self.at_edge)

    def renew(self, attempt: Attempt) -> None:
        """Run a frame that is answered elsewhere here too, for the time it takes; not where there is work, or soon."""
        key = self._ways.edge_key(attempt.view.shape)
        job = Job(
            lambda seat: seat.model.predict(attempt.view.data, None, self._options), partial(self._renewed, key), key
        )
        self._enter_edge()
        if not self._pool.offer(job):
            self._leave_edge()

    def _renewed(self, key: str, ran: Ran) -> None:
        self._leave_edge()
        if ran.value is not None and self._far is not None:
            self._far.offload.learn(EdgeOutcome(self._far.offload.now_s(), key, ran.service_s))

    def _not_from_edge(self, attempt: Attempt, ran: Ran) -> None:
        """It failed, or was given up. Where the cloud is asked too, that may still answer."""
        if ran.failure is not None and not attempt.settled:
            self._stats.error(words(ran.failure))
        if not attempt.without_edge():
            return
        if ran.failure is None:
            self.drop(attempt, late=ran.late)
        elif attempt.settle():
            attempt.slot.finish(None)

    # ------------------------------------------------ the front here, the back there

    def split(self, attempt: Attempt, way: Way, limits: Limits) -> None:
        """The front runs here, what it gives is sent. `limits` count from now."""
        self._front(attempt, way, partial(self._from_front, attempt, way, limits, time.monotonic()))

    def _front(self, attempt: Attempt, way: Way, ran: Callable[[Ran], None], *, hurried: bool = True) -> None:
        assert way.front is not None
        name = self._ways.cut(way).name
        until_s = attempt.until_s if self._sheds and hurried else None
        self._enter_edge()
        self._pool.put(Job(lambda seat: seat.fronts[name].run(attempt.view.data), ran, way.front, until_s))

    def _from_front(self, attempt: Attempt, way: Way, limits: Limits, begun_s: float, ran: Ran) -> None:
        self._leave_edge()
        if ran.value is None and ran.failure is None:
            self.drop(attempt, late=ran.late)
            return
        try:
            payload = self._crossing(attempt, way, ran)
        except MarramError as error:  # whatever the front does, the whole model at the edge answers
            self._stats.error(words(error))
            self._fall_back(attempt)
            return
        self._send(attempt, way, payload, limits.after(time.monotonic() - begun_s))

    def _crossing(self, attempt: Attempt, way: Way, ran: Ran) -> Payload:
        """What is sent of what the front gave. Raises Permanent where it gave nothing that can be."""
        try:
            if ran.failure is not None:
                raise ran.failure
            payload = self._ways.encode_crossing(way, attempt.view, ran.value)
        except Exception as error:
            raise Permanent(f"the front of {way.codec} failed: {words(error)}") from error
        assert self._far is not None and way.front is not None
        offload = self._far.offload
        offload.learn(EdgeOutcome(offload.now_s(), way.front, ran.service_s))
        return payload

    # ------------------------------------------------ the cloud

    def cloud(self, attempt: Attempt, way: Way, limits: Limits) -> None:
        """The cloud answers; the edge where it does not in time, or where what it was to be sent cannot be made."""
        try:
            payload = self._ways.encode(way, attempt.view)
        except MarramError as error:
            self._stats.error(words(error))
            self._fall_back(attempt)
            return
        self._send(attempt, way, payload, limits)

    def _send(self, attempt: Attempt, way: Way, payload: Payload, limits: Limits) -> None:
        # Past the deadline a reply is learnt from, and answers nothing.
        limits = limits.within(left_s(attempt.until_s))
        if limits.wait_s <= 0:
            self._fall_back(attempt)
            return
        attempt.choice = choice = replace(attempt.choice, sent_bytes=len(payload.body))
        attempt.to_cloud()
        with self.changed:
            self.under_way += 1
            self.audited += choice.audit
        self._ask(
            way,
            payload,
            limits,
            partial(self._from_cloud, attempt, way.place),
            hedge=partial(self._hedge, attempt) if limits.hedge_s is not None else None,
        )

    def inquire(self, attempt: Attempt, inquiry: Inquiry) -> None:
        """Ask the cloud about a frame that the edge answered already; `inquiry.answered` is called once."""
        way = inquiry.way
        if way.place is Place.SPLIT:
            crossed = partial(self._crossed, attempt, inquiry, time.monotonic())
            self._front(attempt, way, crossed, hurried=inquiry.hurried)
        else:
            self._put(attempt, inquiry, partial(self._ways.encode, way, attempt.view))

    def _crossed(self, attempt: Attempt, inquiry: Inquiry, begun_s: float, ran: Ran) -> None:
        self._leave_edge()
        if ran.value is None and ran.failure is None:
            inquiry.answered(Ended(timed_out=ran.late))
            return
        left = replace(inquiry, limits=inquiry.limits.after(time.monotonic() - begun_s))
        self._put(attempt, left, partial(self._crossing, attempt, inquiry.way, ran))

    def _put(self, attempt: Attempt, inquiry: Inquiry, encode: Callable[[], Payload]) -> None:
        try:
            payload = encode()  # too late or not: what a front took is learnt by it
        except MarramError as error:
            inquiry.answered(Ended(fault=error))
            return
        limits = inquiry.limits.within(left_s(attempt.until_s) if inquiry.hurried else None)
        if limits.wait_s <= 0:
            inquiry.answered(Ended(timed_out=True))
            return
        if inquiry.hurried:
            attempt.choice = replace(attempt.choice, sent_bytes=len(payload.body))
        with self.changed:
            self.under_way += 1
        self._ask(inquiry.way, payload, limits, partial(self._inquired, inquiry), late=inquiry.late)

    def _inquired(self, inquiry: Inquiry, ended: Ended) -> None:
        with self.changed:
            self.under_way -= 1
            self.changed.notify_all()
        inquiry.answered(ended)

    def missed(self, ended: Ended, *, awaited: bool = True) -> None:
        """Count why the cloud did not answer; that time ran out only where anybody waited."""
        if ended.timed_out and awaited:
            self._stats.count("timeouts")
        if ended.fault is not None:
            self._stats.error(f"asking the cloud failed: {words(ended.fault)}")

    def _ask(
        self,
        way: Way,
        payload: Payload,
        limits: Limits,
        answered: Answered,
        *,
        hedge: Callable[[], None] | None = None,
        late: Callable[[Reply], None] | None = None,
    ) -> None:
        assert self._far is not None
        card = self._ways.card(way)
        # What the reply has left at the replica: afterwards nobody needs it any more.
        among = way.place is Place.PEER
        request = CloudInput(card.model, card.version, payload, limits.replica, limits.wait_s, among)
        check = partial(self._check, card)
        errand = Errand(request, way.key, limits.wait_s, answered, check, limits.hedge_s, hedge, late)
        self._far.offload.ask(errand)

    def _check(self, card: ModelCard, reply: Reply) -> None:
        try:
            check_answer(reply.result, card.task)
        except Invalid:
            self._stats.count("unusable")
            raise

    def _from_cloud(self, attempt: Attempt, place: Place, ended: Ended) -> None:
        with self.changed:
            self.under_way -= 1
            self.audited -= attempt.choice.audit
            self.changed.notify_all()
        if ended.reply is not None and ended.reply.result is not None:
            self.answer(attempt, ended.reply.result, place)
            return
        self.missed(ended, awaited=not attempt.settled)
        if attempt.choice.audit:
            self.audit_failed = True
        if attempt.without_cloud():
            self._fall_back(attempt)
        else:
            attempt.choice = replace(attempt.choice, fallback=True)

    def _fall_back(self, attempt: Attempt) -> None:
        """Nobody else answers: the edge does."""
        attempt.choice = replace(attempt.choice, fallback=True)
        if self._abandoned:
            self.drop(attempt)
        elif not self.edge(attempt) and attempt.settle():
            # It had it and failed, which is counted.
            attempt.slot.finish(None)

    def _hedge(self, attempt: Attempt) -> None:
        """The reply threatens to be late."""
        attempt.choice = replace(attempt.choice, hedged=True)
        if not self._abandoned and self.edge(attempt):
            assert self._far is not None
            self._far.offload.hedged()
            self._stats.count("hedged")

    # ------------------------------------------------ the answer

    def answer(self, attempt: Attempt, result: Result, place: Place) -> None:
        """Give the frame its answer, where it has none yet; whoever else is at it need not."""
        if not attempt.settle():
            return
        if attempt.take_back():
            self._leave_edge()
        frame = attempt.frame
        frame.result = attempt.view.in_frame(_as_asked(result, self._options))
        placed = attempt.choice.placed(place)
        frame.placed = replace(placed, answered_s=max(0.0, time.monotonic() - frame.captured_s))
        attempt.slot.finish(frame)

    def _enter_edge(self) -> None:
        with self.changed:
            self.at_edge += 1

    def _leave_edge(self) -> None:
        with self.changed:
            self.at_edge -= 1
            self.changed.notify_all()


def _as_asked(result: Result, options: Options) -> Result:
    """No more of an answer than the app asks for: a replica does not know how many names, nor how sure boxes."""
    if len(result.top) > options.top:
        result = replace(result, top=result.top[: options.top])
    least = options.min_confidence
    if least is None or all(found.confidence >= least for found in result.detections):
        return result
    kept = tuple(found for found in result.detections if found.confidence >= least)
    best = max(kept, key=lambda found: found.confidence, default=None)
    return replace(
        result,
        detections=kept,
        label=best.label if best is not None else None,
        confidence=best.confidence if best is not None else None,
    )
