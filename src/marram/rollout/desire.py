"""The rule, pure: what one device should run, given its labels and every deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from marram.schema.device import DesiredApp
from marram.schema.ids import matches
from marram.store import DeploymentRow


def holding(labels: dict[str, str], deployments: Iterable[DeploymentRow]) -> dict[str, DeploymentRow]:
    """By app name, the deployment that holds for a device with `labels`: the newest whose selector matches it."""
    newest: dict[str, DeploymentRow] = {}
    for deployment in sorted(deployments, key=lambda d: d.id, reverse=True):
        if deployment.app not in newest and matches(deployment.selector, labels):
            newest[deployment.app] = deployment
    return newest


def desired_apps(
    labels: dict[str, str],
    deployments: Iterable[DeploymentRow],
    app: Callable[[str, int], DesiredApp | None],
) -> list[DesiredApp]:
    """What a device with `labels` should run, in name order; a removal (version None) leaves the app out."""
    found = (
        app(name, deployment.version)
        for name, deployment in sorted(holding(labels, deployments).items())
        if deployment.version is not None
    )
    return [each for each in found if each is not None]
