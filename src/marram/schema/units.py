"""Quantities as people write them: `200 ms`, `50 MB/day`, `6 W`, `5 %`.

Each type parses text into a plain float or int in SI units, refuses a number without a unit (a bare
`200` is a guess), and prints back through `format_*`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from marram.schema.words import format_duration as format_duration
from marram.schema.words import format_rate as format_rate
from marram.schema.words import format_size as format_size

_DURATION_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "day": 86400.0, "d": 86400.0}
_SIZE_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_POWER_W = {"mW": 1e-3, "W": 1.0}
_RATE_BIT_S = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
# So that "now and so much" is a moment that has a date.
LONGEST_S = 100 * 365.25 * 86400.0
_NUMBER = re.compile(r"^\s*([+-]?\d+(?:[._]\d+)*(?:e[+-]?\d+)?)\s*(.*?)\s*$")


def _split(text: object, units: dict[str, Any], example: str, meant: str = "") -> tuple[float, str]:
    """The number and its unit. `meant` is what to write where a number stands alone. Raises ValueError."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"expected a quantity such as {example}")
    match = _NUMBER.match(str(text))
    if not match:
        raise ValueError(f'"{text}" is not a quantity; write for example {example}')
    number, unit = match.groups()
    if not unit:
        raise ValueError(f'"{text}" has no unit; write {meant or example}')
    if unit not in units:
        raise ValueError(f'"{unit}" is not a unit here; use one of {", ".join(units)}')
    try:
        value = float(number.replace("_", ""))
    except ValueError:  # 1.2.3
        raise ValueError(f'"{text}" is not a quantity; write for example {example}') from None
    if not math.isfinite(value * max(units.values())):
        raise ValueError(f'"{text}" is beyond any number')
    return value, unit


def parse_duration(text: object) -> float:
    """`200 ms` -> 0.2 seconds. Raises ValueError on a missing or unknown unit, below 0, past LONGEST_S."""
    value, unit = _split(text, _DURATION_S, "200 ms or 0.2 s", _likely(str(text).strip()))
    if value < 0:
        raise ValueError(f'"{text}" is negative')
    if value * _DURATION_S[unit] > LONGEST_S:
        raise ValueError(f'"{text}" is more than a hundred years')
    return value * _DURATION_S[unit]


def _likely(number: str) -> str:
    """What a person who wrote a duration without its unit may have meant."""
    if not re.fullmatch(r"\d+(\.\d+)?", number):
        return "200 ms or 0.2 s"
    # Few are seconds, as in --duration 10; hundreds are milliseconds, as in deadline: 200.
    return f"{number} s or {number} ms" if float(number) < 100 else f"{number} ms or {float(number) / 1000:g} s"


def _likely_share(number: str) -> str:
    """What a person who wrote a share without its % may have meant: 0.99 is 99 %, 99 is, too."""
    value = float(number) if re.fullmatch(r"\d+(\.\d+)?", number) else -1.0
    if not 0 <= value <= 100:
        return "5 %"
    return f"{100 * value if value <= 1 else value:g} %"


def parse_size(text: object) -> int:
    """`300 MB` -> 300_000_000 bytes. Raises ValueError."""
    value, unit = _split(text, _SIZE_BYTES, "300 MB")
    if value < 0:
        raise ValueError(f'"{text}" is negative')
    return int(value * _SIZE_BYTES[unit])


def parse_rate(text: object) -> float:
    """`6 Mbit/s` -> 6e6 bits per second. Raises ValueError."""
    value, unit = _split(text, _RATE_BIT_S, "6 Mbit/s")
    return value * _RATE_BIT_S[unit]


def parse_budget(text: object) -> float:
    """`50 MB/day` -> bytes per second. Raises ValueError."""
    if not isinstance(text, str) or "/" not in text:
        raise ValueError(f'"{text}" is not a budget; write for example 50 MB/day')
    amount, _, period = text.partition("/")
    period = period.strip()
    if period not in _DURATION_S:
        raise ValueError(f'"{period}" is not a period; use day, h, min or s, as in 50 MB/day')
    return parse_size(amount) / _DURATION_S[period]


def parse_spending(text: object) -> float:
    """`2/day` -> 2.3e-5 (of any currency) per second. Raises ValueError."""
    amount, slash, period = str(text).partition("/")
    period = period.strip()
    if not slash or period not in _DURATION_S:
        raise ValueError(f'"{text}" is not an amount per time; write for example 2/day')
    try:
        value = float(amount)
    except ValueError:
        raise ValueError(f'"{amount.strip()}" is not an amount of money; write a number, as in 2/day') from None
    if not 0 <= value < math.inf:
        raise ValueError(f'"{text}" is not an amount that can be spent')
    return value / _DURATION_S[period]


def parse_power(text: object) -> float:
    """`6 W` -> 6.0 watts. Raises ValueError."""
    value, unit = _split(text, _POWER_W, "6 W", f"{text} W")
    if value < 0:
        raise ValueError(f'"{text}" is negative')
    return value * _POWER_W[unit]


def parse_share(text: object) -> float:
    """`5 %` -> 0.05. Raises ValueError outside 0–100 %."""
    value, _ = _split(text, {"%": 1}, "5 %", _likely_share(str(text).strip()))
    if not 0 <= value <= 100:
        raise ValueError(f'"{text}" is not between 0 % and 100 %')
    return value / 100


def _quantity(base: type, parse: Callable[[object], Any], example: str) -> Any:
    schema = {"type": "string", "examples": [example]}
    return Annotated[base, BeforeValidator(parse), WithJsonSchema(schema, mode="validation")]


Duration = _quantity(float, parse_duration, "200 ms")
Size = _quantity(int, parse_size, "300 MB")
Budget = _quantity(float, parse_budget, "50 MB/day")
Spending = _quantity(float, parse_spending, "2/day")
Power = _quantity(float, parse_power, "6 W")
Share = _quantity(float, parse_share, "5 %")
