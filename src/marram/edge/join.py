"""`marram edge join`: turn a token into an identity, once, and keep it in the device's folder.

The token is single-use, so everything that can fail here is tried before it is spent.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from urllib.parse import urlsplit

from marram import __version__
from marram.bus.http import CloudApi
from marram.edge.state import Credentials, Folder, write_atomic
from marram.schema.device import DeviceInfo
from marram.schema.errors import Conflict, Invalid


def join(
    folder: Folder,
    url: str,
    token: str,
    *,
    name: str | None = None,
    labels: dict[str, str] | None = None,
    brokers: list[str] | None = None,
    api: Callable[[str], CloudApi] = CloudApi,
) -> Credentials:
    """Join the cloud at `url` as a new device; `brokers` overrides the addresses that the cloud names.

    Raises Conflict (joined already, or an agent runs there), Refused (the token), Retryable (no answer), Invalid.
    """
    for broker in brokers or []:
        check_broker(broker)
    with folder.lock(), api(url) as cloud:
        if folder.joined():
            raise Conflict(
                f"{folder.path} holds a device already",
                hint="Start it: marram edge run. For a second device on this machine: --folder FOLDER. "
                f"To leave that cloud, delete {folder.path / 'credentials.yaml'} first.",
            )
        probe = folder.path / ".join"
        write_atomic(probe, bytes(4096))
        probe.unlink()
        joined = cloud.join(token, name=name, labels=labels, info=machine())
        credentials = Credentials(
            device=joined.device, secret=joined.secret, brokers=brokers or joined.brokers, cloud=cloud.url
        )
        folder.save_credentials(credentials)
    return credentials


def machine() -> DeviceInfo:
    """This machine, as it is shown to the operator."""
    try:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        memory_bytes = 0
    return DeviceInfo(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=os.cpu_count() or 0,
        memory_bytes=memory_bytes,
        marram=__version__,
    )


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
