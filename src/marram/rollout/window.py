"""When a rollout may reach further devices: a daily window in a place's own time, over midnight too. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from marram.schema.errors import Invalid
from marram.schema.rollout import Window

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def check(window: Window) -> None:
    """Raises Invalid where this machine knows no such zone."""
    _zone(window)


def is_open(window: Window | None, now_s: float) -> bool:
    """Whether it is open at the Unix time `now_s`; no window is always open.

    The last minute is not in it (05:00 is the end of 22:00-05:00), but 23:59 is: the end of the day. A window over
    midnight belongs to the day on which it began. Both ends the same: the whole day.
    """
    if window is None:
        return True
    local = datetime.fromtimestamp(now_s, UTC).astimezone(_zone(window))
    begin, end = (_minutes(part) for part in window.hours.split("-"))
    minute = local.hour * 60 + local.minute
    day = local
    if begin < end:
        inside = begin <= minute < end or end == minute == 23 * 60 + 59
    else:
        inside = minute >= begin or minute < end
        if minute < end:
            day = local - timedelta(days=1)
    return inside and (not window.days or _DAYS[day.weekday()] in window.days)


def words(window: Window) -> str:
    """`22:00-05:00 Asia/Shanghai on sat, sun`."""
    days = f" on {', '.join(window.days)}" if window.days else ""
    return f"{window.hours} {window.zone}{days}"


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)


def _zone(window: Window) -> ZoneInfo:
    try:
        return ZoneInfo(window.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Invalid(
            f'no time zone "{window.zone}" is known here',
            where="window.zone",
            hint="Write it as in Asia/Shanghai or UTC.",
        ) from error
