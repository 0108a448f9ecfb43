"""One inference as the protocol has it, whichever way it travels: what was asked, and what is given back.

REST and gRPC both make an `Asked` of what they read and write a `Given`; everything between knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from marram.runtime.postprocess.contract import Options
from marram.schema.errors import Invalid
from marram.serving.oip.tensors import Named

# A classifier names at most so many classes.
MOST_TOP = 1000
_MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True)
class Asked:
    """`version` None: the newest. `outputs`: names in the order asked for, none: all. `left_s`: see `Question`.

    `id`: what the asker calls it, given back as it is.
    """

    model: str
    version: int | None
    inputs: tuple[Named, ...]
    outputs: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    left_s: float | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """The answer to an `Asked`."""

    model: str
    version: int
    outputs: list[Named]
    id: str = ""


def version_of(text: str) -> int | None:
    """A version as it stands in a path or message; "": none named. Raises Invalid."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10):
        raise Invalid(f"{text[:40]!r} is no version: a whole number from 1 on")
    return int(text)


def options_of(parameters: Mapping[str, Any], shorter_s: float | None = None) -> tuple[Options, float | None]:
    """What a request's parameters say: `top`, `min_confidence`, `timeout` (microseconds); others mean nothing here.

    The time left is the shorter of that and `shorter_s`. Raises Invalid; for a sequence's too, whose answers would be
    wrong, each of them alone.
    """
    if parameters.get("sequence_id"):
        raise Invalid(
            "sequences are not offered: each request is answered by itself",
            where="parameters.sequence_id",
            hint="Leave it out, and send what belongs together in one request.",
        )
    top = parameters.get("top", Options().top)
    if type(top) is not int or not 1 <= top <= MOST_TOP:
        raise Invalid(f"is a whole number from 1 to {MOST_TOP}", where="parameters.top")
    least = parameters.get("min_confidence")
    if least is not None and not (_number(least) and 0 <= least <= 1):
        raise Invalid("is a number from 0 to 1", where="parameters.min_confidence")
    timeout = parameters.get("timeout", 0)
    if isinstance(timeout, str) and timeout.isascii() and timeout.isdecimal() and len(timeout) < 20:
        timeout = int(timeout)
    if not _number(timeout) or timeout < 0:
        raise Invalid("is a number of microseconds", where="parameters.timeout")
    left = [limit for limit in (timeout / _MICROSECONDS if timeout else None, shorter_s) if limit is not None]
    return Options(top, None if least is None else float(least)), min(left, default=None)


def check_wanted(name: Any, parameters: Mapping[str, Any]) -> str:
    """One output asked for. Raises Invalid where it asks for what is not offered."""
    if not isinstance(name, str):
        raise Invalid("an output is asked for by its name")
    if parameters.get("classification"):
        raise Invalid(
            "the classification extension is not offered",
            where=f'output "{name}"',
            hint='Send the picture as the input "image" and read "result": parameters.top says how many classes.',
        )
    check_here(name, parameters)
    return name


def check_here(name: str, parameters: Mapping[str, Any]) -> None:
    """Raises Invalid for a tensor that would lie in memory shared with the asker."""
    if "shared_memory_region" in parameters:
        raise no_shared_memory(f'tensor "{name}"')


def no_shared_memory(where: str | None = None) -> Invalid:
    """What whoever asks for it is told."""
    return Invalid(
        "memory shared with the asker is not offered", where=where, hint="Send tensors as binary data in the request."
    )


def no_loading() -> Invalid:
    """What is told to whoever would load or unload a model."""
    return Invalid(
        "models are loaded and unloaded by Marram itself",
        hint="marram serve NAME, marram cloud --serve NAME, or an app that names it has one loaded.",
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e18 and math.isfinite(value)
