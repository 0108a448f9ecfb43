"""What a person is told while the cloud is away: what does not answer, why, that all goes on, and what waits."""

from __future__ import annotations

from marram.bus.uplink import UplinkStatus
from marram.schema.units import format_size


def away(url: str, why: str, running: int, outbox: UplinkStatus, limit_bytes: int) -> str:
    """`cloud:4222 does not answer (timed out). The app runs; 1,204 events wait in the outbox (3 MB of 500 MB).`

    `url`: the broker's; `running`: how many apps run on the device.
    """
    goes_on = {0: "", 1: "The app runs; "}.get(running, f"All {running} apps run; ")
    if outbox.waiting:
        waits = "1 event waits" if outbox.waiting == 1 else f"{outbox.waiting:,} events wait"
        size = f" ({format_size(outbox.waiting_bytes)} of {format_size(limit_bytes)})"
    else:
        waits, size = "nothing waits", ""
    rest = f"{goes_on}{waits} in the outbox{size}."
    return f"{url.rpartition('//')[2]} does not answer ({why}). {rest[0].upper()}{rest[1:]}"
