"""Windows by the clock on the wall: over midnight, on days, when clocks are changed."""

from __future__ import annotations

from datetime import datetime

import pytest

from marram.rollout import window
from marram.schema.errors import Invalid
from marram.schema.rollout import Window


@pytest.mark.parametrize(
    ("hours", "zone", "days", "at", "open_"),
    [
        ("08:00-17:00", "UTC", "", "2027-01-15 07:59", False),
        ("08:00-17:00", "UTC", "", "2027-01-15 08:00", True),
        ("08:00-17:00", "UTC", "", "2027-01-15 16:59", True),
        ("08:00-17:00", "UTC", "", "2027-01-15 17:00", False),
        ("00:00-23:59", "UTC", "", "2027-01-15 23:59", True),
        ("22:00-05:00", "UTC", "", "2027-01-15 21:59", False),
        ("22:00-05:00", "UTC", "", "2027-01-15 22:00", True),
        ("22:00-05:00", "UTC", "", "2027-01-15 04:59", True),
        ("22:00-05:00", "UTC", "", "2027-01-15 05:00", False),
        ("06:00-06:00", "UTC", "", "2027-01-15 06:00", True),
        ("06:00-06:00", "UTC", "", "2027-01-15 05:59", True),
        # A day's window ends where the next day's begins; 2027-01-16 is a Saturday.
        ("08:00-17:00", "UTC", "sat", "2027-01-16 09:00", True),
        ("08:00-17:00", "UTC", "sat", "2027-01-15 09:00", False),
        ("22:00-05:00", "UTC", "sat", "2027-01-16 23:00", True),
        ("22:00-05:00", "UTC", "sat", "2027-01-17 04:00", True),
        ("22:00-05:00", "UTC", "sat", "2027-01-16 04:00", False),
        ("22:00-05:00", "UTC", "sat", "2027-01-17 23:00", False),
        ("06:00-06:00", "UTC", "sat", "2027-01-16 06:00", True),
        ("06:00-06:00", "UTC", "sat", "2027-01-17 06:00", False),
        ("06:00-06:00", "UTC", "sat", "2027-01-16 05:00", False),
        ("06:00-06:00", "UTC", "sat", "2027-01-17 05:00", True),
        ("08:00-17:00", "Asia/Shanghai", "", "2027-01-15 00:00", True),
        ("08:00-17:00", "Asia/Shanghai", "", "2027-01-15 09:00", False),
        ("00:00-08:00", "Asia/Shanghai", "sat", "2027-01-15 17:00", True),  # there it is Saturday
        # Summer time: the same hours by the clock there, another time of the world.
        ("08:00-17:00", "Europe/Berlin", "", "2027-01-15 06:30", False),
        ("08:00-17:00", "Europe/Berlin", "", "2027-07-15 06:30", True),
        # 2027-03-28: from 02:00 the clock goes to 03:00; 2027-10-31: from 03:00 back to 02:00.
        ("02:00-03:00", "Europe/Berlin", "", "2027-03-28 00:59", False),
        ("02:00-03:00", "Europe/Berlin", "", "2027-03-28 01:00", False),
        ("02:30-04:00", "Europe/Berlin", "", "2027-03-28 01:00", True),
        ("02:00-03:00", "Europe/Berlin", "", "2027-10-31 00:30", True),
        ("02:00-03:00", "Europe/Berlin", "", "2027-10-31 01:30", True),
        ("02:00-03:00", "Europe/Berlin", "", "2027-10-31 02:00", False),
    ],
)
def test_when_a_window_is_open(hours: str, zone: str, days: str, at: str, open_: bool) -> None:
    made = Window(hours=hours, zone=zone, days=days.split() if days else [])
    assert window.is_open(made, datetime.fromisoformat(f"{at}+00:00").timestamp()) is open_


def test_no_window_is_always_open_and_one_is_said_in_words() -> None:
    assert window.is_open(None, 0.0)
    assert window.words(Window(hours="22:00-05:00", zone="UTC", days=["sat", "sun"])) == "22:00-05:00 UTC on sat, sun"


@pytest.mark.parametrize("zone", ["Mars/Base", "../UTC", ""])
def test_a_zone_that_nobody_knows_is_named(zone: str) -> None:
    with pytest.raises(Invalid, match=f'no time zone "{zone}" is known here'):
        window.check(Window(zone=zone))
