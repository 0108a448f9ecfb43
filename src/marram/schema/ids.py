"""Names and identifiers, and what makes one valid.

Every name travels in NATS subjects, file names and URLs, so one narrow alphabet serves them all.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
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


def check_channel(text: str) -> str:
    """Return `text` if it may name a channel: a name that is no number. Raises ValueError."""
    if check_name(text).isdecimal():
        raise ValueError(f'"{text}" is a number, and a number is a version; a channel is called stable, canary …')
    return text


# A name that points to a version of a model: `stable`, `canary`, anything but a number.
Channel = Annotated[str, AfterValidator(check_channel)]


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as people name it: `name` (its newest version), `name@3`, or `name@stable`, by a channel."""

    name: str
    version: int | None = None
    channel: str | None = None

    def __str__(self) -> str:
        at = self.version if self.channel is None else self.channel
        return self.name if at is None else f"{self.name}@{at}"


def parse_model_reference(text: str) -> ModelReference:
    """`name`, `name@3` or `name@stable`. Raises ValueError."""
    name, sign, at = text.partition("@")
    check_name(name)
    if not sign:
        return ModelReference(name)
    if at.isdecimal() and at.isascii():
        if not 1 <= int(at[:12]) < 2**31:
            raise ValueError(f'"{text}": a version is a whole number from 1 on, as in {name}@3')
        return ModelReference(name, version=int(at))
    try:
        return ModelReference(name, channel=check_channel(at))
    except ValueError:
        raise ValueError(f'"{text}": after @ comes a version or a channel, as in {name}@3, {name}@stable') from None


def by_channel(text: str) -> bool:
    """Whether a model is named by a channel: `net@stable`."""
    try:
        return parse_model_reference(text).channel is not None
    except ValueError:
        return False


# As environment variables are written.
SECRET = r"^[A-Z][A-Z0-9_]{0,63}$"


def check_secret(text: str) -> str:
    """Return `text` if it names a secret. Raises ValueError."""
    if not re.fullmatch(SECRET, text):
        raise ValueError(f'"{text}" names no secret; use A to Z, 0 to 9 and _, beginning with a letter')
    return text


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
