"""Devices answer each other: the fleet role takes one device's question to another that runs the same app, and back.

It stands between them so that no device ever hears, or answers, what is not addressed to it by the cloud: who may ask
whom follows from the desired states as they are now, and whoever is revoked is no longer reached. The devices of an app
that says `peers: yes` answer for the models that this app runs on them, in moments when they have nothing of their own
to do; one is asked one thing at a time. Nothing is kept of what is asked.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.inferences import InferReply, InferRequest
from marram.bus.subjects import PeerQuestion
from marram.schema.device import Desired
from marram.schema.errors import Busy, MarramError, NotReady, Refused
from marram.schema.load import is_duration
from marram.store import Store

log = logging.getLogger(__name__)

QUEUE = "fleet"
# Under way at once, and handled beside those: so that a refusal does not wait behind answers.
MOST, _SPARE = 64, 192
MOST_EACH = 8  # of one device that asks
# Another one is tried where one cannot; so many, while there is time.
_TRIES = 3
_LONGEST_S = 10.0
# Desired states are looked at again after so long.
_LOOK_S = 2.0
# Where more of them are new than so many, all are read at once.
_FEW = 50
# A device is left alone for so long: it had work of its own; it failed, or said what is no answer; it is not there.
_BUSY_S, _FAILED_S, _GONE_S = 0.2, 5.0, 3.0
# What who finds nobody is told to wait.
_LATER_S = 0.5

Key = tuple[str, str, int]  # app, model, version


@dataclass(frozen=True, slots=True)
class _Known:
    """What one version of a device's desired state says: whose questions it may answer, and ask."""

    version: int
    keys: frozenset[Key]


class Peers:
    """One for each fleet process. All methods on one event loop."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus, self._store = bus, store
        self._known: dict[str, _Known] = {}
        self._by_key: dict[Key, list[str]] = {}
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()
        self._asking: dict[str, int] = {}  # how many of a device's questions are under way
        self._at_work: set[str] = set()
        self._alone_s: dict[str, float] = {}  # until when a device is left alone

    async def start(self) -> None:
        """From now on questions are taken on."""
        await self._bus.subscribe(subjects.PEERS, self._on_question, QUEUE, parallel=MOST + _SPARE)

    async def _on_question(self, message: Message) -> bytes | None:
        asker = subjects.device_of(message.subject)
        if message.subject == subjects.peer_probe(asker):
            return InferReply(None, None, 0.0, 0.0).pack()  # whatever came, it came
        question = subjects.peer_question(message.subject)
        left_s = InferRequest.unpack(message.payload).left_s
        await self._look()
        if asker not in self._by_key.get(_key(question), ()):
            raise Refused(
                f"{asker} runs no app {question.app} that lets other devices answer for "
                f"{question.model}@{question.version}"
            )
        if len(self._at_work) >= MOST or self._asking.get(asker, 0) >= MOST_EACH:
            return _nobody("too many questions to other devices are under way").pack()
        self._asking[asker] = self._asking.get(asker, 0) + 1
        try:
            longest_s = _LONGEST_S if left_s is None or not is_duration(left_s) else min(left_s, _LONGEST_S)
            return (await self._answer(asker, question, message.payload, time.monotonic() + longest_s)).pack()
        finally:
            self._asking[asker] -= 1
            if not self._asking[asker]:
                del self._asking[asker]

    async def _answer(self, asker: str, question: PeerQuestion, payload: bytes, until_s: float) -> InferReply:
        for device in self._free(asker, question)[:_TRIES]:
            if device in self._at_work:
                continue  # taken while another one was tried
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                break
            self._at_work.add(device)
            try:
                return await self._ask(device, question, payload, left_s)
            except MarramError as error:
                log.debug("%s does not answer %s: %s", device, asker, error)
                pause_s = _BUSY_S if isinstance(error, Busy) else _GONE_S if isinstance(error, NotReady) else _FAILED_S
                self._alone_s[device] = time.monotonic() + pause_s
            finally:
                self._at_work.discard(device)
        return _nobody("no other device has nothing of its own to do")

    async def _ask(self, device: str, question: PeerQuestion, payload: bytes, left_s: float) -> InferReply:
        """Raises Busy, NotReady (not there), another where it failed or what it said is none."""
        reply = InferReply.unpack(await self._bus.request(subjects.asked(device, question), payload, left_s))
        if reply.busy:
            raise Busy(reply.error or "busy", queue_s=reply.queue_s, waiting=reply.waiting)
        if reply.error is not None:
            raise Refused(reply.error)
        # It speaks for itself alone, whatever name it gave.
        return replace(reply, replica=device, waiting=0, loads=(), outputs=b"")

    def _free(self, asker: str, question: PeerQuestion) -> list[str]:
        """Who may answer it and has nothing to do, as far as is known here: the named one first."""
        now_s = time.monotonic()
        self._alone_s = {device: until_s for device, until_s in self._alone_s.items() if until_s > now_s}
        free = [
            device
            for device in self._by_key.get(_key(question), ())
            if device != asker and device not in self._at_work and device not in self._alone_s
        ]
        random.shuffle(free)
        return sorted(free, key=lambda device: device != question.peer)

    async def _look(self) -> None:
        """Know the desired states as they were a moment ago."""
        async with self._looking:
            if time.monotonic() - self._looked_s < _LOOK_S:
                return
            self._known = await asyncio.to_thread(self._read, self._known)
            by_key: dict[Key, list[str]] = {}
            for device, known in self._known.items():
                for key in known.keys:
                    by_key.setdefault(key, []).append(device)
            self._by_key = by_key
            self._looked_s = time.monotonic()

    def _read(self, before: dict[str, _Known]) -> dict[str, _Known]:
        """Blocking. What did not change is not read again; raises Retryable (the store is away)."""
        states, admissible = self._store.states, self._store.devices.admissible()
        versions = {device: version for device, version in states.desired_versions().items() if device in admissible}
        read = {device: known for device, known in before.items() if versions.get(device) == known.version}
        news = [device for device in versions if device not in read]
        if len(news) <= _FEW:
            desired = {device: states.desired(device) for device in news}
        else:
            texts = states.desired_texts()
            # Most say nothing of it, and to understand one takes longer than to search it.
            telling = {device: texts.get(device, "") for device in news if '"peers":true' in texts.get(device, "")}
            desired = {device: Desired.model_validate_json(text) for device, text in telling.items()}
        for device in news:
            read[device] = _Known(versions[device], _keys(desired.get(device, Desired())))
        return read


def _keys(desired: Desired) -> frozenset[Key]:
    return frozenset((app.name, *model) for app in desired.apps for model in app.peer_models)


def _key(question: PeerQuestion) -> Key:
    return question.app, question.model, question.version


def _nobody(why: str) -> InferReply:
    return InferReply.refusal(Busy(why, queue_s=_LATER_S))
