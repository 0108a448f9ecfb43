"""`envs/` in the device's folder: what functions require and the device does not have, in folders by content.

Wheels come like every other file, by their digest; a confined child unpacks them (`unpack`), so that whatever a wheel
is made to do, it does not do it to the agent. A folder here is whole or absent. Nothing is ever resolved, built or
downloaded by pip on a device.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from marram.edge.bundles import bundle_key
from marram.edge.disk import disk_fault
from marram.edge.packages import installed_versions
from marram.edge.platform import machine
from marram.edge.process import kill_group, worker_environment
from marram.edge.sandbox import plan
from marram.schema.device import DesiredApp
from marram.schema.errors import KINDS, Invalid, MarramError, Permanent, Retryable
from marram.schema.model import Manifest
from marram.schema.platform import OWN, Platform
from marram.system.files import make_folder

LIMIT_S = 600.0


class Envs:
    """One device's. `sweep` and `make` block; call them off the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._envs, self._blobs = folder, folder / "envs", folder / "blobs"
        # One at a time: what is half-made is no leftover then.
        self._unpacking = asyncio.Lock()

    def make(self) -> None:
        """Create the folder and clear what a cut left half-made. Raises Permanent or Retryable."""
        try:
            make_folder(self._envs)
            for leftover in self._envs.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError as error:
            raise disk_fault(error, self._envs) from error

    def wheels(self, app: DesiredApp) -> Manifest:
        """The wheels of `app` for this device.

        Raises Invalid where it brings some for others only: this device's platform was not among the fleet's.
        """
        if not app.wheels:
            return Manifest(files=[])
        try:
            key = Platform.of(machine()).key
        except Invalid as error:
            raise Invalid(f"its packages cannot be chosen: {error.what}", hint=error.hint) from error
        if key not in app.wheels:
            raise Invalid(
                f"its packages were resolved for {', '.join(sorted(app.wheels))}, and this device is {key}",
                hint="Deploy the app again: then they are resolved for this device too.",
            )
        return app.wheels[key]

    async def install(self, wheels: Manifest) -> Path:
        """The folder with `wheels`, whose files are here already. Raises Untrusted, Invalid, Permanent, Retryable."""
        key = bundle_key(wheels)
        folder = self._envs / key
        async with self._unpacking:
            if not await asyncio.to_thread(folder.is_dir):
                await asyncio.to_thread(self.make)
                await self._unpack(wheels, key)
        return folder

    def kept(self, apps: Iterable[DesiredApp]) -> list[Manifest]:
        """The wheels that `apps` need here."""
        found: list[Manifest] = []
        for app in apps:
            with contextlib.suppress(Invalid):
                found.append(self.wheels(app))
        return [wheels for wheels in found if wheels.files]

    def sweep(self, keep: Iterable[Manifest]) -> None:
        """Delete what none of `keep` is."""
        keys = {bundle_key(each) for each in keep}
        if self._envs.is_dir():
            for folder in self._envs.iterdir():
                # Beginning with a dot and its key: just being unpacked.
                if folder.name.removeprefix(".").partition(".")[0] not in keys:
                    shutil.rmtree(folder, ignore_errors=True)

    async def _unpack(self, wheels: Manifest, key: str) -> None:
        installed = await asyncio.to_thread(installed_versions)
        told = {
            "wheels": [[file.path, str(self._blobs / file.sha256)] for file in wheels.files],
            "kept": [name for name in OWN if name in installed],
        }
        confined = plan(self._folder, [self._blobs], [self._envs])
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "marram.edge.sandbox", confined.text(), "marram.edge.unpack",
                str(self._envs), key, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=worker_environment(os.environ), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Retryable(f"cannot start a process: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(LIMIT_S):
                said, complaint = await process.communicate(json.dumps(told).encode())
        except TimeoutError as error:
            raise Permanent(f"its packages were not unpacked within {LIMIT_S:.0f} s") from error
        finally:
            if process.returncode is None:
                kill_group(process.pid)
        if process.returncode != 0:
            raise _fault(said, complaint, self._envs)


def _fault(said: bytes, complaint: bytes, envs: Path) -> MarramError:
    try:
        told = json.loads(said)
        if "errno" in told:
            return disk_fault(OSError(told["errno"], told["what"]), envs)
        return KINDS[told["kind"]](told["what"], where=told["where"], hint=told["hint"])
    except (ValueError, KeyError, TypeError):
        lines = complaint.decode(errors="replace").strip().splitlines()
        return Permanent(f"its packages cannot be unpacked: {lines[-1][:300] if lines else 'killed'}")
