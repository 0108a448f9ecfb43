"""`python -I -m marram.cloud.pip_child LIMITS MARKERS ARGUMENT…`: pip, in a process that cannot start another one.

What pip would have to build, it cannot: the kernel refuses to execute anything (Landlock), so no code of a package ever
runs here. Requirements are read as on the device: pip itself would read their conditions (`; platform_machine == …`) as
on this machine. It must never run in the cloud's own process: it gives up what that needs.
"""

from __future__ import annotations

import importlib
import json
import resource
import runpy
import sys
from typing import Any

from marram.system import landlock


def main(arguments: list[str]) -> None:
    """See the module's words."""
    limits, markers, *rest = arguments
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, most in json.loads(limits).items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    _read_as(json.loads(markers))
    if landlock.abi():
        landlock.restrict([("/", landlock.ALL & ~landlock.EXECUTE)])
    sys.argv = ["pip", *rest]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


def _read_as(markers: dict[str, str]) -> None:
    module: Any = importlib.import_module("pip._vendor.packaging.markers")
    ours = module.default_environment()
    module.default_environment = lambda: {**ours, **markers}


if __name__ == "__main__":
    main(sys.argv[1:])
