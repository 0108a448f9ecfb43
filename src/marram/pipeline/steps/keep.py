"""`keep: CONDITION`: the input itself becomes a sample for the cloud where the condition holds, within `budget`.

`raw` is enforced here, where the input would leave the worker: `never` is refused when the app starts, `redacted` lets
only pictures pass that a `redact` step has been over (one that the app has, or the one that `raw: redacted` itself puts
before all others), `allowed` lets everything pass. What is not marked as redacted stays, whatever the app looks like.

`budget: 50 MB/day` is a token bucket (RFC 2697, one rate): it fills at 50 MB a day and holds at most one day's worth,
so a quiet day may be followed by a burst of two days' worth at most. It starts full, and at each start of the app anew.

A picture is kept once: what stands still before a camera, or comes round again, teaches nothing a second time, and
would take the budget, the link and whoever labels away from what is new. So it goes by content, for the latest few
thousand kept; readings have no such memory, since equal ones are many and each is a case of its own.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import simplejpeg
from PIL import Image as Pillow

from marram.pipeline.conditions import Condition, condition_of, field_of
from marram.pipeline.contract import Frame, Image, Step, StepContext
from marram.pipeline.plain import plain
from marram.schema.app import App, FunctionStep, KeepStep, RedactStep, running_steps
from marram.schema.errors import Invalid
from marram.schema.event import Event, EventKind
from marram.schema.units import format_size

# The bus carries 4 MB a message; what travels beside the body fits in the rest.
MAX_SAMPLE_BYTES = 3_000_000
_QUALITIES = (90, 75, 55)
_DAY_S = 86_400
# Pictures that are known again: half a megabyte at most.
_REMEMBERED = 4096


def make_step(spec: KeepStep, context: StepContext) -> Step:
    """Raises Invalid where the condition cannot be compiled, or where the app's `raw` forbids keeping anything."""
    check_step(spec, context.app)
    budget = None if spec.budget is None else TokenBucket(spec.budget)
    return Keep(condition_of(spec, context), budget, context)


def check_step(spec: KeepStep, app: App) -> None:
    """Raises Invalid where the app's `raw` forbids keeping anything."""
    where = field_of(spec, app)
    if app.raw == "never":
        raise Invalid(
            "`raw: never` lets nothing of the input leave the device, so there is nothing to keep",
            where=where,
            hint="Write `raw: redacted` (faces are covered then), `raw: allowed`, or take the step out.",
        )
    if app.raw == "allowed":
        return
    if app.gives_readings:
        raise Invalid(
            "`raw: redacted` is for pictures; readings cannot be redacted",
            where=where,
            hint="Write `raw: allowed` where these readings may leave the device.",
        )
    steps = [step for _, step in running_steps(app)]
    before = steps[: next(i for i, step in enumerate(steps) if step is spec)]
    # A function may redact in its own way, and then says so by setting `frame.redacted`.
    if not any(isinstance(step, RedactStep | FunctionStep) for step in before):
        raise Invalid(
            "`raw: redacted` lets only redacted pictures leave the device, and the step that redacts comes after this",
            where=where,
            hint="Put it before this one, or write `raw: allowed`.",
        )


class Keep:
    """Emits `sample` events: `body` is the picture (JPEG) or the reading (JSON), `data` says why."""

    def __init__(self, condition: Condition, budget: TokenBucket | None, context: StepContext) -> None:
        self._condition = condition
        self._budget = budget
        self._context = context
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # digests of pictures, the one seen last at the end

    def __call__(self, frame: Frame) -> Iterable[Frame]:
        if self._condition(frame):
            self._keep(frame)
        return (frame,)

    def _keep(self, frame: Frame) -> None:
        if self._context.app.raw == "redacted" and not frame.redacted:
            self._context.counters.error(f"frame {frame.index} is not redacted, so it was not kept (`raw: redacted`)")
            return
        body, media = _encode(frame)
        if len(body) > MAX_SAMPLE_BYTES:
            self._context.counters.error(
                f"the reading of frame {frame.index} has {format_size(len(body))}, more than "
                f"a sample's {format_size(MAX_SAMPLE_BYTES)}: not kept; a shorter `window` or fewer `columns` would fit"
            )
            return
        digest = b"" if frame.image is None else hashlib.blake2b(body, digest_size=16).digest()
        if digest in self._kept:
            self._kept.move_to_end(digest)
            self._context.counters.count("repeated")
            return
        if self._budget is not None and not self._budget.take(len(body)):
            self._context.counters.count("over_budget")
            return
        data = {
            "reason": self._condition.text,
            "frame": frame.index,
            "name": frame.name,
            "redacted": frame.redacted,
            "result": None if frame.result is None else frame.result.to_dict(),
        }
        if frame.image is not None:
            data["height"], data["width"] = frame.image.shape[:2]
        if frame.placed is not None:
            data["place"] = frame.placed.place.value
        event = Event(EventKind.SAMPLE, self._context.app.app, frame.time_s, data, body, media)
        self._context.outlet.emit(event)
        if digest:
            self._kept[digest] = None
            if len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)


class TokenBucket:
    """At most `rate` bytes a second on average, at most a day's worth at once. `clock` is monotonic, in seconds."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._holds = rate * _DAY_S
        self._last_s = clock()

    def take(self, size_bytes: int) -> bool:
        """Whether `size_bytes` may leave now; if so they are spent."""
        now_s = self._clock()
        self._holds = min(self._rate * _DAY_S, self._holds + self._rate * (now_s - self._last_s))
        self._last_s = now_s
        if size_bytes > self._holds:
            return False
        self._holds -= size_bytes
        return True


def _encode(frame: Frame) -> tuple[bytes, str]:
    """The frame's input as bytes, and their type."""
    if frame.image is not None:
        return encode_jpeg(frame.image), "image/jpeg"
    body = json.dumps(plain(frame.reading, "reading"), ensure_ascii=False, separators=(",", ":"))
    return body.encode(), "application/json"


def encode_jpeg(image: Image, limit_bytes: int = MAX_SAMPLE_BYTES) -> bytes:
    """`image` (uint8 [H, W, 3], RGB) as a JPEG of at most `limit_bytes`: coarser first, then smaller, until it fits."""
    while True:
        for quality in _QUALITIES:
            body: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB")
            if len(body) <= limit_bytes or max(image.shape[:2]) <= 64:
                return body
        half = (max(1, image.shape[1] // 2), max(1, image.shape[0] // 2))
        image = np.asarray(Pillow.fromarray(image).resize(half, Pillow.Resampling.BOX))
