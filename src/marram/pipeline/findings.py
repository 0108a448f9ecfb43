"""What a look at an app found: each fault at its field, and what is seldom meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from marram.schema import page
from marram.schema.errors import Invalid, MarramError, Missing
from marram.schema.page import Place

# How plug-ins name what they stand for, where they do not know the field.
_LOOSE = re.compile(r"(source|sinks|cloud|steps\[\d+\])([.:]|$)")


@dataclass(slots=True)
class Findings:
    """`faults`: the app cannot run; `where` is a field. `unbuilt`: models that are not here, and `marram model build`
    makes. `notes`: what is allowed and seldom meant, as errors nobody raises: (what, where).
    """

    faults: list[MarramError] = field(default_factory=list)
    unbuilt: list[Missing] = field(default_factory=list)
    notes: list[Invalid] = field(default_factory=list)

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """What is raised inside becomes a fault at `place`, and the look goes on."""
        try:
            with at(place):
                yield
        except MarramError as error:
            self.faults.append(error)

    def note(self, place: Place, what: str, hint: str | None = None) -> None:
        """Add one to `notes`."""
        self.notes.append(Invalid(what, where=page.field(place), hint=hint))


@contextmanager
def at(place: Place) -> Iterator[None]:
    """What is raised inside names the field at `place` (or a finer one of the same part that it names itself)."""
    try:
        yield
    except MarramError as error:
        where, named, part = error.where or "", page.field(place), page.field(place[:-1] or place)
        if where != named and not where.startswith((f"{named}.", f"{part}.")):
            # A plug-in's own `source: images: photos` says less than the field; a file's name says more.
            if where and not _LOOSE.match(where):
                error.what = f"{where}: {error.what}"
            error.where = named
        raise
