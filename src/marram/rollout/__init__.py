"""Which version runs where: deployments in, the desired state of every device out, a stage at a time.

Level-triggered: `refresh` computes what each device should run from all that is decided so far, and the controller
takes each rollout on from where it stands, whatever happened in between; doing it twice changes nothing. It speaks to
nobody: whoever calls it nudges the devices it names.
"""

from __future__ import annotations

from marram.rollout.desire import desired_apps, holding, living
from marram.rollout.rollout import Rolled, Rollout
from marram.rollout.rollouts import Look, Rollouts
from marram.rollout.why import Evidence, about_device, why

__all__ = [
    "Evidence",
    "Look",
    "Rolled",
    "Rollout",
    "Rollouts",
    "about_device",
    "desired_apps",
    "holding",
    "living",
    "why",
]
