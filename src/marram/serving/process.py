"""How a process that serves models is set up, before it starts any thread."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import TypeVar

from marram.serving.memory import few_arenas

# Threads that decode and infer let the one that hears and replies have its turn so soon.
_SWITCH_S = 0.0005

_T = TypeVar("_T")


def set_up() -> None:
    """Few arenas of malloc's, short turns of the interpreter's lock: for the whole process, so call it in its main."""
    few_arenas()
    sys.setswitchinterval(_SWITCH_S)


def run(work: Coroutine[None, None, _T]) -> _T:
    """`asyncio.run`, on uvloop where that is installed (`marram[serve]` brings it): it takes less processor time."""
    make: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop

        make = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(work)
