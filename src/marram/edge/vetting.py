"""Asks the trustee about apps, once for all that ask at the same moment: a refresh of what is signed costs something.

A device told to run twenty apps at once refreshes once. One app that is refused holds none of the others up.
"""

from __future__ import annotations

import asyncio

from marram.edge.trustee import Metadata, Trustee
from marram.schema.device import DesiredApp
from marram.schema.errors import MarramError, Permanent, Retryable, Untrusted
from marram.schema.model import Manifest
from marram.schema.units import format_size

# One question at most has so many apps: their documents travel in one message.
_MOST_APPS = 16
MOST_FILES = 10_000
# Everything of one app: its files, its models, the packages for one platform.
LARGEST_APP_BYTES = 8_000_000_000


class Vetting:
    """`verify` is what a keeper calls before it fetches the first byte of a version (`Ground.verify`)."""

    def __init__(self, trustee: Trustee, metadata: Metadata) -> None:
        self._trustee, self._metadata = trustee, metadata
        self._waiting: list[tuple[DesiredApp, asyncio.Future[None]]] = []
        self._working: asyncio.Task[None] | None = None

    async def verify(self, app: DesiredApp) -> None:
        """That `app` is signed. Raises as `Trustee.verify`."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((app, told))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="verify")
        await told

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST_APPS], self._waiting[_MOST_APPS:]
            try:
                await self._trustee.verify([app for app, _ in batch], self._metadata)
                _tell(batch, None)
            except Untrusted as error:
                if len(batch) == 1:
                    _tell(batch, error)
                    continue
                # Which of them it is, if it is one of them: each by itself. The refresh is done, they cost little.
                for each in batch:
                    await self._one(each)
            except MarramError as error:
                _tell(batch, error)
            except BaseException as error:
                _tell(batch, Retryable(f"checking signatures failed: {error!r}"))
                raise

    async def _one(self, each: tuple[DesiredApp, asyncio.Future[None]]) -> None:
        try:
            await self._trustee.verify([each[0]], self._metadata)
            _tell([each], None)
        except MarramError as error:
            _tell([each], error)


def check_sizes(app: DesiredApp) -> None:
    """Raises Permanent where an app is larger than any device takes.

    Once it is known who said so, that is a fault of this version; before, somebody may want us to give it up.
    """
    manifests: list[Manifest] = [app.files, *(model.manifest for model in app.models), *app.wheels.values()]
    count = sum(len(manifest.files) for manifest in manifests)
    size_bytes = sum(manifest.size_bytes for manifest in manifests)
    if count > MOST_FILES:
        raise Permanent(f"{app.name} {app.version} has {count} files; a device takes {MOST_FILES}")
    if size_bytes > LARGEST_APP_BYTES:
        raise Permanent(
            f"{app.name} {app.version} has {format_size(size_bytes)}; a device takes {format_size(LARGEST_APP_BYTES)}"
        )


def _tell(batch: list[tuple[DesiredApp, asyncio.Future[None]]], error: MarramError | None) -> None:
    for _, told in batch:
        if told.done():  # who asked was cancelled
            continue
        if error is None:
            told.set_result(None)
        else:
            told.set_exception(error)
