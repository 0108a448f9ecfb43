"""The agent's end of the trustee: each question goes to a process of its own, which ends with the answer.

The process loads what the agent must not (X.509, TUF) and asks back over the same pair of sockets for what only the
agent can bring: signed metadata. It believes nothing the agent brings, and the agent never sees the device's key.
`answering` is the other end; where many devices share a process, `trustee_inside` answers the same questions in a
thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marram.edge.agent_end import AgentEnd
from marram.edge.answering import fault, fault_of
from marram.edge.process import kill_group, worker_environment
from marram.edge.trustee import Metadata
from marram.schema.device import DesiredApp
from marram.schema.errors import MarramError, Permanent, Retryable, Threat, Untrusted

# All of one question; what a bad link needs for a list of a few thousand versions.
_LONGEST_S = 900.0
# Who answers what somebody waits for; the others are `trustee_inside`'s.
MODULES = {"verify": "marram.edge.trustee_verify", "secrets": "marram.edge.trustee_secrets"}


class Questions(ABC):
    """`edge.trustee.Trustee`, each method as one question (a mapping) with one answer (a mapping)."""

    @abstractmethod
    async def ask(self, question: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
        """The answer. Raises MarramError as the question's method says."""

    async def verify(self, apps: Sequence[DesiredApp], metadata: Metadata) -> None:
        """See `Trustee.verify`."""
        documents = {app.target: app.signed() for app in apps}
        documents |= {model.target: model.signed() for app in apps for model in app.models}
        await self.ask({"t": "verify", "documents": documents}, metadata)

    async def renewal(self) -> bytes:
        """See `Trustee.renewal`."""
        return bytes((await self.ask({"t": "renewal"}, _none))["request"])

    async def renewed(self, answer: bytes) -> None:
        """See `Trustee.renewed`."""
        await self.ask({"t": "renewed", "answer": answer}, _none)

    async def renew_at(self, url: str) -> None:
        """See `Trustee.renew_at`."""
        await self.ask({"t": "renew_at", "url": url}, _none)

    async def standing(self, url: str) -> None:
        """See `Trustee.standing`."""
        await self.ask({"t": "standing", "url": url}, _none)

    async def secrets(self, sealed: bytes | None, names: Sequence[str]) -> dict[str, str]:
        """See `Trustee.secrets`."""
        answer = await self.ask({"t": "secrets", "sealed": sealed, "names": list(names)}, _none)
        return {str(name): str(value) for name, value in answer["values"].items()}


class ChildTrustee(Questions):
    """Over one device's folder; questions are answered one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = asyncio.Lock()

    async def ask(self, question: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
        """Raises also Retryable where the process cannot be started, or ends without an answer."""
        async with self._turn:
            ours, theirs = socket.socketpair()
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", MODULES.get(question["t"], "marram.edge.trustee_inside"),
                    str(theirs.fileno()), str(os.getpid()), str(self._folder),
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                    env=worker_environment(os.environ), start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                ours.close()
                raise Retryable(f"cannot start what checks signatures: {error.strerror or error}") from error
            finally:
                theirs.close()
            channel: AgentEnd | None = None
            try:
                channel = await AgentEnd.open(ours)
                async with asyncio.timeout(_LONGEST_S):
                    return await _converse(channel, question, metadata)
            except TimeoutError as error:
                raise Untrusted(
                    f"checking signatures took more than {_LONGEST_S / 60:.0f} minutes", threat=Threat.SLOW
                ) from error
            finally:
                if channel is None:
                    ours.close()
                else:
                    channel.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await process.wait()
                if process.returncode is None:
                    kill_group(process.pid)
                    await process.wait()


async def _converse(channel: AgentEnd, question: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
    channel.send(question)
    while True:
        message = await channel.receive()
        if message is None:
            raise Retryable("what checks signatures ended without an answer", hint="Its log says why.")
        kind = message.get("t")
        if kind == "answer":
            return dict(message["answer"])
        if kind == "fault":
            raise fault_of(message)
        if kind != "metadata":
            raise Permanent(f"what checks signatures said {kind!r:.40}")
        try:
            channel.send({"t": "content", "content": await metadata(message["name"], message["most_bytes"])})
        except MarramError as error:
            channel.send(fault(error))


async def _none(name: str, most_bytes: int) -> bytes | None:
    return None
