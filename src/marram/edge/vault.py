"""A device's secrets on its own disk: one file, sealed under the device's key.

The file is named after the key that opens it. Before the device's key is exchanged for a new one, the file is written
for that as well; so whenever power fails, the key that is then the device's opens a file. One that does not open is as
good as none: the cloud sends the secrets again.

For processes that hold the device's key only, which an agent never does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from marram.bus.packing import unpack_dict
from marram.edge.disk import disk_fault
from marram.schema.errors import Invalid, Untrusted
from marram.system import files
from marram.trust import sealing

log = logging.getLogger("marram.edge")

# Name -> version, value.
Secrets = dict[str, tuple[int, str]]


class Vault:
    """`secrets/` in the device's folder. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "secrets"

    def take(self, identity_pem: bytes, device: str, sealed: bytes) -> None:
        """Keep what the cloud sent in place of what is here.

        Raises Untrusted (not sealed for this device), Invalid (nonsense inside), Retryable or Permanent (the disk).
        """
        found = _checked(unpack_dict(sealing.open_own(identity_pem, device, sealed)))
        self._write(identity_pem, found)
        self.tidy(identity_pem)

    def read(self, identity_pem: bytes, names: Sequence[str]) -> dict[str, str]:
        """The values of those `names` that are here."""
        return {name: value for name, (_, value) in self._read(identity_pem).items() if name in names}

    def carry(self, identity_pem: bytes, next_pem: bytes) -> None:
        """Write it for the key that is about to be the device's. Before that is so; `tidy` after."""
        if found := self._read(identity_pem):
            self._write(next_pem, found)

    def tidy(self, identity_pem: bytes) -> None:
        """Delete what the device's key does not open."""
        own = self._file(identity_pem)
        for file in self._folder.glob("*"):
            if file != own:
                file.unlink(missing_ok=True)

    def _file(self, identity_pem: bytes) -> Path:
        return self._folder / f"{sealing.rest_id(identity_pem)}.sealed"

    def _read(self, identity_pem: bytes) -> Secrets:
        file = self._file(identity_pem)
        try:
            return _checked(json.loads(sealing.open_at_rest(identity_pem, file.read_bytes())))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, Invalid, Untrusted):
            log.warning("%s does not open: the cloud sends the secrets again", file)
            return {}

    def _write(self, identity_pem: bytes, found: Secrets) -> None:
        file = self._file(identity_pem)
        try:
            files.make_folder(self._folder)
            files.write(file, sealing.seal_at_rest(identity_pem, json.dumps(found).encode()))
        except OSError as error:
            raise disk_fault(error, file) from error


def _checked(document: object) -> Secrets:
    """Raises Invalid where it is no mapping of names to version and value."""
    found: Secrets = {}
    if isinstance(document, dict):
        for name, pair in document.items():
            match pair:
                case [int(version), str(value)] if isinstance(name, str):
                    found[name] = (version, value)
                case _:
                    break
        else:
            return found
    raise Invalid("not secrets of ours")
