"""Takes what other devices ask to a worker, and its answers back: the agent's side of answering.

Few at once and each for a short time, whatever the worker does; the agent neither reads a question nor an answer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection
from typing import Any

from marram.edge.agent_end import AgentEnd
from marram.schema.errors import Busy, NotReady, Refused, Retryable

# The worker computes one at a time, and refuses the others at once.
_MOST = 4
_LONGEST_S = 10.0


class Neighbour:
    """One worker's. `models`: the (name, version) pairs with which its app answers other devices."""

    def __init__(self, channel: AgentEnd, models: Collection[tuple[str, int]]) -> None:
        self._channel, self._models = channel, models
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[bytes]] = {}

    async def ask(self, model: tuple[str, int], payload: bytes) -> bytes:
        """The worker's reply (`InferReply`). Raises Refused (not a model for others), Busy, NotReady (it ended),
        Retryable (no answer in time).
        """
        if model not in self._models:
            raise Refused(f"no app here answers others with {model[0]}@{model[1]}")
        if len(self._asked) >= _MOST:
            raise Busy("other devices ask already", queue_s=0.0, waiting=len(self._asked))
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._channel.send({"t": "asked", "id": number, "model": list(model), "payload": payload})
            async with asyncio.timeout(_LONGEST_S):
                return await answer
        except TimeoutError as error:
            raise Retryable("the app did not answer in time") from error
        finally:
            del self._asked[number]

    def answered(self, message: dict[str, Any]) -> None:
        """Take an `answer` in; one that nobody waits for, or that is none, is forgotten."""
        number, payload = message.get("id"), message.get("payload")
        answer = self._asked.get(number) if type(number) is int else None
        if answer is not None and isinstance(payload, bytes) and not answer.done():
            answer.set_result(payload)

    def close(self) -> None:
        """The worker is gone."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(NotReady("the app ended"))
