"""The commands' signatures without what the commands do: all that `--help` and a shell's completion need.

To import what a command works with (NumPy, SQL, a web server) takes up to seconds; to list its options must not. So
where nothing will be run, the modules of the floors below are hollow: whatever is asked of one is an empty class, good
for an annotation. Packages, the schema (its enums are choices of options) and other people's libraries are as ever.
A process that has called `without_bodies` must run no command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_WHOLE = ("marram.cli", "marram.schema", "marram.last_resort")


def without_bodies() -> None:
    """From now on, in this process for good, Marram's modules below the commands are hollow."""
    sys.meta_path.insert(0, _Finder())


class _Hollow(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("marram.") or name.startswith(_WHOLE):
            return None
        found = PathFinder.find_spec(name, path)
        if found is None or found.submodule_search_locations is not None:
            return None  # a package's own file only names what is in it, and a module that is not there is a fault
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""
