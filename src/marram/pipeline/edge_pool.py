"""The edge's inferences: a few threads, each with its own engine instances, since engines are not shared safely.

Two instances of one thread each answer more than one instance with two threads (measured), and the engines release
the GIL. A rehearsal may slow the pool down (`MARRAM_SLOWDOWN=8` is a device eight times slower): each inference is
then stretched by what it used of the CPU, so that a busy machine is not counted twice.

What is no longer worth running is not run: a job that was cancelled, and one that could no longer be on time. Frames
leave a pipeline in order, so under overload the oldest are given up, one by one, until all that is left can be on
time: the answers that come are those about the newest frames.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from marram.pipeline.faults import Faults
from marram.runtime.cut import Front
from marram.runtime.model import Model
from marram.schema.errors import Invalid

log = logging.getLogger(__name__)

# How fast the usual service time follows: what is queued is measured by it.
_FOLLOW = 0.2
# Work that comes further apart than this does not come regularly.
_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Seat:
    """What one thread works with: the edge's model, and the fronts of the cloud's by the names of their cuts."""

    model: Model
    fronts: Mapping[str, Front] = field(default_factory=dict)

    def close(self) -> None:
        self.model.close()
        for front in self.fronts.values():
            front.close()


@dataclass(frozen=True, slots=True)
class Ran:
    """How a job ended: `value`, after `service_s`; or `failure`; or neither: given up, `late` if it would have been."""

    value: Any = None
    service_s: float = 0.0
    failure: Exception | None = None
    late: bool = False


class Job:
    """One piece of work for a seat, in the queue or begun. `key`: what its time is learnt for.

    `until_s` (by `time.monotonic`): when it has to be done; None: it is worth running however late. `answered` is
    called once, in a thread of the pool; never after `cancel` said True.
    """

    __slots__ = ("_taken", "answered", "key", "until_s", "work")

    def __init__(
        self, work: Callable[[Seat], Any], answered: Callable[[Ran], None], key: str, until_s: float | None = None
    ) -> None:
        self.work, self.answered, self.key, self.until_s = work, answered, key, until_s
        self._taken = threading.Lock()

    def take(self) -> bool:
        """Whether it is the caller's from now on: to run or to give up. `cancel`: False where it has begun."""
        return self._taken.acquire(blocking=False)

    cancel = take

    @property
    def taken(self) -> bool:
        return self._taken.locked()


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
    """`seats`: one for each thread. `factor` stretches each inference."""

    def __init__(self, seats: list[Seat], factor: float = 1.0) -> None:
        self._seats, self._factor = seats, factor
        self._faults = Faults(log)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._usual_s: dict[str, float] = {}
        self._idle = 0  # threads that wait for work
        # When work of our own last came, and how far apart it comes: what guests have to be done before.
        self._put_s, self._apart_s = -math.inf, 0.0
        self._closing = False
        self._abandoned = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(seat,), name=f"marram-edge-{number}", daemon=True)
            for number, seat in enumerate(seats)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job) -> None:
        """Queue it."""
        now_s = time.monotonic()
        with self._changed:
            if now_s - self._put_s < _PAUSE_S:
                apart_s = now_s - self._put_s
                self._apart_s += _FOLLOW * (apart_s - self._apart_s) if self._apart_s else apart_s
            self._put_s = now_s
            self._jobs.append(job)
            self._changed.notify()

    def offer(self, job: Job) -> bool:
        """Run another one's job now, in a pause; False where there is work here, or will be before it could be done."""
        with self._changed:
            if self._closing or self._jobs or self._idle < len(self._seats):
                return False
            passed_s = time.monotonic() - self._put_s
            # One that comes later than usual may come at any moment; after twice that long there is a pause.
            if passed_s + self._usual_s.get(job.key, 0.0) > self._apart_s and passed_s < 2 * self._apart_s:
                return False
            self._jobs.append(job)
            self._changed.notify()
            return True

    def abandon(self) -> None:
        """What has not begun is answered with nothing, soon; so is all that still comes."""
        self._abandoned.set()

    def close(self) -> None:
        """End the threads once the queue is empty, and free the models."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for seat in self._seats:
            seat.close()

    def _serve(self, seat: Seat) -> None:
        while (taken := self._take()) is not None:
            given_up, job = taken
            for late in given_up:
                late.answered(Ran(late=True))
            if job is None:
                continue
            if self._abandoned.is_set():
                job.answered(Ran())
                continue
            job.answered(self._run(seat, job))

    def _take(self) -> tuple[list[Job], Job | None] | None:
        """What is given up, and what is to be run now; None at the end."""
        with self._changed:
            self._idle += 1
            while not self._jobs and not self._closing:
                self._changed.wait()
            self._idle -= 1
            if not self._jobs:
                return None
            self._jobs = deque(job for job in self._jobs if not job.taken)
            given_up = [] if self._abandoned.is_set() else [job for job in self._hopeless() if job.take()]
            while self._jobs:
                job = self._jobs.popleft()
                if job.take():
                    return given_up, job
            return given_up, None

    def _hopeless(self) -> list[Job]:
        """Take out what has to go for the rest to be on time, oldest first. What has no limit stays."""
        found: list[Job] = []
        now_s = time.monotonic()
        while (late := self._first_late(now_s)) is not None:
            oldest = next(i for i in range(late + 1) if self._jobs[i].until_s is not None)
            found.append(self._jobs[oldest])
            del self._jobs[oldest]
        return found

    def _first_late(self, now_s: float) -> int | None:
        """The place of the first that would be late. One that is alone runs, unless its time is over: a limit that
        nothing can meet must not end all answers.
        """
        done_s = now_s
        for place, job in enumerate(self._jobs):
            if len(self._jobs) == 1:
                return 0 if job.until_s is not None and now_s > job.until_s else None
            usual_s = self._usual_s.get(job.key, 0.0)
            # This thread takes the first now; those behind it are shared by all.
            done_s += usual_s if place == 0 else usual_s / len(self._seats)
            if job.until_s is not None and done_s > job.until_s:
                return place
        return None

    def _run(self, seat: Seat, job: Job) -> Ran:
        begun_s = time.monotonic()
        value, failure = None, None
        used_s = time.thread_time()
        try:
            value = job.work(seat)
        except Exception as error:  # noqa: BLE001 - supervisor: a frame that a model chokes on is counted, not fatal
            failure = error
            self._faults.tell("an inference at the edge", error)
        if self._factor > 1:
            self._abandoned.wait((self._factor - 1) * (time.thread_time() - used_s))
        service_s = max(0.0, time.monotonic() - begun_s)
        if failure is None:
            with self._changed:
                usual_s = self._usual_s.get(job.key, service_s)
                self._usual_s[job.key] = usual_s + _FOLLOW * (service_s - usual_s)
        return Ran(value, service_s, failure)
