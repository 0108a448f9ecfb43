"""Somebody on a port who says that it is a cloud: answers HTTPS with a certificate it should not have."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from marram.cloud.threshold import server_context


class Impostor(threading.Thread):
    """Shows `identity` (key and certificate, PEM), and `authority` to whoever asks; `heard`: all it was told."""

    def __init__(self, folder: Path, identity: bytes, authority: bytes) -> None:
        super().__init__(daemon=True, name="impostor")
        self.heard = b""
        self._authority = authority
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"https://{self.address}"
        self._context = server_context(folder, identity)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                plain.settimeout(10)
                with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as secured:
                    self.heard += secured.recv(65536)
                    secured.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self._authority)

    def close(self) -> None:
        """Gone when this returns."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(15)
