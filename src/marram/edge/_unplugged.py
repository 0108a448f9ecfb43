"""Imported first of all in an agent and in a worker: pydantic, told that nobody has plug-ins for it.

It would look for them among all that is installed, with `importlib.metadata` and what that loads (mail, archives): 1 MB
of a small device, and some of each start. What is found to be unnecessary is not forbidden: any other code that imports
`importlib.metadata` gets the full one.
"""

from __future__ import annotations

import sys
from types import ModuleType

_INSTALLED = "importlib.metadata"

if _INSTALLED not in sys.modules and "pydantic" not in sys.modules:
    _nothing = ModuleType(_INSTALLED)
    _nothing.entry_points = _nothing.distributions = lambda **_: ()  # type: ignore[attr-defined]
    sys.modules[_INSTALLED] = _nothing
    try:
        from pydantic import create_model

        create_model("Nothing")  # the first model of a process is when it looks
    finally:
        del sys.modules[_INSTALLED]
