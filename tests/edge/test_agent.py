from __future__ import annotations

from tests.edge.world import Cloud, Device, ticking

from marram.schema.device import AppState
from marram.schema.event import EventKind


async def test_from_desired_to_results_and_back_to_nothing(cloud: Cloud, device: Device) -> None:
    await device.start()
    await cloud.until(lambda r: r.desired_version == 0)
    app = cloud.app("ticking", 1, ticking())
    await cloud.want(app)
    await cloud.until_state("ticking", AppState.COMMITTED)
    await cloud.until_stored(20)
    assert cloud.kinds[EventKind.ALERT] >= 20
    await cloud.want()
    await cloud.until(lambda r: r.desired_version == 2 and not r.apps)
    assert device.workers() == []
    assert await device.stop() == 0
    assert "Traceback" not in device.words()
