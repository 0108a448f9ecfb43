"""Where a device keeps what it is: its key and certificate, the authority it believes, its first update metadata.

Key and certificate are one file, so that a renewal is one rename: power may fail at any byte, and the device is its old
self or its new one. Places only: what is in the files is `trust.identity`'s business, which the agent never loads.
"""

from __future__ import annotations

from pathlib import Path


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
