"""TLS to the broker: which files prove who we are and whom we believe, and what each fault of it means in words.

Trust is in one authority alone, the cloud's own; host names are not looked at, since a device reaches its cloud through
any address or forwarded port. What keeps a device from posing as the broker is the use that its certificate is for.
Nothing here ever falls back to a connection without TLS, or to the system's authorities.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from marram.schema.errors import Invalid, MarramError, Missing, Permanent, Refused, Retryable, Threat, Untrusted
from marram.schema.words import file_fault

# OpenSSL's numbers of what is wrong with the peer's certificate (x509_vfy.h).
_EXPIRED, _NOT_YET, _WRONG_PURPOSE = 10, 9, 26
_AGAIN = "Restore it from a copy, or join again with a new token: marram edge join URL TOKEN"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """`identity`: our key and certificate in one PEM; `authority`: the certificate of the one authority we believe.

    Read anew for each connection, so that renewed ones are used from the next one on.
    """

    identity: Path
    authority: Path

    def context(self) -> ssl.SSLContext:
        """Raises Missing, Permanent (unreadable), Invalid (damaged)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        for file, load in (
            (self.authority, context.load_verify_locations),
            (self.identity, context.load_cert_chain),
        ):
            try:
                load(file)
            except FileNotFoundError as error:
                raise Missing("this part of the identity is not there", where=str(file), hint=_AGAIN) from error
            except ssl.SSLError as error:
                raise Invalid("it is damaged: no certificate (and key) in it", where=str(file), hint=_AGAIN) from error
            except OSError as error:
                raise Permanent(f"cannot be read: {file_fault(error)}", where=str(file)) from error
        return context


def tls_fault(error: ssl.SSLError, user: str) -> MarramError:
    """What a handshake that failed means for `user`, whose identity we showed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _peer_fault(error)
    reason = error.reason or ""
    if "CERTIFICATE_EXPIRED" in reason:
        return Untrusted(f"the certificate of {user} has expired", threat=Threat.EXPIRED)
    if "UNKNOWN_CA" in reason:
        return Untrusted(f"the broker is of another cloud than {user}", threat=Threat.OTHER_CLOUD)
    if "CERTIFICATE_REQUIRED" in reason:
        return Refused("the broker wants a certificate, and we have shown none")
    if "ALERT" in reason and "CERTIFICATE" in reason:
        return Refused(f"the broker does not accept the certificate of {user}")
    if "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason:
        return Retryable("what answers there does not speak TLS")
    return Retryable(f"TLS failed: {reason.lower().replace('_', ' ') or 'broken off'}")


def _peer_fault(error: ssl.SSLCertVerificationError) -> MarramError:
    """What is wrong with the broker's certificate."""
    if error.verify_code in (_EXPIRED, _NOT_YET):
        return Untrusted(
            "the broker's certificate is not valid now",
            threat=Threat.EXPIRED,
            hint="Restart the cloud to renew it, or see this machine's clock.",
        )
    if error.verify_code == _WRONG_PURPOSE:
        return Untrusted("what answers shows a certificate that is not a server's", threat=Threat.NOT_YOURS)
    return Untrusted("what answers is not the cloud that this identity is of", threat=Threat.OTHER_CLOUD)
