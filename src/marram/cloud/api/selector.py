"""A selector in a query string: `site=shanghai,line=3`, or `all`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from marram.schema.errors import Invalid
from marram.schema.ids import parse_labels

Selector = Annotated[str, Query(max_length=4000, examples=["site=shanghai"])]


def labels_of(selector: str) -> dict[str, str]:
    """The labels it asks for. Raises Invalid."""
    try:
        return parse_labels(selector)
    except ValueError as error:
        raise Invalid(str(error), where="selector") from error
