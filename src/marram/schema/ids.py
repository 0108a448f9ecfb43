"""Names and identifiers, and what makes one valid.

Every name travels in NATS subjects, file names and URLs, so one narrow alphabet serves them all.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated

from pydantic import AfterValidator

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")


def check_name(text: str) -> str:
    """Return `text` if it is a name: 1–63 of `a-z 0-9 - _`, no dash at either end. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f'"{text}" is not a name; use 1 to 63 of a-z, 0-9, - and _, starting and ending with a letter or digit'
        )
    return text


Name = Annotated[str, AfterValidator(check_name)]


def new_id(prefix: str) -> str:
    """A fresh name such as `pi-7f3a91c2`: `prefix`, then 8 random hex digits."""
    return f"{prefix}-{secrets.token_hex(4)}"


def parse_labels(text: str) -> dict[str, str]:
    """`site=shanghai,line=3` -> {"site": "shanghai", "line": "3"}; `all` or empty -> {}. Raises ValueError."""
    labels: dict[str, str] = {}
    for part in (p.strip() for p in text.split(",")):
        if not part or part == "all":
            continue
        key, sign, value = part.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise ValueError(f'"{part}" is not a label; write key=value, as in site=shanghai')
        labels[key.strip()] = value.strip()
    return labels


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether `labels` has every pair of `selector` (an empty selector matches every device)."""
    return all(labels.get(key) == value for key, value in selector.items())


def covers(wider: dict[str, str], narrower: dict[str, str]) -> bool:
    """Whether every device that `narrower` could ever match is matched by `wider` too."""
    return matches(wider, narrower)


def disjoint(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether no device can ever match both: they ask for different values of one label."""
    return any(key in other and other[key] != value for key, value in one.items())
