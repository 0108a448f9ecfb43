"""Documents that are larger than any that is honest."""

from __future__ import annotations

from marram.lab.attacks.updates.scene import Attack, Scene, Suite
from marram.schema.errors import Threat
from marram.schema.signed import ROLES, ROOT, TIMESTAMP, metadata_name
from marram.trust.verifier import Limits

SUITE = Suite()


def _endless(role: str) -> Attack:
    def attack(scene: Scene) -> None:
        scene.limits = Limits(targets_bytes=100_000)
        version = 2 if role == ROOT else None if role == TIMESTAMP else scene.newest(role).signed.version
        honest = scene.fetch

        def fetch(name: str, most_bytes: int) -> bytes | None:
            # A carrier that lets through what it was told not to: the verifier must not rely on it.
            return bytes(most_bytes + 1) if name == metadata_name(role, version) else honest(name, most_bytes)

        scene.fetch = fetch
        scene.meet()

    return attack


for _role in ROLES:
    SUITE.attack(f"endless {_role}", Threat.ENDLESS)(_endless(_role))


@SUITE.attack("more than a whole refresh may have, in files that each are within bounds", Threat.ENDLESS)
def _endless_sum(scene: Scene) -> None:
    scene.limits = Limits(total_bytes=1500)
    scene.meet()
