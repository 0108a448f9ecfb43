"""Virtual time: hours of waiting in seconds, with the real code waiting.

An event loop whose clock jumps to the next timer as soon as nothing else is to be done. What runs in threads (the
disk, a database) takes real time, during which the clock stands still: nothing can time out because the machine is
slow. Inside `run`, `time.time` and `time.monotonic` follow the same clock. Sockets to other processes have no place
here: their answers would come after any number of virtual seconds.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from marram.schema.errors import Permanent

_T = TypeVar("_T")

# When a run begins, on its clock: 2026-01-01 00:00 UTC.
EPOCH_S = 1_767_225_600.0
# How long, in real seconds, something at work in a thread may take before the run is given up as stuck.
STUCK_S = 120.0
GRACE_S = 2.0
# Of so many turns without a thread at work one looks for those that we do not count.
LOOK_EVERY = 64


class _Selector(selectors.DefaultSelector):
    """Waits only for threads; where all are idle it moves the clock instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._idle = 0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and not self._loop.working:
            # Nobody whom we count can have come back, and asking the kernel each time takes a quarter of a run.
            self._idle += 1
            if self._idle % LOOK_EVERY:
                self._loop.now_s += max(0.0, timeout)
                return []
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._loop.working:
            ready = super().select(STUCK_S)
            if not ready:
                raise Permanent(f"a thread has not come back for {STUCK_S:.0f} s")
            return ready
        if timeout is None:
            # No timer and no work: only a thread that we do not count (the pool being shut down) can still come back.
            ready = super().select(GRACE_S)
            if ready:
                return ready
            raise Permanent("nothing is left to wait for: the run would stand still for ever")
        self._loop.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's words. `now_s`: virtual seconds since the run began."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.working = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]  # as the base's
        self.working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._came_back)
        return future

    def _came_back(self, _: object) -> None:
        self.working -= 1


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """`asyncio.run(work())` in virtual time. One at a time in a process. Raises Permanent where it stands still."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        with _clocks(loop):
            return runner.run(work())


@contextmanager
def _clocks(loop: VirtualLoop) -> Iterator[None]:
    real = time.time, time.monotonic
    time.time = lambda: EPOCH_S + loop.now_s
    time.monotonic = lambda: loop.now_s
    try:
        yield
    finally:
        time.time, time.monotonic = real
