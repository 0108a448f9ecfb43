"""How long a token is to be good, as a person typed it. Apart from other options: it brings the whole API's types."""

from __future__ import annotations

from marram.cli._options import parsed
from marram.schema.api import LONGEST_S
from marram.schema.errors import Invalid
from marram.schema.units import parse_duration


def lifetime(text: str, option: str) -> float:
    """How long a token is to be good, in seconds. Raises Invalid."""
    ttl_s = parsed(parse_duration, text, option)
    if ttl_s > LONGEST_S:
        raise Invalid(f"{text} is too long; {LONGEST_S / 86400:.0f} d at most", where=option)
    return ttl_s
