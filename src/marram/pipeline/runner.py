"""Runs frames through source → steps → sinks: decode, inference and what follows overlap, order is kept.

```
feed thread                        asker's threads             one thread a stage
source → first steps → [window] →  edge pool / cloud  → done → in order: steps → next window … → sinks, events
```
Every queue is bounded by its window: a slow stage slows the source (files) or makes it skip (live), memory never
grows. A frame enters the window with a `Slot`, which its asker finishes exactly once, from any thread, with or without
a frame. This module knows nothing of models, and must never let one frame's failure end the app, nor lose a frame that
no counter knows of: what was taken from the source is in the end counted under frames, errors or dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

from marram.pipeline.contract import Frame, Sink, Source, Step, Ticket
from marram.pipeline.faults import Faults, words
from marram.pipeline.progress import Progress
from marram.pipeline.stats import Stats

log = logging.getLogger(__name__)

# How long a stop waits for a source that does not let go (a stream's blocked read) before leaving its thread behind.
STOP_GRACE_S = 3.0


class Slot:
    """One frame's place in the order. `finish` once: with the frame answered, or with None where it ends here."""

    __slots__ = ("_done", "frame", "sequence", "ticket")

    def __init__(self, sequence: int, frame: Frame, done: SimpleQueue[Slot | None]) -> None:
        self.sequence = sequence
        self.ticket = frame.ticket
        self.frame: Frame | None = frame
        self._done = done

    def finish(self, frame: Frame | None) -> None:
        self.frame = frame
        self._done.put(self)


class Asker(Protocol):
    """A step that answers frames side by side, out of order (an inference)."""

    window: int  # frames it may hold at once

    def start(self, slot: Slot) -> None:
        """Begin; blocks while there is no place to begin at. Must finish the slot in the end, abandoned or not."""
        ...

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until a frame started now would be worked on at once; False after `timeout_s`."""
        ...

    def released(self, frame: Frame) -> None:
        """The frame leaves in order: its delay is known now."""
        ...

    def abandon(self) -> None:
        """Finish everything that has not begun with None, soon. Later starts too."""
        ...

    def close(self) -> None:
        """Free threads and models; nothing is in work any more."""
        ...


class Passing:
    """Where an app asks no model: frames pass straight on, so that decoding and the steps still overlap."""

    window = 4

    def start(self, slot: Slot) -> None:
        slot.finish(slot.frame)

    def wait_ready(self, timeout_s: float) -> bool:
        return True

    def released(self, frame: Frame) -> None:
        pass

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        pass


class Stage:
    """An asker with its window, and the steps that follow it."""

    def __init__(self, asker: Asker, steps: list[Step]) -> None:
        self.asker, self.steps = asker, steps
        self.done: SimpleQueue[Slot | None] = SimpleQueue()
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._submitted = self._completed = 0
        self._moved_s = 0.0
        self._in_work: dict[int, Slot] = {}
        self.total: int | None = None
        for _ in range(asker.window):
            self._tokens.put(None)

    def submit(self, frame: Frame) -> None:
        """Put a frame in; blocks while the window is full. What the asker raises ends that frame, and is raised."""
        self._tokens.get()
        if self._submitted == self._completed:
            self._moved_s = time.monotonic()
        slot = Slot(self._submitted, frame, self.done)
        self._in_work[slot.sequence] = slot
        self._submitted += 1
        try:
            self.asker.start(slot)
        except Exception:
            slot.finish(None)  # or everything behind it would wait for it for ever
            raise

    def wait_room(self) -> None:
        """Block while the window is full. Only the thread that submits may ask."""
        self._tokens.put(self._tokens.get())

    def finish(self) -> None:
        """No more frames come. Only from the thread that submits."""
        self.total = self._submitted
        self.done.put(None)

    def in_order(self, ended: Callable[[Ticket | None], None]) -> Iterator[Frame]:
        """Frames in the order of `submit`, until the last; those that ended are told of instead."""
        waiting: dict[int, Slot] = {}
        expected = 0
        while expected != self.total:
            slot = self.done.get()
            if slot is not None:
                waiting[slot.sequence] = slot
            while (ready := waiting.pop(expected, None)) is not None:
                expected += 1
                if ready.frame is not None:
                    self.asker.released(ready.frame)
                    yield ready.frame
                else:
                    ended(ready.ticket)
                # Only now, after what follows has taken the frame: a slow sink fills the window, not memory.
                self._completed, self._moved_s = expected, time.monotonic()
                del self._in_work[ready.sequence]
                self._tokens.put(None)

    @property
    def left(self) -> int:
        """Frames that are still in work here; those that ended (were dropped, failed) are counted already."""
        return sum(slot.frame is not None for slot in list(self._in_work.values()))

    @property
    def busy_s(self) -> float:
        """For how long frames have been in work here and none came out."""
        return time.monotonic() - self._moved_s if self._submitted > self._completed else 0.0


class Runner:
    """One run. `deliver` gets each frame that went through every step (events); sinks come before it."""

    def __init__(
        self,
        source: Source,
        head: list[Step],
        stages: list[Stage],
        sinks: list[Sink],
        deliver: Callable[[Frame], None],
        stats: Stats,
    ) -> None:
        self._source, self._head, self._stages, self._sinks = source, head, stages, sinks
        self._deliver, self._stats = deliver, stats
        # Live and paced frames are taken only when they can start; those of files as soon as there is room.
        self.fresh = source.live
        self.progress = Progress()
        self._stopping = False
        self._over = False
        self._asks = any(not isinstance(stage.asker, Passing) for stage in stages)
        self._faults = Faults(log)
        self._head_since_s: float | None = None
        self._held = 0  # frames taken from the source and not yet in the first window
        self._failure: BaseException | None = None
        # What the thread in `run` is told: SimpleQueue.put is safe in a signal handler, locks and Events are not.
        self._control: SimpleQueue[bool] = SimpleQueue()

    def stop(self) -> None:
        """See `Pipeline.stop`."""
        self._stopping = True
        self._control.put(False)

    @property
    def busy_s(self) -> float:
        """See `Pipeline.busy_s`."""
        since_s = self._head_since_s
        head_s = 0.0 if since_s is None else time.monotonic() - since_s
        return max(head_s, *(stage.busy_s for stage in self._stages))

    def run(self) -> None:
        """See `Pipeline.run`."""
        feeding = threading.Thread(target=self._feed, name="marram-source", daemon=True)
        threads = []
        for place, stage in enumerate(self._stages):
            following = self._stages[place + 1] if place + 1 < len(self._stages) else None
            threads.append(
                threading.Thread(target=self._drain, args=(stage, following), name=f"marram-stage-{place}", daemon=True)
            )
        threads.append(feeding)
        try:
            for thread in threads:
                thread.start()
            while not self._control.get():
                self._wind_down()
        finally:
            # Also on Ctrl-C in this thread: nothing is left running.
            self._stopping = True
            self._wind_down()
            if feeding.ident is None:  # Ctrl-C came before all were started: nobody else tells the stages of the end
                self._stages[0].finish()
            deadline_s = time.monotonic() + STOP_GRACE_S
            for thread in filter(threading.Thread.is_alive, threads):
                thread.join(max(0.0, deadline_s - time.monotonic()))
            # What a step or sink that hangs still holds has no answer any more, even where it comes back.
            self._over = True
            self._stats.count("dropped", self._held + sum(stage.left for stage in self._stages))
            self._close()
        if self._failure is not None:
            raise self._failure

    def _wind_down(self) -> None:
        self._source.close()
        if self._stopping:
            for stage in self._stages:
                stage.asker.abandon()

    def _close(self) -> None:
        steps = [*self._head, *(step for stage in self._stages for step in stage.steps)]
        for part in (*(stage.asker for stage in self._stages), *steps, *self._sinks):
            close = getattr(part, "close", None)
            if close is not None:
                with self._counted("closing"):
                    close()

    def _feed(self) -> None:
        first, frames = self._stages[0], iter(self._source.frames())
        taken = 0
        try:
            while not self._stopping:
                if self.fresh:
                    first.wait_room()
                    while not (first.asker.wait_ready(0.25) or self._stopping):
                        pass
                frame = next(frames, None)
                if frame is None:
                    break
                taken += 1
                self._enter(first, frame)
        except Exception as error:  # noqa: BLE001 - supervisor of the source: raised to the caller of `run`, or counted
            if taken:
                self._stats.error(words(error))
                self._faults.tell("the source", error)
            else:
                self._failure = error
        finally:
            first.finish()

    def _enter(self, first: Stage, frame: Frame) -> None:
        """A frame just taken: through the first steps, into the first window."""
        if self._stopping:
            self._stats.count("dropped")
            return
        self.progress.taken(frame)
        self._head_since_s, self._held = time.monotonic(), 1
        headed = self._apply(self._head, frame)
        self._head_since_s = None
        for each in headed or ():
            self._submit(first, each)
        self._held = 0
        if headed is not None and not headed:
            self._through(frame, time.monotonic())  # held back by a filter

    def _drain(self, stage: Stage, following: Stage | None) -> None:
        try:
            for frame in stage.in_order(self._ended):
                outputs = self._apply(stage.steps, frame)
                if outputs is None:
                    continue
                through_s = time.monotonic()
                for each in outputs:
                    if following is not None:
                        self._submit(following, each)
                    else:
                        self._end(each)
                if self._over:
                    continue  # counted already
                if following is None or not outputs:
                    self._through(frame, through_s)
        except Exception as error:  # noqa: BLE001 - supervisor of a stage: a fault of ours ends the run, and says so
            self._faults.tell("a stage of the pipeline", error)
            self._failure = self._failure or error
            self._stopping = True
        finally:
            if following is not None:
                following.finish()
            else:
                self._control.put(True)

    def _through(self, frame: Frame, then_s: float) -> None:
        """The frame went through every step at `then_s`, whatever came of it. Where a model is asked, that is timed."""
        self._stats.frame(None if self._asks else then_s - frame.captured_s)

    def _ended(self, ticket: Ticket | None) -> None:
        """A frame failed, or the policy dropped it. Where the app stops it was given up instead: not through."""
        if not self._stopping:
            self.progress.became(ticket)

    def _apply(self, steps: list[Step], frame: Frame) -> Sequence[Frame] | None:
        """The frame through `steps`; None where one of them raised: that ends this frame, counted."""
        if not steps:
            return (frame,)
        ticket, frames = frame.ticket, [frame]
        try:
            with self.progress.during(ticket):
                for step in steps:
                    frames = [out for each in frames for out in step(each)]
        except Exception as error:  # noqa: BLE001 - supervisor of steps, user code among them: one frame is lost, counted
            self._stats.error(words(error))
            self._faults.tell("a step", error)
            self.progress.became(ticket)
            return None
        return self.progress.became(ticket, frames)

    def _submit(self, stage: Stage, frame: Frame) -> None:
        if self._over:
            return
        with self._counted("starting an inference"):
            stage.submit(frame)

    def _end(self, frame: Frame) -> None:
        if self._over:
            return
        for sink in self._sinks:
            with self._counted("a sink"):
                sink.write(frame)
        with self._counted("sending a result"), self.progress.during(frame.ticket):
            self._deliver(frame)
        self.progress.became(frame.ticket)

    @contextmanager
    def _counted(self, doing: str) -> Iterator[None]:
        """What fails in an asker, a sink, an outlet or while closing is counted, and ends nothing else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - supervisor: one frame's failure must not end the app
            self._stats.error(words(error))
            self._faults.tell(doing, error)
