"""The cloud's safe: secrets that apps need, opened only to be sealed again for one device.

A device gets a secret where two people agree: whoever set it, by the selector that the device's labels match, and
whoever deployed an app to the device that declares it. The value is never in a log, a message or an answer of the API.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from marram.bus.codec import pack
from marram.schema.api import SecretView
from marram.schema.device import DesiredApp
from marram.schema.errors import Threat, Untrusted
from marram.schema.ids import matches
from marram.store import SecretRow, Store, check_standing
from marram.trust import pki, sealing
from marram.trust.keys import Keys


def secret_view(row: SecretRow) -> SecretView:
    """A secret as the API shows it."""
    return SecretView(name=row.name, selector=row.selector, version=row.version, changed_s=row.changed_s)


class Safe:
    """Secrets over the store. Blocking; safe from any thread."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys
        self._key: bytes | None = None
        self._reading = threading.Lock()

    def put(self, name: str, value: str, selector: dict[str, str]) -> SecretRow:
        """Set a secret for the devices that match `selector`. Raises Missing, Refused (seal.key)."""
        key = self._seal_key()
        return self._store.secrets.set(name, selector, lambda version: sealing.seal(key, name, version, value))

    def all(self) -> list[SecretRow]:
        """By name; sealed."""
        return self._store.secrets.list()

    def remove(self, name: str) -> None:
        """Devices forget it with their next report. Raises Missing."""
        self._store.secrets.remove(name)

    def versions(self, device: str, apps: Iterable[DesiredApp]) -> dict[str, int]:
        """Which secrets `device`, which runs `apps`, should have, each with its version."""
        return {row.name: row.version for row in self._allowed(device, apps)}

    def sealed_for(self, device: str, certificate_pem: bytes) -> bytes:
        """All the secrets of `device`, for the key in its certificate alone.

        Raises Untrusted (NOT_YOURS, REVOKED, CLONED …): the certificate is not the device's own.
        """
        certificate = pki.load_certificate(certificate_pem)
        row = self._store.certificates.get(f"{certificate.serial_number:x}")
        standing = check_standing(row, time.time(), device=device)
        if pki.key_hash(pki.supported(certificate.public_key())) != standing.key_hash:
            raise Untrusted("the certificate is not the one that was issued", threat=Threat.WRONG_KEY, where=device)
        key, apps = self._seal_key(), self._store.states.desired(device).apps
        values = {
            row.name: [row.version, sealing.unseal(key, row.name, row.version, row.sealed)]
            for row in self._allowed(device, apps)
        }
        return sealing.seal_for(certificate_pem, device, pack(values))

    def _allowed(self, device: str, apps: Iterable[DesiredApp]) -> list[SecretRow]:
        declared = {name for app in apps for name in app.secrets}
        labels = self._store.devices.labels_of(device) if declared else None
        if labels is None:
            return []
        return [row for row in self.all() if row.name in declared and matches(row.selector, labels)]

    def _seal_key(self) -> bytes:
        with self._reading:
            if self._key is None:
                self._key = sealing.read_seal_key(self._keys)
            return self._key
