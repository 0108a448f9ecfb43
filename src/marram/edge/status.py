"""A running agent's answer to `marram edge status`: one JSON document on a socket in the device's folder.

Nothing is written every few seconds for it (flash wears out), and no secret is in it. Who asks shows a key that lies
beside the socket: an app on the device has the same user, and finds the socket, but cannot read there (`sandbox`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marram.system import files

log = logging.getLogger("marram.edge")
_NAME = "agent.sock"
_KEY = "agent.key"
_KEY_BYTES = 33
_ASKED_S = 2.0


class StatusSocket:
    """The agent's side."""

    def __init__(self, folder: Path, status: Callable[[], dict[str, Any]]) -> None:
        self._folder, self._status = folder, status
        self._server: asyncio.Server | None = None
        self._key = secrets.token_hex(16).encode()

    async def open(self) -> None:
        """Listen. Where the file system has no sockets there is only no status."""
        try:
            (self._folder / _NAME).unlink(missing_ok=True)
            files.write(self._folder / _KEY, self._key)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _short(self._folder) as path:
                listening.bind(path)
            (self._folder / _NAME).chmod(0o600)
            self._server = await asyncio.start_unix_server(self._answer, sock=listening)
        except OSError as error:
            log.warning("no status for `marram edge status`: %s", error)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                (self._folder / _NAME).unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_ASKED_S):
                shown = await reader.readexactly(_KEY_BYTES)
            if not hmac.compare_digest(shown, self._key + b"\n"):
                raise ConnectionRefusedError
            writer.write(json.dumps(self._status()).encode())
            await writer.drain()
        writer.close()


def ask(folder: Path, timeout_s: float = 3) -> dict[str, Any] | None:
    """What the agent on `folder` says of itself; None where none answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, _short(folder) as path:
            asking.settimeout(timeout_s)
            asking.connect(path)
            asking.sendall((folder / _KEY).read_bytes() + b"\n")
            parts = bytearray()
            while part := asking.recv(1 << 16):
                parts += part
        document = json.loads(parts)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path to the socket within the 108 bytes that its address may have, however deep the folder lies."""
    if not Path("/proc/self/fd").is_dir():
        yield str(folder / _NAME)
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_NAME}"
    finally:
        os.close(fd)
