"""A cloud whose every reply is written down beforehand, and what it takes to see what a pipeline makes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from marram.pipeline.contract import CloudInput, Frame, Reply
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Decision, EdgeOutcome, LinkEstimate, Way
from marram.schema.model import Task
from marram.schema.result import Place, Result

GOOD = Result(Task.CLASSIFICATION, "the-cloud", "green", 0.9, (("green", 0.9),))


def reply(result: Result | None = GOOD, queue_s: float = 0.0, service_s: float = 0.001) -> Reply:
    return Reply(result, queue_s, service_s, "replica-a", 2)


# What becomes of one request: its future is finished, or failed, or left alone for ever.
Behaviour = Callable[[CloudInput, "Future[Reply]"], None]


def silent(request: CloudInput, future: Future[Reply]) -> None:
    """The link swallows it: no reply, no refusal."""


def says(answer: Reply) -> Behaviour:
    return lambda request, future: future.set_result(answer)


def fails(error: Exception) -> Behaviour:
    return lambda request, future: future.set_exception(error)


def raises(error: Exception) -> Behaviour:
    def behave(request: CloudInput, future: Future[Reply]) -> None:
        raise error

    return behave


class Scripted:
    """See `pipeline.contract.Remote`."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.asked: list[CloudInput] = []
        self.futures: list[Future[Reply]] = []
        self.arrived = threading.Semaphore(0)

    def infer(self, request: CloudInput, timeout_s: float) -> Future[Reply]:
        future: Future[Reply] = Future()
        self.asked.append(request)
        self.futures.append(future)
        self.behave(request, future)
        self.arrived.release()
        return future

    def probe(self, size_bytes: int, timeout_s: float, about: tuple[str, int] | None = None) -> Future[Reply]:
        future: Future[Reply] = Future()
        future.set_result(Reply(None, 0.0, 0.0))
        return future


@dataclass
class Chooser:
    """A policy that sends frames where `places` says, the last of them for ever; remembers what it was told."""

    places: list[Place]
    timeout_s: float = 600.0
    hedge_s: float | None = None
    replica: str | None = "replica-a"
    up: bool = True
    learnt: list[Any] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    hedges: int = 0

    def decide(self, ask: Ask) -> Decision:
        self.asks.append(ask)
        place = Place.CLOUD if ask.objective == "cloud" else self.places[0]
        way = next((way for way in ask.ways if way.place is place), None)
        if way is None and place is not Place.DROP:
            place, way = Place.EDGE, next((way for way in ask.ways if way.place is Place.EDGE), None)
        if len(self.places) > 1 and ask.objective != "cloud":
            del self.places[0]
        far = place in (Place.CLOUD, Place.SPLIT)
        return Decision(
            place, way, 0.01, "as the test says", self.timeout_s if far else None, self.hedge_s, self.replica
        )  # fmt: skip

    def learn(self, outcome: Any) -> None:
        self.learnt.append(outcome)

    def hedged(self) -> None:
        self.hedges += 1

    def probe_due(self, now_s: float) -> int | None:
        return None

    def link(self) -> LinkEstimate:
        return LinkEstimate(8e6, 0.004, self.up)

    @property
    def sent(self) -> list[CloudSent]:
        return [each for each in self.learnt if isinstance(each, CloudSent)]

    @property
    def outcomes(self) -> list[CloudOutcome]:
        return [each for each in self.learnt if isinstance(each, CloudOutcome)]

    @property
    def edge(self) -> list[EdgeOutcome]:
        return [each for each in self.learnt if isinstance(each, EdgeOutcome)]

    @property
    def ways(self) -> tuple[Way, ...]:
        return self.asks[-1].ways


class LiveSource:
    """A live source of `frames`; each is given when asked for, as a camera gives its newest."""

    live = True
    skipped = errors = 0
    last_error = ""

    def __init__(self, frames: Callable[[], Iterator[Frame]]) -> None:
        self._frames = frames
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        for frame in self._frames():
            if self._closed.is_set():
                return
            yield frame

    def close(self) -> None:
        self._closed.set()
