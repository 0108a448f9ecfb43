"""The agent's side of secrets: which ones its device has, in which version; what they are, only for a worker's start.

Level-triggered: every answer to a report says which secrets, in which version, the device should have. Where that is
not what it has, it asks for all of them, sealed to its key; they stay sealed on disk, under that key, which the agent
itself never reads (`trustee`). A lost message costs one report interval.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marram.bus import subjects
from marram.bus.codec import pack
from marram.edge.relay import Requester
from marram.edge.state import write_atomic
from marram.edge.trustee import Trustee
from marram.schema.errors import MarramError, NotReady, Retryable

log = logging.getLogger("marram.edge")

_TIMEOUT_S = 10.0
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


class Secrets:
    """One device's. `identity`: the file with its key and certificate, of which only the latter is looked at."""

    def __init__(self, folder: Path, identity: Path, device: str, bus: Requester, trustee: Trustee) -> None:
        self._file, self._identity = folder / "secrets.json", identity
        self._device, self._bus, self._trustee = device, bus, trustee
        self._asking = asyncio.Lock()
        self._complained = ""
        self.versions = _read(self._file)

    async def told(self, versions: dict[str, int]) -> set[str]:
        """The cloud says which secrets this device should have: bring them. Returns the names of those that changed.

        Raises nothing: what fails is tried again with the next report.
        """
        async with self._asking:
            if versions == self.versions:
                return set()
            try:
                certificate = _certificate(await asyncio.to_thread(self._identity.read_bytes))
                sealed = await self._bus.request(subjects.secrets(self._device), pack(certificate), _TIMEOUT_S)
                await self._trustee.secrets(sealed, ())
                await asyncio.to_thread(write_atomic, self._file, json.dumps(versions).encode())
            except Retryable:
                return set()
            except (MarramError, OSError) as error:
                if str(error) != self._complained:
                    log.warning("secrets: %s", error)
                self._complained = str(error)
                return set()
            changed = {name for name, _ in versions.items() ^ self.versions.items()}
            self.versions, self._complained = versions, ""
            log.info("secrets: %s", ", ".join(sorted(changed)))
            return changed

    async def values(self, names: Sequence[str]) -> dict[str, str]:
        """What they are, for one worker. Raises NotReady where one is not here."""
        if not names:
            return {}
        found = await self._trustee.secrets(None, tuple(names))
        missing = [name for name in names if name not in found]
        if missing:
            # What is on the disk does not hold what we believe it does: have it sent again.
            self.versions = {name: version for name, version in self.versions.items() if name not in missing}
            raise NotReady(
                f"waits for the secret {', '.join(missing)}",
                hint=f"In the cloud: marram secret set {missing[0]} (--to a label of this device)",
            )
        return found


def _certificate(identity: bytes) -> bytes:
    """The certificate's text alone. Raises OSError where there is none."""
    begins, ends = identity.find(_BEGIN), identity.find(_END)
    if begins < 0 or ends < begins:
        raise FileNotFoundError("the device's identity has no certificate")
    return identity[begins : ends + len(_END)] + b"\n"


def _read(file: Path) -> dict[str, int]:
    try:
        document: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    good = isinstance(document, dict) and all(isinstance(version, int) for version in document.values())
    return document if good else {}
