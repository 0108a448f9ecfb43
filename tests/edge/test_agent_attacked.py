"""A real agent whose cloud was taken over: it runs what it ran, fetches nothing, says why, and goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable

from tests.edge.world import Cloud, Device, ticking

from marram.lab.attacks.publisher import Publisher
from marram.schema.device import AppState, Desired
from marram.schema.signed import parse_metadata_name

Fetch = Callable[[str, int], bytes | None]


def _unsigned(cloud: Cloud) -> Fetch:
    """The cloud without its keys: it can only serve what was signed before, under fresh names."""
    held = {key: document.content for key, document in cloud.publisher.shelf.documents.items()}
    newest = cloud.publisher.serve("timestamp.json", 0)

    def serve(name: str, most_bytes: int) -> bytes | None:
        role, version = parse_metadata_name(name)
        return newest if version is None else held.get((role, version))

    return serve


def _rolled_back(cloud: Cloud) -> Fetch:
    old = cloud.publisher.shelf.documents[
        "timestamp", min(version for role, version in cloud.publisher.shelf.documents if role == "timestamp")
    ]
    return lambda name, most: old.content if name == "timestamp.json" else cloud.publisher.serve(name, most)


def _others(cloud: Cloud) -> Fetch:
    other = Publisher(now_s=lambda: cloud.publisher.now_s() + 1000)
    other.sign(cloud.desired.apps)
    return other.serve


def _endless(cloud: Cloud) -> Fetch:
    return lambda name, most: bytes(3_000_000) if name == "timestamp.json" else cloud.publisher.serve(name, most)


# Unsigned first: later ones may serve what is signed by then.
ATTACKS = [
    (_unsigned, "unsigned: "),
    (_rolled_back, "rollback: "),
    (_others, "wrong key: "),
    (_endless, "endless data: "),
]


async def test_a_cloud_taken_over_gets_nothing_onto_a_device(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    workers = device.workers()
    asked = len(cloud.asked)
    for version, (attack, words) in enumerate(ATTACKS, 2):
        wanted = cloud.app("ticking", version, ticking(every=f"{8 + version} ms"))
        cloud.serve = attack(cloud)
        if attack is not _unsigned:
            cloud.publisher.sign([wanted])
            if attack is _others:
                cloud.serve = attack(cloud)
        cloud.desired = Desired(version=cloud.desired.version + 1, apps=[wanted])
        report = await cloud.until(lambda r, version=version: any(a.version == version and a.reason for a in r.apps))
        (app,) = report.apps
        assert app.reason.startswith(words) and app.state is AppState.PENDING
        assert app.running == 1 and not app.refused and device.workers() == workers
        assert len(cloud.asked) == asked, "nothing of it was fetched"
    # Whoever it was is gone: the same version, no worse for it.
    cloud.serve = cloud.publisher.serve
    cloud.publisher.sign([wanted])
    await cloud.until_state("ticking", AppState.COMMITTED, version)
    assert "Traceback" not in device.words()
