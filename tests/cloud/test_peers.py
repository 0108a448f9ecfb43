"""Devices answer each other through a real cloud and broker: who may, who cannot, and what becomes of liars."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.inferences import InferReply, InferRequest
from marram.bus.subjects import PeerQuestion
from marram.cloud import peers
from marram.cloud.server import Cloud
from marram.schema.api import DeployAsk
from marram.schema.errors import Invalid, NotReady, Refused, Untrusted
from marram.schema.load import Load
from marram.schema.payload import Payload
from marram.schema.rollout import at_once

APP = "app: gate\nsource: {images: photos}\nsteps:\n  - classify: colours\nraw: allowed\npeers: yes\n"
ASKED = PeerQuestion("gate", "colours", 1)
QUESTION = InferRequest(Payload("image/jpeg", b"a picture"), 5.0).pack()
LABEL = {"task": "classification", "model": "colours@1", "label": "red", "confidence": 0.9}

Answer = Callable[[Message], bytes]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_LOOK_S", 0.0)


async def deployed(cloud: Cloud, colours: Path, text: str = APP, **selector: str) -> None:
    if not await asyncio.to_thread(cloud.state.store.models.list):
        await asyncio.to_thread(cloud.state.registry.add_folder, colours)
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=text, selector=selector, plan=at_once()))


async def answers(bus: Bus, device: str, answer: Answer | None = None) -> list[Message]:
    """The device answers what it is asked; what that was."""
    heard: list[Message] = []

    async def on_asked(message: Message) -> bytes:
        heard.append(message)
        return answer(message) if answer is not None else InferReply(LABEL, None, 0.0, 0.01).pack()

    await bus.subscribe(subjects.all_asked(device), on_asked)
    return heard


async def ask(bus: Bus, device: str, question: PeerQuestion = ASKED, payload: bytes = QUESTION) -> InferReply:
    return InferReply.unpack(await bus.request(subjects.peer(device, question), payload, 10))


async def test_a_device_with_the_app_answers_for_its_neighbour(cloud: Cloud, device: Any, colours: Path) -> None:
    one, two, three = [await device(cloud, name) for name in ("one", "two", "three")]
    await deployed(cloud, colours)
    by_two, by_three = await answers(two, "two"), await answers(three, "three")
    own = await answers(one, "one")
    reply = await ask(one, "one")
    assert reply.result == LABEL and reply.replica in ("two", "three")
    (message,) = by_two + by_three
    assert message.payload == QUESTION and message.subject.endswith(".asked.gate.colours.1")
    # Who is asked by name answers, were it there alone or not; never who asks.
    for name in ("two", "three", "two"):
        assert (await ask(one, "one", PeerQuestion("gate", "colours", 1, name))).replica == name
    assert (await ask(one, "one", PeerQuestion("gate", "colours", 1, "one"))).replica in ("two", "three")
    assert not own


async def test_only_devices_whose_app_says_so_ask_and_are_asked(cloud: Cloud, device: Any, colours: Path) -> None:
    one, two = await device(cloud, "one", site="a"), await device(cloud, "two", site="b")
    heard = await answers(two, "two")
    with pytest.raises(Refused, match="one runs no app gate that lets other devices answer"):
        await ask(one, "one")
    await deployed(cloud, colours, site="a")
    # The other runs nothing of the kind.
    assert (await ask(one, "one")).busy
    await deployed(cloud, colours, APP.replace("peers: yes", "peers: no"), site="b")
    assert (await ask(one, "one")).busy
    # Another app with the very same model is another app.
    await deployed(cloud, colours, APP.replace("app: gate", "app: door"), site="b")
    assert (await ask(one, "one")).busy
    with pytest.raises(Refused):
        await ask(one, "one", PeerQuestion("door", "colours", 1))
    with pytest.raises(Refused):
        await ask(one, "one", PeerQuestion("gate", "colours", 2))
    assert not heard
    await deployed(cloud, colours, site="b")
    assert (await ask(one, "one")).replica == "two"
    # Taken back, it is so at once: no connection has to end for it.
    await deployed(cloud, colours, APP.replace("peers: yes", "peers: no"), site="b")
    assert (await ask(one, "one")).busy and len(heard) == 1


@pytest.mark.parametrize("few", [0, 50])
async def test_what_did_not_change_is_not_read_again(
    cloud: Cloud, device: Any, colours: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(peers, "_FEW", few)
    one, two = await device(cloud, "one", site="a"), await device(cloud, "two", site="b")
    await deployed(cloud, colours)
    await answers(two, "two")
    assert (await ask(one, "one")).replica == "two"
    read: list[str] = []
    states = cloud.state.store.states
    every, single = states.desired_texts, states.desired
    monkeypatch.setattr(states, "desired_texts", lambda: (read.append("all"), every())[1])
    monkeypatch.setattr(states, "desired", lambda name: (read.append(name), single(name))[1])
    assert (await ask(one, "one")).replica == "two" and not read
    await deployed(cloud, colours, APP.replace("peers: yes", "peers: no"), site="b")
    read.clear()
    assert (await ask(one, "one")).busy
    assert read == (["two"] if few else ["all"])


async def test_what_the_broker_forbids(cloud: Cloud, device: Any, colours: Path, until: Any) -> None:
    one, two = await device(cloud, "one"), await device(cloud, "two")
    await deployed(cloud, colours)
    nothing: Answer = lambda message: b""  # noqa: E731
    for subject in (subjects.all_asked("two"), "d.*.asked.>", subjects.PEERS, "d.two.>", "d.>", "peer.>"):
        with pytest.raises(Untrusted):
            await one.subscribe(subject, lambda message: asyncio.sleep(0, b""))
    # To ask in another's name, or to ask a device itself.
    with pytest.raises(Untrusted):
        await ask(one, "two")
    heard = await answers(two, "two", nothing)
    with pytest.raises(Untrusted):
        await one.request(subjects.asked("two", ASKED), QUESTION, 2)
    assert not heard
    # Into the inbox of another, or of the cloud, nobody speaks who was not asked.
    for inbox in ("_INBOX_two.x", "_INBOX_CONTROL.x"):
        with pytest.raises(Untrusted):
            await one.request(inbox, b"", 2)


async def test_a_removed_device_neither_asks_nor_answers(cloud: Cloud, device: Any, colours: Path, until: Any) -> None:
    one, two = await device(cloud, "one"), await device(cloud, "two")
    await deployed(cloud, colours)
    heard = await answers(two, "two")
    assert (await ask(one, "one")).replica == "two"
    # Also while its connection still stands.
    await asyncio.to_thread(cloud.state.store.devices.revoke, "two")
    assert (await ask(one, "one")).busy and two.connected
    with pytest.raises(Refused):
        await ask(two, "two")
    await asyncio.to_thread(cloud.state.remove_device, "two")
    await until(lambda: not two.connected)
    assert (await ask(one, "one")).busy and len(heard) == 1
    with pytest.raises(NotReady):
        await ask(two, "two")


NONSENSE = b"\xc1 nonsense"
FAILS = InferReply(None, "no", 0.0, 0.0).pack()
BUSY = InferReply(None, "it has work of its own", 0.0, 0.0, busy=True).pack()


async def test_where_one_cannot_another_is_asked_and_it_is_left_alone(
    cloud: Cloud, device: Any, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("_BUSY_S", "_FAILED_S", "_GONE_S"):
        monkeypatch.setattr(peers, pause, 60.0)
    one, good, gone = [await device(cloud, name) for name in ("one", "good", "gone")]
    bad = {"liar": NONSENSE, "broken": FAILS, "busy": BUSY}
    buses = {name: await device(cloud, name) for name in bad}
    await deployed(cloud, colours)
    asked = {name: await answers(bus, name, lambda message, name=name: bad[name]) for name, bus in buses.items()}
    await answers(good, "good")
    assert gone.connected
    for name in (*bad, "gone"):
        for _ in range(2):
            reply = await ask(one, "one", PeerQuestion("gate", "colours", 1, name))
            while reply.busy:  # three others were tried before the good one
                reply = await ask(one, "one", PeerQuestion("gate", "colours", 1, name))
            assert reply.replica == "good"
    assert {name: len(messages) for name, messages in asked.items()} == dict.fromkeys(bad, 1)


async def test_nobody_speaks_for_another(cloud: Cloud, device: Any, colours: Path) -> None:
    one, two = await device(cloud, "one"), await device(cloud, "two")
    await deployed(cloud, colours)
    lies = InferReply(
        LABEL, None, 0, 0, 7, replica="three", loads=(Load("three", "colours@1", 9, 9.0, 9.0),), outputs=b"x"
    )
    await answers(two, "two", lambda message: lies.pack())
    reply = await ask(one, "one")
    assert (reply.replica, reply.loads, reply.outputs, reply.waiting) == ("two", (), b"", 0)


async def test_what_is_no_question_is_refused(cloud: Cloud, device: Any) -> None:
    one = await device(cloud, "one")
    for what in ("gate", "gate.colours", "gate.colours.one", "gate.colours.1.two.three"):
        with pytest.raises(Invalid, match="asks nothing of another device"):
            await one.request(f"d.one.peer.{what}", QUESTION, 5)
    with pytest.raises(Invalid):
        await ask(one, "one", payload=b"\xc1")
    # Where no replica runs, the link is timed by this.
    reply = InferReply.unpack(await one.request(subjects.peer_probe("one"), bytes(6000), 5))
    assert reply.error is None


async def test_one_device_is_asked_one_thing_at_a_time(cloud: Cloud, device: Any, colours: Path) -> None:
    one, two = await device(cloud, "one"), await device(cloud, "two")
    await deployed(cloud, colours)
    release, heard = asyncio.Event(), asyncio.Event()

    async def slow(message: Message) -> bytes:
        heard.set()
        await release.wait()
        return InferReply(LABEL, None, 0.0, 0.01).pack()

    await two.subscribe(subjects.all_asked("two"), slow, parallel=8)
    first = asyncio.create_task(ask(one, "one"))
    await heard.wait()
    assert (await ask(one, "one")).busy
    release.set()
    assert (await first).replica == "two"
