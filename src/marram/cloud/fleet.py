"""The fleet role: hears what devices report, tells them what they should run, gives them the files for it.

Level-triggered: every report is answered with the whole desired state where the device's is another, so a lost nudge
costs one report interval and nothing else. A device gets only files that its own desired state names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import (
    MAX_MESSAGE_BYTES,
    BlobAsk,
    MetadataAsk,
    pack_blob,
    pack_desired,
    pack_metadata,
    unpack,
    unpack_report,
)
from marram.cloud.loops import for_ever
from marram.cloud.safe import Safe
from marram.cloud.signing import Signing
from marram.rollout import Rollout
from marram.schema.device import Desired, Reported
from marram.schema.errors import Invalid, MarramError, Missing, Refused
from marram.store import Objects, Store

log = logging.getLogger(__name__)

QUEUE = "fleet"
_PARALLEL = 8
# How often every desired state is computed anew, whatever happened: repairs what a crash between two writes left.
_REFRESH_S = 15.0
# How often rollouts are looked at.
_STEER_S = 1.0
# How often a person is told again that something has to be renewed.
_TELL_S = 86_400.0
# Room for the framing around a range.
_MOST_BYTES = MAX_MESSAGE_BYTES - 4096
_ALLOWED_S = 10.0


class Fleet:
    """One fleet process; start as many as needed."""

    def __init__(
        self, bus: Bus, store: Store, objects: Objects, rollout: Rollout, signing: Signing, safe: Safe
    ) -> None:
        self._bus = bus
        self._store = store
        self._objects = objects
        self._rollout = rollout
        self._signing = signing
        self._safe = safe
        self._allowed: dict[str, tuple[float, frozenset[str]]] = {}
        self._told_s = float("-inf")  # when a person was last told what has to be renewed
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Subscribe, and keep desired states true from now on."""
        await self._bus.subscribe(subjects.REPORTS, self._on_report, QUEUE, parallel=_PARALLEL)
        await self._bus.subscribe(subjects.BLOBS, self._on_blob, QUEUE, parallel=_PARALLEL)
        await self._bus.subscribe(subjects.METADATA, self._on_metadata, QUEUE, parallel=_PARALLEL)
        await self._bus.subscribe(subjects.SECRETS, self._on_secrets, QUEUE, parallel=_PARALLEL)
        self._tasks = [
            asyncio.create_task(turns, name=name)
            for name, turns in {
                "fleet": for_ever("desired states were not refreshed", self._keep_true, _REFRESH_S),
                "signatures": for_ever("what devices may run could not be signed", self._sign, _REFRESH_S),
                # A look over ten thousand devices takes a second: most of the time belongs to the reports.
                "rollouts": for_ever("rollouts were not taken on", self._steer, _STEER_S, rest=3.0),
            }.items()
        ]

    async def stop(self) -> None:
        """Stop refreshing; the subscriptions end with the bus."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_true(self) -> None:
        await nudge(self._bus, await asyncio.to_thread(self._rollout.refresh))

    async def _steer(self) -> None:
        """Take rollouts on: whoever dies here, at any point, leaves it to the next look of any fleet process."""
        if await asyncio.to_thread(self._rollout.rollouts.advance_all):
            await self._keep_true()

    async def _sign(self) -> None:
        """Keep what is signed complete and from expiring; tell a person in time what only a person can renew."""
        await asyncio.to_thread(self._signing.tend)
        if time.monotonic() - self._told_s > _TELL_S:
            self._told_s = time.monotonic()
            for words in await asyncio.to_thread(self._signing.warnings):
                log.warning("%s", words)

    async def _on_report(self, message: Message) -> bytes | None:
        device = subjects.device_of(message.subject)
        reported = unpack_report(message.payload)
        return pack_desired(*await asyncio.to_thread(self._report, device, reported))

    def _report(self, device: str, reported: Reported) -> tuple[Desired | None, dict[str, int]]:
        if not self._store.devices.exists(device):
            raise Refused(f'no device "{device}" here; it was removed', hint="Join it again: marram edge join")
        if reported.info is not None:
            self._store.devices.set_info(device, reported.info)
            reported = reported.model_copy(update={"info": None})
        self._store.states.report(device, reported)
        desired = self._store.states.desired(device)
        # Not only older: after the cloud was restored from a backup, a device may know of a later state than it does.
        newer = desired if desired.version != reported.desired_version else None
        return newer, self._safe.versions(device, desired.apps)

    async def _on_blob(self, message: Message) -> bytes | None:
        device = subjects.device_of(message.subject)
        ask = BlobAsk.unpack(message.payload)
        return await asyncio.to_thread(self._blob, device, ask)

    def _blob(self, device: str, ask: BlobAsk) -> bytes:
        if ask.sha256 not in self._may_read(device, ask.sha256):
            raise Missing(f"no file {ask.sha256[:12]}… among what {device} should run")
        size = self._objects.size(ask.sha256)
        return pack_blob(self._objects.read(ask.sha256, ask.offset, min(ask.length, _MOST_BYTES)), size)

    async def _on_secrets(self, message: Message) -> bytes | None:
        device = subjects.device_of(message.subject)
        certificate = unpack(message.payload)
        if not isinstance(certificate, bytes):
            raise Invalid("secrets are asked for with the device's certificate")
        return await asyncio.to_thread(self._safe.sealed_for, device, certificate)

    async def _on_metadata(self, message: Message) -> bytes | None:
        ask = MetadataAsk.unpack(message.payload)
        content = await asyncio.to_thread(self._signing.read, ask.name)
        if content is None:
            return pack_metadata(b"", None)
        return pack_metadata(content[ask.offset : ask.offset + min(ask.length, _MOST_BYTES)], len(content))

    def _may_read(self, device: str, sha256: str) -> frozenset[str]:
        """The digests that the device's desired state names; remembered briefly, since a file comes in many ranges."""
        now_s = time.monotonic()
        until_s, digests = self._allowed.get(device, (0.0, frozenset()))
        if now_s < until_s and sha256 in digests:
            return digests
        digests = frozenset(
            file.sha256
            for app in self._store.states.desired(device).apps
            for manifest in (app.files, *app.wheels.values(), *(model.manifest for model in app.models))
            for file in manifest.files
        )
        self._allowed[device] = (now_s + _ALLOWED_S, digests)
        if len(self._allowed) > 10_000:
            self._allowed.clear()
        return digests


async def nudge(bus: Bus, devices: Iterable[str]) -> None:
    """Ask devices to report now. Lost nudges are repaired by the next report, so nothing is raised."""
    for device in devices:
        try:
            await bus.publish(subjects.desired(device), b"")
        except MarramError as error:
            log.info("a nudge to %s was lost: %s", device, error)
            return
