"""Sockets of our own to listen with: a port in use is told at once, before a server is made for it."""

from __future__ import annotations

import socket


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `port` of `host` (0: any free one), not listening yet. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def free_port() -> int:
    """One of loopback that nobody has now; somebody may before it is used."""
    with bound("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])
