"""How a device renews its identity: a new key beside the old one, a proof, and one rename.

Power may fail at any byte: the new key is on the disk before anybody hears of it and stays until its certificate is
here; key and certificate then take the old ones' place in one rename. A cut before it leaves the old identity, which
asks again for the same new key; a cut after it leaves the new one. For the trustee's process: an agent never loads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from marram.bus.http import CloudApi
from marram.edge.disk import disk_fault
from marram.edge.identity import IdentityFiles
from marram.edge.state import write_atomic
from marram.schema.api import RenewAsk, Renewed, StandingAsk
from marram.schema.errors import Invalid, Missing
from marram.trust import identity

# Told of the old identity and the new one (PEM) before the new one is the device's.
Carry = Callable[[bytes, bytes], None]


class Renewing:
    """Over one device's identity files. Blocking; one at a time."""

    def __init__(self, files: IdentityFiles, carry: Carry = lambda old, new: None) -> None:
        self._files = files
        self._carry = carry

    def request(self) -> bytes:
        """What to send to the cloud for a certificate of the new key. Raises Missing, Invalid (damaged), Retryable."""
        own = _read(self._files.own)
        csr = identity.request(self._next_key(own), identity.device_of(own))
        ask = RenewAsk(
            certificate=identity.certificate_of(own).decode(), csr=csr.decode(), proof=identity.prove(own, csr)
        )
        return ask.model_dump_json().encode()

    def accept(self, answer: bytes) -> None:
        """The cloud's answer: the new key and certificate are the device's when this returns.

        Raises Untrusted (not a certificate for that key, by the device's authority), Invalid, Retryable (disk).
        """
        try:
            certificate = Renewed.model_validate_json(answer).certificate
        except ValidationError as error:
            raise Invalid("the answer to a renewal is not one", hint="Are both sides of one version?") from error
        own = _read(self._files.own)
        renewed = identity.accept(
            certificate.encode(), self._next_key(own), _read(self._files.authority), identity.device_of(own)
        )
        self._carry(own, renewed)
        write_atomic(self._files.own, renewed)
        with contextlib.suppress(OSError):  # the next renewal finds it, and knows it for the present key
            self._files.next.unlink(missing_ok=True)

    def over_https(self, url: str) -> None:
        """Ask the cloud at `url` itself: where the certificate is over, the broker lets nobody in to ask.

        Raises what `request`, `accept` and `CloudApi.renew` do.
        """
        ask = RenewAsk.model_validate_json(self.request())
        with CloudApi(url, authority=_read(self._files.authority).decode()) as cloud:
            self.accept(cloud.renew(ask).model_dump_json().encode())

    def standing(self, url: str) -> None:
        """Whether the cloud at `url` would let us in. Raises what `CloudApi.standing` does, Missing, Invalid."""
        own = _read(self._files.own)
        ask = StandingAsk(certificate=identity.certificate_of(own).decode(), proof=identity.prove_standing(own))
        with CloudApi(url, authority=_read(self._files.authority).decode()) as cloud:
            cloud.standing(ask)

    def _next_key(self, own: bytes) -> bytes:
        """The key that is to be certified: the one that was made before, where that is still to come."""
        with contextlib.suppress(Missing, Invalid):  # none yet, or damaged by more than a power cut
            key = _read(self._files.next)
            if not identity.same_key(key, own):
                return key
        key = identity.new_key()
        write_atomic(self._files.next, key)
        return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise Missing(
            "this part of the device's identity is not there",
            where=str(file),
            hint="Restore it from a copy, or join again with a new token: marram edge join URL TOKEN",
        ) from error
    except OSError as error:
        raise disk_fault(error, file) from error
