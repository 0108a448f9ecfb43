"""What it costs to answer otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marram.schema.agreement import given_up
from marram.schema.model import Task
from marram.schema.result import Result


def test_what_a_label_gives_up_is_how_much_less_likely_it_is() -> None:
    whole = Result(Task.CLASSIFICATION, "m@1", "cat", 0.5, (("cat", 0.5), ("lynx", 0.4), ("dog", 0.1)))

    def answer(label: str) -> Result:
        return Result(Task.CLASSIFICATION, "m@1", label, 0.9)

    assert given_up(answer("cat"), whole) == 0.0
    assert given_up(answer("lynx"), whole) == pytest.approx(0.1)  # nearly as likely: little is lost
    assert given_up(answer("dog"), whole) == pytest.approx(0.4)
    assert given_up(answer("boat"), whole) == 0.5  # not among those that count
    value = Result(Task.REGRESSION, "m@1", value=10.0)
    assert given_up(replace(value, value=10.1), value) == 0.0
    assert given_up(replace(value, value=12.0), value) == 1.0
