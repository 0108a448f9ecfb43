"""Which version runs where: deployments in, the desired state of every device out.

Level-triggered: `refresh` computes what each device should run from all that is decided so far, whatever happened in
between; doing it twice changes nothing. It speaks to nobody: whoever calls it nudges the devices it names.
"""

from __future__ import annotations

from marram.rollout.desire import desired_apps, holding
from marram.rollout.rollout import Rolled, Rollout

__all__ = ["Rolled", "Rollout", "desired_apps", "holding"]
