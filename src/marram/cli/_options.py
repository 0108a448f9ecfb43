"""What a person typed after an option, taken apart: a quantity, labels, one of a few words."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from marram.schema.errors import Invalid
from marram.schema.words import did_you_mean

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)


def parsed(parse: Callable[[str], _T], text: str, option: str) -> _T:
    """What `parse` makes of `text`. Raises Invalid, naming the option, where it raises ValueError."""
    try:
        return parse(text)
    except ValueError as error:
        raise Invalid(str(error), where=option) from error


def one_of(kind: type[_E], what: str) -> dict[str, Any]:
    """For typer: the words of `kind`, which people know as `what`; a wrong one is told in our words, not typer's."""
    words = [each.value for each in kind]

    def parse(text: str) -> _E:
        if text not in words:
            near = did_you_mean(text, words) or "."
            raise Invalid(f'"{text}" is no {what}{near}', hint=f"There are {', '.join(words)}.")
        return kind(text)

    def complete(start: str) -> list[str]:
        return [word for word in words if word.startswith(start)]

    return {"parser": parse, "metavar": "|".join(words), "autocompletion": complete}
