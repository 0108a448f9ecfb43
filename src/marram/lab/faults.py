"""Faults by script: what goes wrong in a rehearsal, and when. One line a fault:

```
at 5 s cut gate-lte for 10 s        # nothing moves, nothing closes; heals 10 s later
at 12 s reset all                   # every connection of every link breaks with RST
at 20 s kill gate-wifi              # kill -9
at 25 s freeze cloud for 3 s        # SIGSTOP, then SIGCONT
```
`Faults` carries a script out as time passes; time is the caller's. Used by the demo, the tests and the benchmarks.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from marram.schema.errors import Invalid, Missing
from marram.schema.units import parse_duration

_T = TypeVar("_T")
_LINE = re.compile(r"at\s+(?P<at>.+?)\s+(?P<action>[a-z]+)\s+(?P<target>\S+)(?:\s+for\s+(?P<length>.+))?")
# What ends what; None: it happens and is over.
_ENDS = {"cut": "heal", "reset": None, "kill": None, "freeze": "thaw"}


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at_s` (seconds since the start) do `action` to `target` (a name, or `all`), for `length_s`."""

    at_s: float
    action: str
    target: str
    length_s: float | None = None


class Breakable(Protocol):
    """A link: `LinkProcess`, or the in-loop `Link`."""

    def cut(self) -> None: ...

    def heal(self) -> None: ...

    def reset(self) -> None: ...


class Signalled(Protocol):
    """A process: `Child`."""

    def signal(self, number: int) -> None: ...


def parse_script(text: str) -> list[Fault]:
    """A script's faults in order of time. Raises Invalid naming the line."""
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        where = f"faults:{number}"
        match = _LINE.fullmatch(words)
        if match is None:
            raise Invalid(f'"{words}" is not a fault', where=where, hint='Write "at 5 s cut gate-lte for 10 s".')
        action, target, length = match["action"], match["target"], match["length"]
        if action not in _ENDS:
            raise Invalid(f'no fault "{action}"; there are {", ".join(_ENDS)}', where=where)
        try:
            at_s = parse_duration(match["at"])
            length_s = parse_duration(length) if length else None
        except ValueError as error:
            raise Invalid(str(error), where=where) from error
        if length_s is not None and _ENDS[action] is None:
            raise Invalid(f"{action} has no length", where=where, hint=f"Write it without “for {length}”.")
        faults.append(Fault(at_s, action, target, length_s))
    return sorted(faults, key=lambda fault: fault.at_s)


class Faults:
    """A script under way. `links` and `processes` by the names that the script uses.

    Raises Missing at once where the script names what is not there.
    """

    def __init__(
        self, script: list[Fault], links: Mapping[str, Breakable], processes: Mapping[str, Signalled] | None = None
    ) -> None:
        self._left = list(script)
        self._links = links
        self._processes = processes or {}
        for fault in script:
            self._targets(fault)

    @property
    def next_s(self) -> float | None:
        """When the next fault is due; None after the last."""
        return self._left[0].at_s if self._left else None

    def advance(self, elapsed_s: float) -> list[Fault]:
        """Do everything that is due by `elapsed_s`; returns what was done."""
        done = []
        while self._left and self._left[0].at_s <= elapsed_s:
            fault = self._left.pop(0)
            for action in self._targets(fault):
                action()
            done.append(fault)
            end = _ENDS.get(fault.action)
            if end is not None and fault.length_s is not None:
                # From when it really began: whoever looks at the clock late makes no outage shorter.
                self._left.append(Fault(max(elapsed_s, fault.at_s) + fault.length_s, end, fault.target))
                self._left.sort(key=lambda later: later.at_s)
        return done

    def _targets(self, fault: Fault) -> list[Callable[[], None]]:
        number = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "thaw": signal.SIGCONT}.get(fault.action)
        if number is not None:
            found = self._named(self._processes, fault.target)
            return [lambda process=process: process.signal(number) for process in found]  # type: ignore[misc]
        return [getattr(link, fault.action) for link in self._named(self._links, fault.target)]

    def _named(self, table: Mapping[str, _T], name: str) -> list[_T]:
        if name == "all":
            return list(table.values())
        if name not in table:
            raise Missing(f'no "{name}" to break; there are {", ".join(table) or "none"}')
        return [table[name]]
