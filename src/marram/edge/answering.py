"""The trustee's process: one question over a pair of sockets, one answer, the end.

It believes nothing that the agent brings. It must import nothing heavy: each question starts a process anew, and some
of them stand between a deployment and its first result.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.edge.channel import WorkerEnd
from marram.edge.process import die_with
from marram.schema.errors import KINDS, MarramError, Permanent

# Asks the agent for signed metadata by its name: at most so many bytes. None: the cloud has none. Raises MarramError.
Fetch = Callable[[str, int], bytes | None]
# Over a device's folder: the answer to a question. Raises MarramError.
Answer = Callable[[Path, dict[str, Any], Fetch], dict[str, Any]]


def serve(answer: Answer) -> None:
    """`python -m MODULE SOCKET PARENT FOLDER`: the whole life of a module that answers."""
    number, parent, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    die_with(parent)
    channel = WorkerEnd(socket.socket(fileno=number))
    question = channel.receive()
    if question is None:
        return

    def fetch(name: str, most_bytes: int) -> bytes | None:
        channel.send({"t": "metadata", "name": name, "most_bytes": most_bytes})
        message = channel.receive()
        if message is None:
            os._exit(1)  # nobody wants to know any more
        if message["t"] == "fault":
            raise fault_of(message)
        content: bytes | None = message["content"]
        return content

    try:
        reply = {"t": "answer", "answer": answer(folder, question, fetch)}
    except MarramError as error:
        reply = fault(error)
    channel.send(reply)
    channel.drain(5)


def fault(error: MarramError) -> dict[str, Any]:
    """An error as it travels between the two processes."""
    return {"t": "fault", "kind": error.kind, "what": error.what, "where": error.where, "hint": error.hint}


def fault_of(message: dict[str, Any]) -> MarramError:
    """The inverse of `fault`."""
    return KINDS.get(message["kind"], Permanent)(message["what"], where=message["where"], hint=message["hint"])
