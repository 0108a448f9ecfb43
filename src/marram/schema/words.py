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
    message = str(fault["msg"])
    message = f"{message[0].lower()}{message[1:]}"
    return f"{message}, got {reprlib.repr(fault.get('input'))}" if echo else message
