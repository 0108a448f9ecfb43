"""Where a device keeps what it is: its key and certificate, the authority it believes, its first update metadata.

Key and certificate are one file, so that a renewal is one rename: power may fail at any byte, and the device is its old
self or its new one. Places only: what is in the files is `trust.identity`'s business, which the agent never loads.
"""

from __future__ import annotations

from pathlib import Path

# The first line of an identity says from when to when it is valid: `# valid 1763800000 1766400000`, Unix times.
_STAMP = b"# valid "


class IdentityFiles:
    """The files in `identity/` of a device's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Its key and certificate, PEM.
        self.own = folder / "identity.pem"
        # A new key, from the moment a certificate is asked for until it is here.
        self.next = folder / "next.pem"
        # The certificate of its cloud's authority.
        self.authority = folder / "ca.pem"
        # The update metadata that it was given when it joined (TUF root.json).
        self.root = folder / "root.json"

    def validity_s(self) -> tuple[float, float] | None:
        """From when to when the certificate says it is valid, Unix times; None where that cannot be told."""
        try:
            with self.own.open("rb") as file:
                first = file.readline(100)
            if not first.startswith(_STAMP):
                return None
            since_s, until_s = map(float, first[len(_STAMP) :].split())
        except (OSError, ValueError):
            return None
        return since_s, until_s
