"""The edge's inferences: a few threads, each with its own engine instance, since engines are not shared safely.

Two instances of one thread each answer more than one instance with two threads (measured), and the engines release
the GIL. A rehearsal may slow the pool down (`MARRAM_SLOWDOWN=8` is a device eight times slower): each inference is
then stretched by what it used of the CPU, so that a busy machine is not counted twice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from marram.pipeline.faults import Faults
from marram.runtime.model import Model
from marram.schema.errors import Invalid
from marram.schema.result import Result

log = logging.getLogger(__name__)

# One inference: takes the model, gives the answer.
Work = Callable[[Model], Result]
# Called once for each: with the answer and its service seconds, or with what was raised; None, None where abandoned.
Answered = Callable[[Result | None, float, Exception | None], None]


def slowdown() -> float:
    """`MARRAM_SLOWDOWN`, 1 where it is not set. Raises Invalid where it is no number of 1 or more."""
    text = os.environ.get("MARRAM_SLOWDOWN", "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= 1000:
        raise Invalid(f'"{text}" is no slow-down; write a factor such as 8', where="MARRAM_SLOWDOWN")
    return factor


class EdgePool:
    """`models`: one for each thread. `factor` stretches each inference."""

    def __init__(self, models: list[Model], factor: float = 1.0) -> None:
        self._models, self._factor = models, factor
        self._faults = Faults(log)
        self._jobs: SimpleQueue[tuple[Work, Answered] | None] = SimpleQueue()
        self._abandoned = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(model,), name=f"marram-edge-{number}", daemon=True)
            for number, model in enumerate(models)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, work: Work, answered: Answered) -> None:
        """Queue one inference; `answered` is called once, in a thread of the pool."""
        self._jobs.put((work, answered))

    def abandon(self) -> None:
        """What has not begun is answered with nothing, soon; so is all that still comes."""
        self._abandoned.set()

    def close(self) -> None:
        """End the threads once the queue is empty, and free the models."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for model in self._models:
            model.close()

    def _serve(self, model: Model) -> None:
        while (job := self._jobs.get()) is not None:
            work, answered = job
            if self._abandoned.is_set():
                answered(None, 0.0, None)
                continue
            begun_s = time.monotonic()
            result, failure = None, None
            used_s = time.thread_time()
            try:
                result = work(model)
            except Exception as error:  # noqa: BLE001 - supervisor: a frame that a model chokes on is counted, not fatal
                failure = error
                self._faults.tell("an inference at the edge", error)
            if self._factor > 1:
                self._abandoned.wait((self._factor - 1) * (time.thread_time() - used_s))
            answered(result, time.monotonic() - begun_s, failure)
