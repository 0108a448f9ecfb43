"""The step that asks a model: each frame at the edge, in the cloud or in both parts of one, wherever the policy expects
the answer sooner.

`T = min(T_trans + T_proc_cloud, T_proc_edge)`, decided for each frame. A cloud that does not answer in time is answered
for by the edge, so it never costs a frame its answer. What may not leave the device (`raw:`) is no choice the policy
has: it is no way of the ask's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from marram.pipeline.appeals import Appeals
from marram.pipeline.attempt import Attempt, Choice
from marram.pipeline.audit import Audit
from marram.pipeline.carrier import Carrier, Far
from marram.pipeline.contract import Frame, Source
from marram.pipeline.edge_pool import EdgePool, Seat, slowdown
from marram.pipeline.limits import Limits, left_s
from marram.pipeline.rhythm import Rhythm
from marram.pipeline.runner import Slot
from marram.pipeline.shadow import Shadow
from marram.pipeline.stats import Stats
from marram.pipeline.view import view_of
from marram.pipeline.ways import Ways
from marram.placement import contract as placement
from marram.placement.contract import Ask, Decision, Way
from marram.runtime.model import Options
from marram.schema.app import App, ClassifyStep, DetectStep, InferStep
from marram.schema.result import Place

# In flight to the cloud at most, besides what waits at the edge: beyond that a live source had better skip.
CLOUD_WINDOW = 8
# Where an app asks the cloud only, one request travels (or its front runs here) while one is answered; more would only
# queue.
CLOUD_ONLY_WINDOW = 2
# In an audit block the cloud has this long: long enough to measure a slow link, short enough to bear if it fails.
AUDIT_TIMEOUT_S = 3.0
# A live frame is taken for the cloud once that takes no more than this times what the better place takes when idle.
FRESH = 1.2
_READY_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How frames come. `live`: a newer one replaces one that was not taken, so a late one may be dropped.

    `fresh`: they come by the clock (live, or paced), so their deadline counts from capture; a file's counts from when
    its turn comes. `every_s`: when the next one is expected, as the app says; None: as soon as one is answered, or of a
    live `source` as it turns out (`pipeline/rhythm.py`).
    """

    live: bool = False
    fresh: bool = False
    every_s: float | None = None
    source: Source | None = None


def may_leave(app: App, frame: Frame) -> bool:
    """Whether the frame's input may leave the device, as the app's `raw` says."""
    return app.raw == "allowed" or (app.raw == "redacted" and frame.redacted)


class Infer:
    """See `runner.Asker`. `far` is None where only the edge answers. `shadow`: is offered what the edge answered."""

    def __init__(
        self,
        spec: InferStep,
        app: App,
        seats: list[Seat],
        stats: Stats,
        arrivals: Arrivals = Arrivals(),
        *,
        far: Far | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self._spec, self._app, self._stats, self._arrivals = spec, app, stats, arrivals
        self._far, self._shadow = far, shadow
        options = Options(
            top=spec.top if isinstance(spec, ClassifyStep) else 5,
            min_confidence=spec.min_confidence if isinstance(spec, DetectStep) else None,
        )
        first = seats[0].model
        self._takes_picture = first.card.input.kind == "image"
        self._parallel = len(seats)
        self._ways = Ways(
            first,
            far.card if far is not None else None,
            list(seats[0].fronts),
            peer=far.peer if far is not None else None,
            surest=spec.place == "surest",
        )
        self.pool = EdgePool(seats, slowdown())
        self.model = first.card.model, first.card.version
        self._carrier = Carrier(self.pool, self._ways, stats, options, far=far, shadow=shadow, sheds=arrivals.live)
        if far is not None and far.escalation is not None:
            self._carrier.judge = Appeals(far.escalation, self._carrier, self._quote, _limits).judge
        self._rhythm = Rhythm()
        self._audit = Audit(spec.audit, time.monotonic())
        self._costs = placement.Costs(spec.costs.edge, spec.costs.send, spec.costs.cloud)
        self.window = 2 * self._parallel + (CLOUD_WINDOW if far is not None else 0)
        self._abandoned = False
        # Whether the last frame was allowed out, and its shape: what the next one is expected to be before it is seen.
        self._allowed = app.raw == "allowed"
        self._shape = "x".join(str(length) for length in first.card.input.size)
        if self._ways.about_cuts and spec.split:
            stats.tell("cuts", lambda: self._ways.about_cuts)
        if far is not None and far.card is not None:
            far.offload.about(far.card.model, far.card.version)

    # ------------------------------------------------ runner.Asker

    def start(self, slot: Slot) -> None:
        """Place one frame; see `runner.Asker`. Raises Invalid where it is nothing that the model takes."""
        attempt = self._attempt(slot)
        self._shape, self._allowed = attempt.view.shape, attempt.allowed
        left = left_s(attempt.until_s)
        if self._abandoned:
            self._carrier.drop(attempt)
        elif self._arrivals.live and left is not None and left <= 0:
            self._carrier.drop(attempt, late=True)
        elif self._far is None:
            attempt.choice = _ALWAYS_EDGE
            self._carrier.edge(attempt)
        else:
            self._place(attempt, self._far)

    def wait_ready(self, timeout_s: float) -> bool:
        """See `runner.Asker`: the place that answers soonest is free: an edge instance, or the link."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self._ready():
                return True
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return False
            with self._carrier.changed:
                # The poll is for what no event tells: the clock itself moves predictions and audit blocks.
                self._carrier.changed.wait(min(_READY_POLL_S, deadline_s - now_s))

    def released(self, frame: Frame) -> None:
        """See `runner.Asker`: the answer is there for whoever wants it; the delay from capture ends here."""
        placed = frame.placed
        assert placed is not None
        frame.placed = placed = replace(placed, latency_s=max(0.0, time.monotonic() - frame.captured_s))
        self._stats.placed(placed, away=self._far is not None and self._far.offload.away)

    def abandon(self) -> None:
        """See `runner.Asker`."""
        self._abandoned = True
        self._carrier.abandon()
        if self._far is not None:
            self._far.offload.abandon()

    def close(self) -> None:
        """See `runner.Asker`."""
        if self._shadow is not None:
            self._shadow.close()
        self.pool.close()

    # ------------------------------------------------ where

    def _attempt(self, slot: Slot) -> Attempt:
        frame = slot.frame
        assert frame is not None
        source = self._arrivals.source
        if source is not None and self._arrivals.live:
            self._rhythm.came(frame.captured_s, frame.index, source.skipped, source.errors)
        view = view_of(frame, self._spec.region, picture=self._takes_picture)
        until_s = None
        if self._spec.deadline is not None:
            until_s = (frame.captured_s if self._arrivals.fresh else time.monotonic()) + self._spec.deadline
        return Attempt(slot, frame, view, until_s, allowed=may_leave(self._app, frame))

    def _place(self, attempt: Attempt, far: Far) -> None:
        block = self._block(far) if attempt.allowed else None
        if block is Place.EDGE:
            attempt.choice = _AUDIT_EDGE
            self._carrier.edge(attempt)
            return
        if block is Place.CLOUD:
            self._wait_alone()
            attempt.choice = _AUDIT_CLOUD
            self._carrier.cloud(attempt, self._audited_way(), Limits(AUDIT_TIMEOUT_S))
            return
        decision = self._decide(attempt, far)
        attempt.choice = Choice(decision.reason, decision)
        way = decision.way or next((w for w in self._listed() if w.place is decision.place), None)
        if decision.place is Place.DROP:
            self._carrier.drop(attempt)
        elif decision.place is Place.EDGE or way is None:
            self._carrier.edge(attempt)
        elif decision.place is Place.SPLIT:
            self._carrier.split(attempt, way, _limits(decision))
        else:
            self._carrier.cloud(attempt, way, _limits(decision))
            if decision.renew:
                self._carrier.renew(attempt)

    def _ready(self) -> bool:
        if self._abandoned:
            return True
        carrier, far = self._carrier, self._far
        edge_free = carrier.at_edge < self._parallel
        if far is None or not self._allowed:
            return edge_free
        block = self._block(far)
        if block is not None:
            return edge_free if block is Place.EDGE else carrier.under_way == 0
        if carrier.audited:
            # Order is kept: a frame taken now would wait for the block's last one, and its delay would be the audit's.
            return False
        if self._spec.place == "cloud" and not far.offload.away:
            return carrier.under_way + carrier.at_edge < CLOUD_ONLY_WINDOW
        decision = far.offload.decide(self._ask(far, self._spec.deadline))
        if decision.place in (Place.CLOUD, Place.PEER):
            # Behind our own earlier work a frame only grows old; a newer one a little later has its answer no later.
            idle = not carrier.at_edge and not carrier.under_way
            return idle or decision.idle_s is None or decision.predicted_s <= FRESH * decision.idle_s
        return edge_free

    def _block(self, far: Far) -> Place | None:
        if far.card is None:
            return None
        now_s = time.monotonic()
        if self._carrier.audit_failed:
            self._carrier.audit_failed = False
            self._audit.give_up(now_s)
        block = self._audit.block(now_s)
        return None if block is None or far.offload.away else block

    def _listed(self) -> tuple[Way, ...]:
        """Where a frame may go first; in a cascade that is the edge."""
        return self._ways.of(self._shape, away=self._allowed and self._carrier.judge is None)

    def _quote(self, attempt: Attempt) -> tuple[Decision, Way] | None:
        """What the cloud would take for a frame that the edge answered; None where it cannot be asked. See `Quote`."""
        far = self._far
        if far is None or not attempt.allowed or far.offload.away:
            return None
        ways = self._ways.of(attempt.view.shape)
        ask = replace(self._ask(far, left_s(attempt.until_s)), ways=ways, objective="cloud")
        decision = far.offload.decide(ask)
        way = decision.way or next((w for w in ways if w.place is decision.place), None)
        return (decision, way) if decision.place in (Place.CLOUD, Place.SPLIT) and way is not None else None

    def _audited_way(self) -> Way:
        """What is sent in an audit block: the least."""
        ways = self._ways.of(self._shape)
        return min((way for way in ways if way.place is Place.CLOUD), key=lambda way: way.payload_bytes)

    def _ask(self, far: Far, left: float | None, *, may_drop: bool = False) -> Ask:
        return Ask(
            now_s=far.offload.now_s(),
            ways=self._listed(),
            edge_waiting=self._carrier.at_edge,
            edge_parallel=self._parallel,
            deadline_s=left,
            objective=self._spec.place,
            every_s=self._arrivals.every_s or self._rhythm.every_s,
            may_drop=may_drop,
            costs=self._costs,
        )

    def _decide(self, attempt: Attempt, far: Far) -> Decision:
        """The policy's decision, once that can begin: the edge's queue has an end, for files too."""
        while True:
            ask = self._ask(far, left_s(attempt.until_s), may_drop=self._arrivals.live)
            decision = far.offload.decide(ask)
            here = decision.place in (Place.EDGE, Place.SPLIT)
            if not here or self._carrier.at_edge < 2 * self._parallel or self._abandoned:
                return decision
            with self._carrier.changed:
                self._carrier.changed.wait(_READY_POLL_S)

    def _wait_alone(self) -> None:
        """In an audit block of the cloud one request is under way at a time; each has its time limit, so this ends."""
        with self._carrier.changed:
            self._carrier.changed.wait_for(lambda: self._carrier.under_way == 0 or self._abandoned)


_ALWAYS_EDGE = Choice("the edge alone")
_AUDIT_EDGE = Choice("audit: all at the edge", audit=True)
_AUDIT_CLOUD = Choice("audit: all in the cloud", audit=True)


def _limits(decision: Decision) -> Limits:
    wait_s = decision.timeout_s if decision.timeout_s is not None else AUDIT_TIMEOUT_S
    return Limits(wait_s, decision.hedge_s, decision.replica)
