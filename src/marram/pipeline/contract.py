"""The seams of a pipeline: frames, sources, steps, sinks, and the two ways out of the process (events, the cloud).

A plug-in is a file, and its name is its registration:

- `pipeline/sources/VERB.py` has `open_source(spec, base: Path) -> Source`
- `pipeline/steps/VERB.py` has `make_step(spec, context: StepContext) -> Step`, and where the app alone tells what is
  wrong with it, `check_step(spec, app: App) -> None`, which raises Invalid
- `pipeline/sinks/VERB.py` has `open_sink(spec, base: Path) -> Sink`

`spec` is the verb's model in `schema/app.py`, `base` the folder of the app file. Steps that ask a model (classify,
detect, estimate, score) are all `pipeline/infer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from marram.placement.contract import Decision
from marram.runtime.bundle import Bundle
from marram.schema.app import App
from marram.schema.event import Event
from marram.schema.load import Load
from marram.schema.payload import Payload
from marram.schema.result import Place, Result

Image = NDArray[np.uint8]  # uint8 [H, W, 3], RGB


@dataclass(slots=True)
class Frame:
    """One unit of work: a picture (`image`: uint8 [H, W, 3], RGB) or a reading (`reading`: what the source read).

    A window of readings has `reading` = {column: list of floats} and `tensor` float32 [rows, columns].
    `captured_s` is monotonic, `time_s` Unix time. `redacted` is set once nothing in `image` needs hiding any more.
    Steps may replace any field; an image is never written to in place. `ticket` is the runner's.
    """

    index: int
    time_s: float
    captured_s: float
    image: Image | None = None
    reading: Any = None
    tensor: NDArray[np.float32] | None = None
    name: str = ""
    result: Result | None = None
    placed: Placed | None = None
    redacted: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    ticket: Ticket | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Position:
    """A frame's place in a finite source: its `index` and `name`."""

    frame: int
    name: str = ""


@dataclass(slots=True)
class Ticket:
    """One frame of a finite source, whatever became of it: its events so far, and how many frames of it are open."""

    position: Position
    events: list[Event] = field(default_factory=list)
    open: int = 1


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a frame was answered, how long it took from capture, and whether that was the policy's choice.

    `audit`: forced by an audit block, not chosen. `fallback`: the cloud was chosen and did not answer in time.
    `hedged`: the edge was started too, because the reply threatened to be late. `decision`: what was predicted, for
    whoever asks why. In a cascade, `escalated`: the edge was unsure and the cloud answered; `verified` False: it was
    unsure, or nobody could say, and the cloud could not be asked. `answered_s`: from capture until the answer was
    there; what `latency_s` is more, the frame waited for those before it.
    """

    place: Place
    latency_s: float
    predicted_s: float | None = None
    audit: bool = False
    fallback: bool = False
    reason: str = ""
    sent_bytes: int = 0
    hedged: bool = False
    escalated: bool = False
    verified: bool = True
    decision: Decision | None = None
    answered_s: float = 0.0


class Source(Protocol):
    """Where frames come from. `live`: new frames come whether or not anybody takes them."""

    live: bool
    skipped: int  # live frames replaced by a newer one before they were taken
    errors: int  # inputs that could not be read (corrupt picture, bad row), each counted and stepped over
    last_error: str

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the end (files) or `close` (live). A live source yields the newest frame when asked.

        Raises Missing/Invalid/Retryable (before the first frame) where the source cannot be opened.
        """
        ...

    def close(self) -> None:
        """Stop: `frames` ends soon after. Safe from any thread, any number of times."""
        ...


@runtime_checkable
class Finite(Source, Protocol):
    """A source of files: read again it gives the same frames."""

    def resume(self, reached: Position) -> None:
        """Call before `frames`: that goes on after the frame at `reached`, with the index that follows."""
        ...


# From one frame to zero or more. Runs in one thread, frames in order. What it raises is counted and skips that frame;
# a step that holds something open has a method `close()`, called once at the end.
Step = Callable[[Frame], Iterable[Frame]]


class Counters(Protocol):
    """What steps, sources and sinks count; people read it as the app's stats. Safe from any thread."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the counters of `pipeline/stats.py`."""
        ...

    def error(self, message: str) -> None:
        """Count an error that was stepped over, and keep its message as the last one."""
        ...


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step may know when it is made.

    `resolve` finds a model's bundle from its reference (`name`, `name@3`, a path); raises Missing or Invalid.
    Events given to `outlet` are counted there (alerts, samples): a step need not count them itself.
    """

    app: App
    base: Path
    outlet: Outlet
    device: str
    counters: Counters
    resolve: Callable[[str], Bundle]


class Sink(Protocol):
    """Where frames with results go."""

    def write(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


class Outlet(Protocol):
    """The durable way out: events, into the outbox on a device, onto the terminal for `marram run`."""

    def emit(self, event: Event) -> None:
        """Record one event. Safe from any thread. Never blocks on the network."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A replica's answer: the result (see `Result.to_dict`), and how long it queued and computed there.

    `replica`: who answered, `waiting`: how many wait there; None where it did not say. `loads`: what it announced of
    replicas, itself among them. `gone`: the replica that was asked by name was not there, and another took it.
    """

    result: Result | None
    queue_s: float
    service_s: float
    replica: str | None = None
    waiting: int | None = None
    loads: tuple[Load, ...] = ()
    gone: bool = False


@dataclass(frozen=True, slots=True)
class CloudInput:
    """What a replica is asked. `replica`: which one (None: whichever takes it); `left_s`: see `InferRequest`.

    `peers`: other devices that run the app are asked, not the cloud's replicas.
    """

    model: str
    version: int
    payload: Payload
    replica: str | None = None
    left_s: float | None = None
    peers: bool = False


class Remote(Protocol):
    """The way to the cloud's replicas. The future fails with Retryable (link down, no replica, too late), among them
    Busy (refused for its queue), or Invalid.
    """

    def infer(self, request: CloudInput, timeout_s: float) -> Future[Reply]: ...

    def probe(self, size_bytes: int, timeout_s: float, about: tuple[str, int] | None = None) -> Future[Reply]:
        """`about`: the model (name, version) whose replicas' load the reply tells."""
        ...
