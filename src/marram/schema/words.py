"""The words that messages to people are made of, so that one fault is said the same way wherever it is met.

Pure text: nothing here decides what is wrong, or looks anything up.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any


def first_line(error: BaseException) -> str:
    """The first line of what a library says of its error, without the full stop; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def file_fault(error: OSError | UnicodeError) -> str:
    """Why a file cannot be read or written: `permission denied`, `no space left on device`, `not UTF-8 text`."""
    if isinstance(error, UnicodeError):
        return "not UTF-8 text"
    return (error.strerror or str(error) or type(error).__name__).lower()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "mobilenet"?` where one of `known` is near `word`, else nothing: the end of "no such …"."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def field_fault(fault: Mapping[str, Any], *, echo: bool = True) -> str:
    """One of pydantic's faults (`ValidationError.errors()`) in our words; with `echo` it says what was given."""
    if fault["type"] == "missing":
        return "is missing"
    if fault["type"] == "extra_forbidden":
        return "no such field"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] == "path_traversal":
        return str(fault["msg"])
    if fault["type"] in ("bool_parsing", "bool_type"):
        return f"is yes or no, got {reprlib.repr(fault.get('input'))}" if echo else "is yes or no"
    message = str(fault["msg"])
    message = f"{message[0].lower()}{message[1:]}"
    return f"{message}, got {reprlib.repr(fault.get('input'))}" if echo else message


def format_duration(seconds: float) -> str:
    """0.0241 -> `24 ms`; 75 -> `75 s`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_size(size_bytes: float) -> str:
    """5_300_000 -> `5.3 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def format_rate(bits_per_s: float) -> str:
    """6.1e6 -> `6.1 Mbit/s`."""
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_s >= factor:
            return f"{bits_per_s / factor:.3g} {unit}"
    return f"{bits_per_s:.0f} bit/s"
