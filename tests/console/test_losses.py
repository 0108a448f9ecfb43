"""What a device gave up is on its card, and nothing is said where nothing was."""

from __future__ import annotations

import time

from marram.console import draw
from marram.schema.device import Device, DeviceState, Reported


def card(dropped: int) -> str:
    reported = Reported(outbox_depth=3, outbox_bytes=4000, dropped=dropped, time_s=time.time())
    return draw.card(Device(id="gate", state=DeviceState.ONLINE, seen_s=time.time(), reported=reported), {})


def test_events_given_up_are_seen_on_the_devices_card() -> None:
    assert "1,207 given up" in card(1207)
    assert "given up" not in card(0)
