"""What a new version of an app must show on a device before it is committed there: the `health:` of an app file.

In a module of its own, since the agent reads it and must not load all that an app file may hold.
"""

from __future__ import annotations

from marram.schema.model import Strict
from marram.schema.units import Duration, Share


class Health(Strict):
    """What a new version of the app must show on a device before it is committed there, beyond a first result.

    It is on trial for at least `trial`; for as long as it is quiet (a sensor that says nothing) it waits `quiet` and is
    then taken as it is. A version that breaks one of these on trial is rolled back.
    """

    trial: Duration = 1.0
    quiet: Duration = 60.0
    # Share of its frames that may fail.
    errors: Share = 0.5
    # 95th percentile of the delay from capture to result.
    p95: Duration | None = None
