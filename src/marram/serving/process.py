"""How a process that serves models is set up, before it starts any thread."""

from __future__ import annotations

import sys

from marram.serving.memory import few_arenas

# Threads that decode and infer let the one that hears and replies have its turn so soon.
_SWITCH_S = 0.0005


def set_up() -> None:
    """Few arenas of malloc's, short turns of the interpreter's lock: for the whole process, so call it in its main."""
    few_arenas()
    sys.setswitchinterval(_SWITCH_S)
