"""The pipeline's way to the cloud from inside a worker: questions over the channel, answers as futures.

It holds no network connection and no secret. When the agent or the link goes, everything pending fails at once, so
that the edge answers; nothing here ever blocks a pipeline's thread.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from concurrent.futures import Future, InvalidStateError
from typing import Any

from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.bus.inferences import InferReply, InferRequest
from marram.edge.channel import WorkerEnd
from marram.pipeline.contract import CloudInput, Reply
from marram.schema.errors import KINDS, Busy, Invalid, MarramError, NotReady, Retryable
from marram.schema.result import Result

_MOST_PENDING = 64


class ChannelRemote:
    """`pipeline.contract.Remote` over a worker's end of the channel. Safe from any thread."""

    def __init__(self, channel: WorkerEnd) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[Future[Reply], float]] = {}
        # Nothing is known before the agent's first word about the link; asking does no harm.
        self._up = True
        self._closed = False

    def infer(self, request: CloudInput, timeout_s: float) -> Future[Reply]:
        """See `pipeline.contract.Remote`."""
        payload = InferRequest(request.payload, request.left_s).pack()
        if len(payload) > MAX_MESSAGE_BYTES:
            return _failed(Invalid(f"{len(payload)} bytes are too many for one message", where=request.model))
        message: dict[str, Any] = {"t": "infer", "model": request.model, "version": request.version, "payload": payload}
        if request.peers:
            message["peers"] = True
        return self._ask(message | ({"replica": request.replica} if request.replica else {}), timeout_s)

    def probe(self, size_bytes: int, timeout_s: float, about: tuple[str, int] | None = None) -> Future[Reply]:
        """See `pipeline.contract.Remote`."""
        model = {"model": about[0], "version": about[1]} if about is not None else {}
        return self._ask({"t": "probe", "size": size_bytes, **model}, timeout_s)

    def answered(self, message: dict[str, Any]) -> None:
        """Take a `reply` of the agent's in; one nobody waits for is forgotten."""
        with self._lock:
            future, _ = self._pending.pop(message.get("id", 0), (None, 0.0))
        if future is not None:
            _resolve(future, message)

    def link(self, up: bool) -> None:
        """The link came or went: with it gone, nothing pending will be answered in time."""
        self._up = up
        if not up:
            self._fail_all(NotReady("the link to the cloud went down"))

    def expire(self) -> None:
        """Fail what is overdue by far; call now and then. The agent answers everything, unless it is stuck itself."""
        now_s = time.monotonic()
        with self._lock:
            late = [number for number, (_, until_s) in self._pending.items() if now_s > until_s]
            futures = [self._pending.pop(number)[0] for number in late]
        for future in futures:
            _fail(future, Retryable("the agent did not answer in time"))

    def close(self) -> None:
        """The agent is gone: fail everything, now and from now on."""
        self._closed = True
        self._fail_all(NotReady("the agent is gone"))

    def _ask(self, message: dict[str, Any], timeout_s: float) -> Future[Reply]:
        if self._gone():
            return _failed(NotReady("the agent is gone" if self._closed else "the link to the cloud is down"))
        future: Future[Reply] = Future()
        number = next(self._numbers)
        with self._lock:
            if len(self._pending) >= _MOST_PENDING:
                return _failed(Retryable("too many questions to the cloud are under way"))
            self._pending[number] = (future, time.monotonic() + timeout_s + 1)
        if not self._channel.send({**message, "id": number, "timeout_s": timeout_s}):
            with self._lock:
                self._pending.pop(number, None)
            return _failed(NotReady("the agent does not keep up"))
        if self._gone():  # it went down in between: `_fail_all` may have missed this one
            self._fail_all(NotReady("the link to the cloud went down"))
        return future

    def _gone(self) -> bool:
        return self._closed or not self._up

    def _fail_all(self, error: MarramError) -> None:
        with self._lock:
            futures = [future for future, _ in self._pending.values()]
            self._pending.clear()
        for future in futures:
            _fail(future, error)


def _resolve(future: Future[Reply], message: dict[str, Any]) -> None:
    payload = message.get("payload")
    if not isinstance(payload, bytes):
        text = str(message.get("error"))
        _fail(future, KINDS.get(message.get("kind", ""), Retryable)(text))
        return
    try:
        reply = InferReply.unpack(payload)
        if reply.error is not None:
            if reply.busy:
                raise Busy(reply.error, queue_s=reply.queue_s, waiting=reply.waiting)
            raise Invalid(reply.error)
        result = Result.from_dict(reply.result) if reply.result else None
        answer = Reply(
            result,
            reply.queue_s,
            reply.service_s,
            reply.replica or None,
            reply.waiting,
            reply.loads,
            message.get("gone") is True,
        )
    except MarramError as error:
        _fail(future, error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _fail(future, Invalid(f"a reply that is no result: {error!r}"))
    else:
        with contextlib.suppress(InvalidStateError):  # cancelled by who asked: the answer came too late for them
            future.set_result(answer)


def _fail(future: Future[Reply], error: MarramError) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _failed(error: MarramError) -> Future[Reply]:
    future: Future[Reply] = Future()
    future.set_exception(error)
    return future
