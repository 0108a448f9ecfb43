"""Quantities as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.schema import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_duration, "200 ms", 0.2),
        (units.parse_duration, "0.2s", 0.2),
        (units.parse_duration, "2 min", 120),
        (units.parse_duration, "1 h", 3600),
        (units.parse_size, "300 MB", 300_000_000),
        (units.parse_size, "1 KiB", 1024),
        (units.parse_budget, "86.4 kB/day", 1.0),
        (units.parse_rate, "6 Mbit/s", 6e6),
        (units.parse_power, "250 mW", 0.25),
        (units.parse_share, "5 %", 0.05),
    ],
)
def test_parse(parse: object, text: str, value: float) -> None:
    assert parse(text) == pytest.approx(value)  # type: ignore[operator]


@pytest.mark.parametrize(
    "parse", [units.parse_duration, units.parse_size, units.parse_budget, units.parse_power, units.parse_share]
)
@pytest.mark.parametrize(
    "text",
    [
        "200",
        "",
        "ms",
        "fast",
        "1 parsec",
        "-1 s",
        "-3 MB",
        "1 MB/fortnight",
        None,
        True,
        [],
        "5 % %",
        "101 %",
        "1.2.3 s",
        "1.2.3 MB",
        "1.2.3 %",
        "1e999 s",
        "1e999 MB",
        "1e308 MB",
        "1e999 W",
        "1e999 MB/day",
    ],
)
def test_what_is_no_quantity_is_a_value_error(parse: object, text: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (units.parse_share, "0.99", "99 %"),
        (units.parse_share, "99", "99 %"),
        (units.parse_share, "-1", "5 %"),
        (units.parse_power, "4", "4 W"),
        (units.parse_duration, "200", "200 ms or 0.2 s"),
    ],
)
def test_a_number_alone_is_told_what_it_may_have_meant(parse: object, text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"has no unit; write {meant}$"):
        parse(text)  # type: ignore[operator]


def test_what_is_no_number_is_not_called_one() -> None:
    with pytest.raises(ValueError, match=r'"1\.2\.3 MB" is not a quantity; write for example 300 MB'):
        units.parse_size("1.2.3 MB")


@pytest.mark.parametrize("text", ["101000 d", "9999999999h", "1e300 s"])
def test_a_duration_leads_to_a_moment_that_has_a_date(text: str) -> None:
    with pytest.raises(ValueError, match="hundred years"):
        units.parse_duration(text)
    assert units.parse_duration("36500 d") == 36500 * 86400


@given(st.floats(min_value=1e-5, max_value=1e5))
def test_a_printed_duration_reads_back(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds, rel=0.51, abs=1e-6)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_printed_size_reads_back(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == pytest.approx(size, rel=0.01)
