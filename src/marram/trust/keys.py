"""The cloud's folder of keys: which file is where, and that nobody else reads it.

Keys are provisioned, not state: they are made once, copied by a person to where a role runs alone, and belong into a
safe, not into a database's backup. Each file is made by the module that uses it; here are only the places and their
rights. Nothing here ever prints what a file holds.
"""

from __future__ import annotations

from pathlib import Path

from marram.schema.errors import Missing, Permanent, Refused
from marram.schema.words import file_fault
from marram.system import files

# Whoever is not the owner may do nothing with a key.
_OTHERS = 0o077


class Keys:
    """The files in one folder of keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The authority behind every device and server: its certificate (no secret), its key.
        self.ca_certificate = folder / "ca.pem"
        self.ca_key = folder / "ca.key"
        # Signs what the broker is told of a device that connects (an nkey account's seed).
        self.callout_seed = folder / "callout.seed"
        # Seals the secrets in SQL (32 bytes).
        self.seal_key = folder / "seal.key"
        # The update keys that sign while the cloud runs, and those that a person moves to a safe place.
        self.signing = folder / "signing"
        self.offline = folder / "offline"

    def make(self) -> None:
        """Make the folders (0700), where they are not there. Raises Refused where they cannot be, or others may."""
        for each in (self.folder, self.signing, self.offline):
            try:
                files.make_folder(each)
            except OSError as error:
                raise Refused(f"cannot make it: {error.strerror}", where=str(each)) from error
            self._check_rights(each)

    def write(self, file: Path, content: bytes) -> None:
        """Keep `content` in `file` (0600), whole or not at all. Raises Permanent."""
        try:
            files.write(file, content)
        except OSError as error:
            raise Permanent(f"cannot write it: {file_fault(error)}", where=str(file)) from error

    def read(self, file: Path) -> bytes:
        """Raises Missing where it is not there, Refused where others than its owner may read it, or we may not."""
        try:
            self._check_rights(file)
            return file.read_bytes()
        except FileNotFoundError as error:
            raise Missing(
                "this key is not there",
                where=str(file),
                hint="`marram cloud init` makes keys; a role that runs alone needs a copy of them: --keys FOLDER.",
            ) from error
        except OSError as error:
            raise Refused(f"cannot be read: {file_fault(error)}", where=str(file)) from error

    def _check_rights(self, path: Path) -> None:
        if path != self.ca_certificate and path.stat().st_mode & _OTHERS:
            raise Refused(
                "others than its owner may use it", where=str(path), hint=f"chmod -R go= {self.folder} && start again."
            )
