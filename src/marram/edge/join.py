"""`marram edge join`: turn a token into an identity, once, and keep it in the device's folder.

The token names its cloud by the fingerprint of the cloud's authority: who answers is compared with it before the token
is shown to anybody. The key is made here and stays here. The token is single-use, so everything that can fail here is
tried before it is spent.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from marram.bus.http import CloudApi
from marram.bus.http_wire import check_url, fetch_authority
from marram.edge.platform import described
from marram.edge.state import Credentials, Folder, write_atomic
from marram.schema.errors import Conflict, Invalid
from marram.schema.units import format_size
from marram.trust import JOIN, identity, parse_token


def join(
    folder: Folder,
    url: str,
    token: str,
    *,
    name: str | None = None,
    labels: dict[str, str] | None = None,
    brokers: list[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Credentials:
    """Join the cloud at `url` as a new device; `brokers` overrides the addresses that the cloud names.

    `tell` is given each step that is done, in a few words. Raises Conflict (joined already, or an agent runs there),
    Refused (the token), Untrusted (not the token's cloud, a token used before), Retryable (no answer), Invalid.
    """
    url = secured(url)
    named = parse_token(token, JOIN)
    for broker in brokers or []:
        check_broker(broker)
    with folder.lock():
        if folder.joined():
            raise Conflict(
                f"{folder.path} holds a device already",
                hint="Start it: marram edge run. For a second device on this machine: --folder FOLDER. "
                f"To join anew (revoked, or another cloud), delete {folder.path / 'credentials.yaml'} first.",
            )
        probe = folder.path / ".join"
        write_atomic(probe, bytes(4096))
        probe.unlink()
        authority = identity.check_cloud(fetch_authority(url), named.cloud)
        tell("this is the cloud the token names")
        key = identity.new_key()
        tell("key made here, it never leaves")
        with CloudApi(url, authority=authority.decode()) as cloud:
            about = described()
            csr = identity.request(key, name or "").decode()
            joined = cloud.join(named.text, csr, name=name, labels=labels, info=about)
        own = identity.accept(joined.certificate.encode(), key, authority, joined.device)
        files = folder.identity
        write_atomic(files.authority, authority)
        write_atomic(files.root, joined.root.encode())
        write_atomic(files.own, own)
        credentials = Credentials(device=joined.device, brokers=brokers or joined.brokers, cloud=url)
        # The last one: with it the device has joined.
        folder.save_credentials(credentials)
        tell(f"joined as {joined.device} ({about.machine}, {about.cores} cores, {format_size(about.memory_bytes)})")
        tell(_labelled(joined.labels, labels or {}))
    return credentials


def _labelled(has: dict[str, str], asked: dict[str, str]) -> str:
    """The labels that the device got, and which of them the token decided otherwise than was asked."""
    if not has:
        return "no labels"
    overruled = [f"{key}={has[key]}, not {value}" for key, value in asked.items() if key in has and has[key] != value]
    return (
        "labels "
        + " ".join(f"{key}={value}" for key, value in sorted(has.items()))
        + (f" (its token says {', '.join(overruled)}; a token's labels stand)" if overruled else "")
    )


def secured(url: str) -> str:
    """`url` of a cloud as it is joined, https://HOST:PORT. Raises Invalid."""
    checked = check_url(url, "https")
    if checked.startswith("http:"):
        raise Invalid(
            f"a device joins over HTTPS, not at {checked}",
            hint="Use the line that `marram cloud` or `marram token create` shows: https://HOST:8443.",
        )
    return checked


def check_broker(address: str) -> str:
    """`address` if it is `nats://HOST:PORT` (or `tls://`). Raises Invalid."""
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        fine = False
    if not fine:
        raise Invalid(f'"{address}" is not a broker address', hint="Write nats://HOST:PORT.")
    return address
