"""What several places say of the same fault, they say in the same words."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from marram.schema import errors
from marram.schema.api import Fault
from marram.schema.errors import KINDS, MarramError
from marram.schema.model import Variant
from marram.schema.words import did_you_mean, field_fault, file_fault, first_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("broken header.\n  at byte 12"), "broken header"),
        (ValueError("  \n one line"), "one line"),
        (KeyError(), "KeyError"),
        (RuntimeError("  "), "RuntimeError"),
    ],
)
def test_a_librarys_error_is_its_first_line(error: Exception, words: str) -> None:
    assert first_line(error) == words


def test_a_file_is_at_fault_in_plain_words(tmp_path: Path) -> None:
    assert file_fault(OSError(errno.ENOSPC, "No space left on device")) == "no space left on device"
    assert file_fault(OSError("Something odd")) == "something odd"
    assert file_fault(OSError()) == "oserror"
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert file_fault(caught.value) == "not UTF-8 text"


def test_a_near_word_is_named() -> None:
    assert did_you_mean("mobilnet", {"mobilenet": 1, "yunet": 2}) == '; did you mean "mobilenet"?'
    assert did_you_mean("x", ["mobilenet"]) == ""


def test_a_field_is_at_fault_in_our_words() -> None:
    with pytest.raises(ValidationError) as caught:
        Variant.model_validate({"engine": "cuda", "file": "../m", "fyle": "m", "precision": "fp32"})
    faults = {fault["loc"][0]: field_fault(fault) for fault in caught.value.errors()}
    assert faults["name"] == "is missing"
    assert faults["fyle"] == "no such field"
    assert faults["file"].startswith('"../m" must be a plain path')
    assert faults["engine"].endswith(", got 'cuda'")
    engine = next(fault for fault in caught.value.errors() if fault["loc"][0] == "engine")
    assert "cuda" not in field_fault(engine, echo=False)


def test_every_error_travels_by_its_kind() -> None:
    raised = {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, MarramError)}
    assert set(KINDS.values()) == raised - {MarramError}
    assert all(KINDS[error.kind] is error for error in KINDS.values())
    assert set(get_args(Fault.model_fields["kind"].annotation)) == set(KINDS)
