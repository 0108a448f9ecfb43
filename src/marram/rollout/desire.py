"""The rule, pure: what one device should run, given its labels, every deployment and how far each has come.

Of the deployments of an app that match a device and have reached it, the newest holds. One without a rollout (a
removal) has reached everybody; so has a completed rollout, also whoever joins later. What was rolled back or aborted
holds for nobody, so that what was there before holds again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from marram.schema.device import DesiredApp
from marram.schema.ids import covers, matches
from marram.store import DeploymentRow, Standing


def living(standings: Iterable[Standing]) -> list[Standing]:
    """Those that can still hold for some device, newest first: years of history must not cost a look each.

    What is older than a complete one of its app and matches no device that this one does not, can never hold again.
    """
    kept: list[Standing] = []
    ends: dict[str, list[dict[str, str]]] = {}  # by app, the selectors of complete ones seen so far, which are newer
    for standing in sorted(standings, key=lambda each: each.deployment.id, reverse=True):
        app, selector = standing.deployment.app, standing.deployment.selector
        if any(covers(newer, selector) for newer in ends.get(app, ())):
            continue
        kept.append(standing)
        if standing.complete:
            ends.setdefault(app, []).append(selector)
    return kept


def holding(device: str, labels: dict[str, str], standings: Iterable[Standing]) -> dict[str, DeploymentRow]:
    """By app name, the deployment that holds for `device`: the newest that matches it and has reached it."""
    newest: dict[str, DeploymentRow] = {}
    for standing in sorted(standings, key=lambda each: each.deployment.id, reverse=True):
        row = standing.deployment
        if row.app not in newest and matches(row.selector, labels) and standing.holds_for(device):
            newest[row.app] = row
    return newest


def concerns(rollout: int, app: str, labels: dict[str, str], standings: Iterable[Standing]) -> bool:
    """Whether `rollout` (which matches `labels`) is the newest deployment of the app that wants such a device."""
    return not any(
        standing.deployment.id > rollout
        and standing.deployment.app == app
        and matches(standing.deployment.selector, labels)
        for standing in standings
    )


def desired_apps(held: dict[str, DeploymentRow], app: Callable[[str, int], DesiredApp | None]) -> list[DesiredApp]:
    """What a device should run for which `held` holds, in name order; a removal (version None) leaves the app out."""
    found = (app(name, row.version) for name, row in sorted(held.items()) if row.version is not None)
    return [each for each in found if each is not None]
