"""An app becomes a running pipeline: `Pipeline.build(app, base, around)`, `run()`, `stop()`, `stats()`.

What a pipeline needs of the world around it (the way out for events, the way to the cloud, where models lie) comes as
`Around`, so that the same app runs in a worker, in a rehearsal, in a test and under `marram run` without knowing which.
"""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from marram.pipeline import plugins
from marram.pipeline.carrier import Far
from marram.pipeline.check import Resolve, examine
from marram.pipeline.contract import Finite, Outlet, Remote, Sink, Source, Step, StepContext
from marram.pipeline.edge_pool import EdgePool
from marram.pipeline.escalation import Escalation
from marram.pipeline.events import result_sender
from marram.pipeline.findings import at
from marram.pipeline.guests import Guests
from marram.pipeline.infer import Arrivals, Infer
from marram.pipeline.loading import cloud_model, load_seats, within
from marram.pipeline.memory import Memory
from marram.pipeline.offload import Offload
from marram.pipeline.progress import Ledger, Progress
from marram.pipeline.runner import Passing, Runner, Stage
from marram.pipeline.shadow import Before, shadow_of
from marram.pipeline.stats import CountingOutlet, Stats
from marram.placement.contract import Policy
from marram.placement.policy import LatencyPolicy
from marram.placement.prices import Budget
from marram.runtime import library
from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.app import SINKS, SOURCES, App, InferStep, asks_peers, running_steps
from marram.schema.event import Event
from marram.schema.model import ModelCard

log = logging.getLogger(__name__)


class NoOutlet:
    """Events go nowhere."""

    def emit(self, event: Event) -> None:
        """See `contract.Outlet`."""


@dataclass(frozen=True, slots=True)
class Around:
    """The world around a pipeline.

    `cloud_cards`: for each model reference that the app names under `cloud:`, the card of the version replicas serve.
    `fronts`: for the same references, where the fronts of its cuts lie on this machine. `policy`: decides each
    inference; needed only with `remote` (default: `placement`'s own). `resolve`: finds a model's bundle from its
    reference and the app's folder (default: the local library, paths beside the app file). `sinks`: further sinks
    besides the app's own. `on_open` hears of each of the app's sinks (a preview has a `url`). `ledger`: in place of
    `outlet` where the source is finite; that goes on where the ledger says that an earlier run came to. `before`: the
    version that this one replaces, asked about a few of the same inputs. `memory`: the file of what it learns and an
    app's restart would lose. `peers`: whether `remote` leads to other devices too.
    """

    outlet: Outlet = field(default_factory=NoOutlet)
    ledger: Ledger | None = None
    remote: Remote | None = None
    cloud_cards: Mapping[str, ModelCard] = field(default_factory=dict)
    fronts: Mapping[str, Bundle] = field(default_factory=dict)
    policy: Policy | None = None
    resolve: Resolve = library.resolve
    sinks: tuple[Sink, ...] = ()
    on_open: Callable[[Sink], None] | None = None
    device: str = "here"
    before: Before | None = None
    memory: Path | None = None
    peers: bool = False


class Pipeline:
    """One app, built and ready to run once. Made by `build`; `close` it where it is not run after all."""

    def __init__(
        self, app: App, source: Source, runner: Runner, stats: Stats, offload: Offload | None, memory: Memory
    ) -> None:
        self.app = app
        # Who answers other devices, where the app lets it.
        self.guests: Guests | None = None
        self._memory = memory
        self._source, self._runner, self._stats, self._offload = source, runner, stats, offload

    @classmethod
    def build(cls, app: App, base: Path, around: Around | None = None) -> Pipeline:
        """Open the app's source, models, steps and sinks; `base` is the folder of the app file.

        Raises Missing, Invalid, NotReady, Conflict where any of them is wrong, naming the app's field and the next step
        (`schema.page.Page.locate` adds on which line that stands).
        """
        around = around or Around()
        resolve = _once(around.resolve)
        found = examine(app, base, resolve)
        for note in found.notes:
            log.warning("%s: %s", app.app, note)
        for fault in (*found.faults, *found.unbuilt):
            raise fault
        stats = Stats()
        with ExitStack() as opened:
            with at(("source", plugins.verb_of(app.source, SOURCES))):
                source = plugins.open_source(app.source, base)
            opened.callback(source.close)
            progress = _progress(app, source, around.ledger)
            outlet = CountingOutlet(progress or around.outlet, stats, alerts=app.send != "nothing")
            context = StepContext(app, base, outlet, around.device, stats, lambda reference: resolve(reference, base))
            clouds = _clouds(app, around.cloud_cards)
            memory = Memory(around.memory)
            offload = None
            if around.remote is not None and (clouds or (around.peers and app.peers)):
                offload = Offload(around.remote, around.policy or _policy(app, around.device))
                opened.callback(offload.close)
            steps = _Steps(app, context, stats, around, offload, clouds, _arrivals(app, source), memory)
            head, stages = steps.make(opened)
            sinks = []
            for index, spec in enumerate(app.sinks):
                with at(("sinks", index, plugins.verb_of(spec, SINKS))):
                    sinks.append(plugins.open_sink(spec, base))
                opened.callback(sinks[-1].close)
                if around.on_open is not None:
                    around.on_open(sinks[-1])
            sinks.extend(around.sinks)
            runner = Runner(source, head, stages, sinks, result_sender(app, outlet), stats)
            runner.fresh = steps.arrivals.fresh
            runner.progress = progress or runner.progress
            opened.pop_all()
        pipeline = cls(app, source, runner, stats, offload, memory)
        if around.peers and app.peers:
            pipeline.guests = Guests(steps.pools, stats)
        return pipeline

    def run(self) -> None:
        """Run until the source ends or `stop`; blocks. Call once.

        Errors before the first frame are raised (MarramError); after it they are counted, see `stats`.
        """
        self._memory.start()
        try:
            self._runner.run()
        finally:
            if self._offload is not None:
                self._offload.close()
            self._memory.close()

    def stop(self) -> None:
        """End soon: frames in work are finished or given up. Safe from any thread and from a signal handler."""
        self._runner.stop()

    def close(self) -> None:
        """Free what was built; only where `run` was not called and will not be."""
        self.stop()
        self.run()

    def busy_s(self) -> float:
        """For how long one step, model or sink has been at work on one frame: past a minute or two, it hangs."""
        return self._runner.busy_s

    def stats(self) -> dict[str, Any]:
        """What was measured so far, plain JSON types; the keys are in `pipeline/stats.py`. Safe from any thread."""
        link = self._offload.link() if self._offload is not None else None
        rtt_s = None if link is None else link.rtt_s
        return self._stats.read(self._source) | {
            "link_rate_bit_s": None if link is None else link.rate_bit_s,
            "link_rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 2),
            "link_up": None if link is None else link.up,
        }


@dataclass(frozen=True, slots=True)
class _Steps:
    """What the steps of one pipeline are made of. `clouds`: the cloud's card for each inference that has one."""

    app: App
    context: StepContext
    stats: Stats
    around: Around
    offload: Offload | None
    clouds: Mapping[int, ModelCard]
    arrivals: Arrivals
    memory: Memory
    pools: dict[tuple[str, int], EdgePool] = field(default_factory=dict)

    def make(self, opened: ExitStack) -> tuple[list[Step], list[Stage]]:
        """The steps before the first inference, and each inference with the steps after it."""
        head: list[Step] = []
        stages: list[Stage] = []
        if not self.app.inferences:
            stages.append(Stage(Passing(), []))
        for place, spec in running_steps(self.app):
            if isinstance(spec, InferStep):
                with at((*place, spec.verb)):
                    asker = self._asker(spec, len(stages))
                opened.callback(asker.close)
                self.pools.setdefault(asker.model, asker.pool)
                stages.append(Stage(asker, []))
            else:
                with at((*place, spec.verb) if place != ("raw",) else place):
                    step = plugins.make_step(spec, self.context)
                opened.callback(partial(_close, step))
                (stages[-1].steps if stages else head).append(step)
        return head, stages

    def _asker(self, spec: InferStep, number: int) -> Infer:
        card = self.clouds.get(id(spec)) if self.offload is not None else None
        seats = load_seats(spec, self.context, card, self.around.fronts.get(spec.cloud or ""))
        far = None
        among = self.around.peers and asks_peers(self.app, spec)
        peer = within(spec, seats[0].model.card) if among else None
        if self.offload is not None and (card is not None or peer is not None):
            escalation = None if card is None else self._escalation(spec, seats[0].model, card)
            far = Far(self.offload, card, escalation, peer)
        before = self.around.before
        shadow = shadow_of(number, spec, seats[0].model, before, self.stats) if before is not None else None
        return Infer(spec, self.app, seats, self.stats, self.arrivals, far=far, shadow=shadow)

    def _escalation(self, spec: InferStep, model: Model, card: ModelCard) -> Escalation | None:
        if spec.cascade is None:
            return None
        pair = f"{model.bundle.reference}/{model.variant.name} {card.reference}"
        return Escalation(spec, pair, self.stats, self.memory, random.Random())


def _policy(app: App, device: str) -> LatencyPolicy:
    """One for all of the app's inferences: what they may spend adds up, the largest share of hedges holds.

    Devices draw differently among replicas, so that they do not move as a herd.
    """
    asking = [step for step in app.inferences if step.cloud is not None or asks_peers(app, step)]
    watts = [step.budget.power for step in asking if step.budget.power is not None]
    money_s = [step.budget.money for step in asking if step.budget.money is not None]
    budget = Budget(sum(watts) if watts else None, sum(money_s) if money_s else None)
    hedges = max((step.hedge for step in asking), default=0.0)
    return LatencyPolicy(budget=budget, hedge_share=hedges, seed=zlib.crc32(device.encode()))


def _arrivals(app: App, source: Source) -> Arrivals:
    """How often frames come where the app says so: rows (`every: 5`) are no time."""
    every = getattr(app.source, "every", None)
    every_s = every if isinstance(every, float) else None
    return Arrivals(source.live, source.live or every is not None, every_s, source)


def _clouds(app: App, cards: Mapping[str, ModelCard]) -> dict[int, ModelCard]:
    """The card of the cloud's model for each step (by its identity) that has one."""
    clouds: dict[int, ModelCard] = {}
    for index, spec in enumerate(app.steps):
        if isinstance(spec, InferStep):
            with at(("steps", index, "cloud")):
                asked = cloud_model(spec, cards)
            if asked is not None:
                clouds[id(spec)] = asked
    return clouds


def _progress(app: App, source: Source, ledger: Ledger | None) -> Progress | None:
    """What goes on where an earlier run was: a source that ends. One that repeats has no place to go on at."""
    if ledger is None or not isinstance(source, Finite) or getattr(app.source, "repeat", False):
        return None
    if ledger.reached is not None:
        source.resume(ledger.reached)
    return Progress(ledger)


def _once(resolve: Resolve) -> Resolve:
    """`resolve`, reading each bundle once: it is checked first and loaded after."""
    known: dict[str, Bundle] = {}

    def remembering(reference: str, base: Path) -> Bundle:
        if reference not in known:
            known[reference] = resolve(reference, base)
        return known[reference]

    return remembering


def _close(step: Step) -> None:
    close = getattr(step, "close", None)
    if close is not None:
        close()
