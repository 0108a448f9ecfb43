"""What a person typed after an option, taken apart: a quantity, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from marram.schema.errors import Invalid

_T = TypeVar("_T")


def parsed(parse: Callable[[str], _T], text: str, option: str) -> _T:
    """What `parse` makes of `text`. Raises Invalid, naming the option, where it raises ValueError."""
    try:
        return parse(text)
    except ValueError as error:
        raise Invalid(str(error), where=option) from error
