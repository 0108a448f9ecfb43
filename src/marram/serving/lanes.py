"""One model in memory and the threads that run it: each lane decodes, infers and interprets, batch by batch.

A lane that is free takes what waits and does all of it itself: a lone request changes threads once on its way in and
once out. While all lanes infer, a thread that is left over decodes ahead. Each model has lanes of its own, so nobody
waits behind another model: the operating system shares the cores between them.

No question may ever end a lane: whatever goes wrong is that question's answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from marram.runtime import codecs
from marram.runtime.contract import Tensor
from marram.runtime.model import Answerer, Prepared
from marram.schema.errors import Busy, MarramError, Permanent, Retryable
from marram.serving.batching import Speed, Waiting, choose, queue_s
from marram.serving.contract import Answer, Question
from marram.serving.rows import in_order, kind, run

log = logging.getLogger(__name__)

# Decoding further ahead than this would only fill memory.
_AHEAD = 2


@dataclass(eq=False, slots=True)
class Job(Waiting):
    """One question on its way. `outcome` is there when it is delivered; `gone`: nobody waits for it any more; `alone`:
    it found nobody here, nor did the one before.
    """

    question: Question = field(default_factory=lambda: Question(""))
    alone: bool = False
    outcome: Answer | MarramError | None = None
    gone: bool = False
    tensors: list[Tensor] = field(default_factory=list)
    prepared: Prepared | None = None
    decoding: bool = False
    service_s: float = 0.0


# Told, in a lane's thread, which jobs have their outcome now.
Deliver = Callable[[Sequence[Job]], None]


class Lanes:
    """See the module's words. All from any thread; `close` waits, so not on an event loop."""

    def __init__(
        self,
        answerers: Sequence[Answerer],
        speed: Speed,
        threads: int,
        deliver: Deliver,
        alone: Answerer | None = None,
    ) -> None:
        """One lane for each of `answerers` (one may stand there several times where its session is parallel).

        `threads`: how many work; more than lanes, the others decode ahead. `alone` takes what comes one after another.
        """
        self.answerer = answerers[0]  # any of them
        self.speed = speed
        self.count = len(answerers)
        self._answerers = answerers
        self._alone = alone
        self._free = list(answerers)
        self._deliver = deliver
        self._waiting: list[Job] = []
        # Of each lane at work, by its thread: when it is expected to be free, and how many items it has.
        self._at_work: dict[int, tuple[float, int]] = {}
        self._quiet = True  # whether the question before found all lanes free
        self._door = threading.Condition()
        self._closing = False
        name = self.answerer.card.reference
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True)
            for number in range(max(threads, self.count))
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ from outside

    @property
    def waiting(self) -> int:
        """Questions that wait or run."""
        return len(self._waiting) + self.count - len(self._free)

    @property
    def busy(self) -> bool:
        """Whether every lane is at work."""
        return not self._free

    def queue_s(self) -> float:
        """How long one that comes now would wait."""
        with self._door:
            return self._queue_s(time.monotonic())

    def submit(self, question: Question, most: int) -> Job:
        """Take a question; it is delivered later. Raises Invalid (its tensors), Busy (it would come too late).

        `most`: so many may wait. Who finds a free lane is never refused.
        """
        now_s = time.monotonic()
        job = self._job(question, now_s)
        with self._door:
            if self._closing:
                raise Retryable("this model is being unloaded")
            ahead = len(self._waiting)
            delay_s = self._queue_s(now_s)
            if delay_s > 0 or ahead:
                needs_s = delay_s + self.speed.run_s(job.count) + self.speed.prepare_s * job.count
                if ahead >= most:
                    raise Busy(f"busy: {ahead} wait here already", queue_s=delay_s, waiting=ahead)
                if question.left_s is not None and needs_s > question.left_s:
                    raise Busy(
                        f"busy: it would be answered in {needs_s * 1e3:.0f} ms, "
                        f"and is needed in {max(0.0, question.left_s) * 1e3:.0f}",
                        queue_s=delay_s,
                        waiting=ahead,
                    )
            quiet = not ahead and len(self._free) == self.count
            job.alone, self._quiet = quiet and self._quiet, quiet
            self._waiting.append(job)
            self._door.notify()
        return job

    def withdraw(self, job: Job) -> None:
        """Nobody waits for it any more: it takes nobody's place in the queue."""
        with self._door:
            job.gone = True
            if not job.decoding and job in self._waiting:
                self._waiting.remove(job)
                self._door.notify_all()

    def close(self) -> None:
        """Take no more; return once everybody who waits has an answer and the engine's memory is free."""
        with self._door:
            self._closing = True
            self._door.notify_all()
        for thread in self._threads:
            thread.join()
        for answerer in {*self._answerers, *([self._alone] if self._alone else [])}:
            answerer.close()

    # ------------------------------------------------------------ what is next

    def _queue_s(self, now_s: float) -> float:
        first_s = min((until_s for until_s, _ in self._at_work.values()), default=now_s)
        running_s = 0.0 if self._free else max(0.0, first_s - now_s)
        return queue_s(self._waiting, self.speed, self.count, running_s)

    def _job(self, question: Question, now_s: float) -> Job:
        due_s = float("inf") if question.left_s is None else now_s + question.left_s
        if question.payload is not None:
            return Job(now_s, due_s, question=question)
        tensors = in_order(question.tensors, self.answerer.session.inputs, self.answerer.card.model)
        return Job(now_s, due_s, len(tensors[0]), kind(tensors), True, question=question, tensors=tensors)

    def _work(self) -> None:
        while True:
            lane: Answerer | None = None
            alone = False
            batch: list[Job] = []
            late: list[Job] = []
            with self._door:
                while True:
                    if self._free and any(not job.decoding for job in self._waiting):
                        batch, late = self._take()
                        if batch:
                            alone = batch[0].alone and not self._at_work and not self._waiting
                            lane = self._free.pop()
                            count = sum(job.count for job in batch)
                            self._at_work[threading.get_ident()] = time.monotonic() + self.speed.run_s(count), count
                        break
                    ahead = None if self._free else self._undecoded()
                    if ahead is not None:
                        ahead.decoding = True
                        batch = [ahead]
                        break
                    if self._closing and not self._waiting:
                        return
                    self._door.wait()
            if late:
                for job in late:
                    job.outcome = Busy("it would come too late here", queue_s=time.monotonic() - job.arrived_s)
                self._deliver(late)
            if lane is None:
                for job in batch:
                    self._decode(job, self.answerer)
                    if job.outcome is not None:
                        self._forget(job)
                        self._deliver([job])
                    else:
                        with self._door:
                            job.decoding = False
                            self._door.notify()
            else:
                self._serve(lane, batch, alone)

    def _take(self) -> tuple[list[Job], list[Job]]:
        """Who runs now, who is late; they wait no more. Who is gone is forgotten."""
        here = [job for job in self._waiting if not job.gone]
        running = sum(count for _, count in self._at_work.values())
        open_ = [job for job in here if not job.decoding]
        chosen = choose(open_, self.speed, time.monotonic(), self.count, running)
        taken = {*chosen.batch, *chosen.late}
        self._waiting = [job for job in here if job not in taken]
        return list(chosen.batch), list(chosen.late)  # type: ignore[arg-type]

    def _undecoded(self) -> Job | None:
        """The next to decode ahead, None where enough is."""
        if sum(job.ready or job.decoding for job in self._waiting) >= _AHEAD * self.speed.best() * self.count:
            return None
        open_ = (job for job in self._waiting if not (job.ready or job.decoding or job.gone))
        return min(open_, key=lambda job: job.turn_s, default=None)

    def _forget(self, job: Job) -> None:
        with self._door:
            if job in self._waiting:  # else whoever asked was gone, and it was forgotten already
                self._waiting.remove(job)

    # ------------------------------------------------------------ one batch

    def _serve(self, lane: Answerer, batch: list[Job], alone: bool) -> None:
        answerer = self._alone if alone and self._alone is not None else lane
        try:
            for job in batch:
                if not job.ready:
                    self._decode(job, answerer)
            for runs in _alike(job for job in batch if job.outcome is None):
                self._run(answerer, runs)
        finally:
            with self._door:
                self._free.append(lane)
                self._at_work.pop(threading.get_ident(), None)
                self._door.notify(len(self._threads) if self._closing else 1)
        self._deliver(batch)

    def _decode(self, job: Job, answerer: Answerer) -> None:
        began_s = time.perf_counter()
        payload = job.question.payload
        assert payload is not None
        try:
            job.prepared = answerer.prepare(codecs.decode(payload, answerer.card), payload.frame_size)
            job.tensors = job.prepared.tensors
            job.ready = True
        except MarramError as error:
            job.outcome = error
        except Exception as error:
            log.exception("an input could not be decoded")
            job.outcome = Permanent(f"the replica failed: {type(error).__name__}")
        job.service_s = time.perf_counter() - began_s
        if job.outcome is None:
            with self._door:
                self.speed.prepared(job.service_s)

    def _run(self, lane: Answerer, jobs: list[Job]) -> None:
        """Jobs of one kind as one batch; where that fails, each alone."""
        began_s = time.perf_counter()
        try:
            outputs = run(lane, [job.tensors for job in jobs], self.speed.most)
        except MarramError as error:
            self._failed(lane, jobs, error)
            return
        except Exception as error:
            log.exception("an inference failed")
            self._failed(lane, jobs, Permanent(f"the replica failed: {type(error).__name__}"))
            return
        took_s = time.perf_counter() - began_s
        count = sum(job.count for job in jobs)
        if count <= self.speed.most and lane is not self._alone:
            with self._door:
                self.speed.ran(count, took_s)
        for job, given in zip(jobs, outputs, strict=True):
            job.service_s += took_s
            self._answer(lane, job, given)

    def _failed(self, lane: Answerer, jobs: list[Job], error: MarramError) -> None:
        if len(jobs) == 1:
            jobs[0].outcome = error
            return
        for job in jobs:
            self._run(lane, [job])

    def _answer(self, lane: Answerer, job: Job, outputs: list[Tensor]) -> None:
        began_s = time.perf_counter()
        card = lane.card
        answer = Answer(card.model, card.version, waiting=len(self._waiting))
        try:
            if job.prepared is None:
                names = [info.name for info in lane.session.outputs]
                answer = replace(answer, outputs=dict(zip(names, outputs, strict=True)))
            else:
                result = lane.interpret(lane.taken(outputs), job.prepared, job.question.options)
                answer = replace(answer, result=result)
        except MarramError as error:
            job.outcome = error
            return
        except Exception as error:
            log.exception("an answer could not be read")
            job.outcome = Permanent(f"the replica failed: {type(error).__name__}")
            return
        service_s = job.service_s + time.perf_counter() - began_s
        waited_s = max(0.0, time.monotonic() - job.arrived_s - service_s)
        job.outcome = replace(answer, queue_s=waited_s, service_s=service_s)


def _alike(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs whose tensors can be joined: pictures nearly always can, readings may differ in what they hold."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(kind(job.tensors), []).append(job)
    return list(groups.values())
