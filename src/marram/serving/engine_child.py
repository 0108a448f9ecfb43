"""The process that holds the engines: a `Host` that answers over a socket and shared memory. See `engine.py`.

It ends when the socket does: whoever started it is gone then, however that ended.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import sys
from pathlib import Path

import msgpack

from marram.last_resort import ended
from marram.schema.errors import MarramError, Permanent
from marram.serving.host import Host, Limits
from marram.serving.process import run, set_up
from marram.serving.shm import Slots
from marram.serving.wire import (
    Document,
    Pipe,
    answer_out,
    fault_out,
    put_beside,
    question_in,
    served_out,
    taken_from,
)

log = logging.getLogger(__name__)


class Child:
    """Answers what comes through `pipe` by `host`."""

    def __init__(self, host: Host, pipe: Pipe, slots: Slots) -> None:
        self._host = host
        self._pipe = pipe
        self._slots = slots
        self._working: dict[int, asyncio.Task[None]] = {}

    async def live(self) -> None:
        """Until the other end is gone."""
        while (document := await self._pipe.receive()) is not None:
            number = document["id"]
            if "gone" in document:
                working = self._working.get(number)
                if working is not None:
                    working.cancel()
                continue
            task = asyncio.create_task(self._answer(number, document))
            self._working[number] = task
            task.add_done_callback(functools.partial(self._finished, number))

    def _finished(self, number: int, task: asyncio.Task[None]) -> None:
        self._working.pop(number, None)
        if task.cancelled():  # there is a reply all the same: only then its slot is free
            self._pipe.send(fault_out(Permanent("nobody waits for it any more")) | {"id": number})

    async def _answer(self, number: int, document: Document) -> None:
        try:
            reply = await self._done(document)
        except MarramError as error:
            reply = fault_out(error)
        except Exception as error:
            log.exception("a question failed")
            reply = fault_out(Permanent(f"the engine's process failed: {type(error).__name__}"))
        reply["id"] = number
        self._pipe.send(reply)

    async def _done(self, document: Document) -> Document:
        if "put" in document:
            return {"served": served_out(await self._host.put(Path(document["put"])))}
        if "drop" in document:
            name, version = document["drop"]
            await self._host.drop(name, version)
            return {}
        answer = await self._host.infer(question_in(document, taken_from(document, self._slots)))
        reply, parts = answer_out(answer)
        if parts:
            put_beside(reply, parts, self._slots, document.get("slot"))
        return reply


async def _serve(arguments: list[str]) -> None:
    descriptor, memory, count, size_bytes, limits = arguments
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=int(descriptor)), limit=2**20)
    slots = Slots.attach(int(memory), int(count), int(size_bytes))
    host = Host(Limits(**msgpack.unpackb(bytes.fromhex(limits))))
    await Child(host, Pipe(reader, writer), slots).live()
    os._exit(0)  # nobody is left to answer: no engine has to be waited for


def main() -> int:
    """The exit status."""
    logging.basicConfig(level=logging.WARNING, format="engine: %(message)s")
    set_up()

    def live() -> int:
        run(_serve(sys.argv[1:]))
        return 0

    return ended(live)


if __name__ == "__main__":
    sys.exit(main())
