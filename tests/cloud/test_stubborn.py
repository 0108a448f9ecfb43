"""What the roles do where nothing else catches it: a bug in a model, one that never loads, a device that is gone."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import pack_report
from marram.bus.inferences import InferReply, InferRequest
from marram.bus.tls import TlsFiles
from marram.cloud import keeper as module
from marram.cloud.keeper import Keeper, Served, Start
from marram.cloud.replica import Replica, _beat
from marram.cloud.server import Cloud
from marram.cloud.settings import BrokerAddress
from marram.runtime.image import encode_jpeg
from marram.runtime.session import CheckedSession
from marram.schema.device import Reported
from marram.schema.errors import Refused
from marram.schema.payload import Payload
from marram.serving.host import Host


async def test_a_report_of_a_device_that_was_removed_is_refused_whoever_brings_it(cloud: Cloud) -> None:
    assert cloud.broker is not None
    async with await Bus.connect(cloud.broker.url, cloud.broker.user, cloud.broker.password, tls=cloud.gate.tls) as bus:
        await bus.wait_connected(30)
        with pytest.raises(Refused, match="removed"):
            await bus.request(subjects.report("ghost"), pack_report(Reported()), 30)
    assert cloud.state.store.states.all_desired() == {}


async def test_a_bug_in_answering_is_an_error_reply_counted(
    colours: Path, picture: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: CheckedSession, tensors: list[Any]) -> list[Any]:
        raise ZeroDivisionError

    host = Host()
    await host.put(colours)
    replica = Replica(host)
    monkeypatch.setattr(CheckedSession, "run", broken)
    try:
        payload = InferRequest(Payload("image/jpeg", encode_jpeg(picture("red")), (), (4, 4))).pack()
        answer = await replica.on_infer(Message("infer.colours.1", payload, True))
        assert answer is not None
        reply = InferReply.unpack(answer)
        assert reply.result is None and reply.error == "the replica failed: ZeroDivisionError" and not reply.busy
        assert (replica.figures.failed, replica.figures.answered, replica.figures.waiting) == (1, 0, 0)
    finally:
        await host.close()


NOBODY = TlsFiles(Path(), Path())


async def test_a_replica_that_never_stays_is_started_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(0, Start(BrokerAddress("nats://127.0.0.1:1", "", ""), NOBODY, Path()), lambda name, version: Path())
    pauses: list[float] = []

    async def ends() -> str:
        return "exit status 1"

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise asyncio.CancelledError

    monkeypatch.setattr(keeper, "_live", ends)
    monkeypatch.setattr(module.asyncio, "sleep", pause)
    keeper.want({("colours", 1)})
    with pytest.raises(asyncio.CancelledError):
        await keeper.keep()
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == pauses[-2] == 60.0
    served = keeper.served["colours", 1]
    assert (served.restarts, served.reason) == (12, "exit status 1")


async def test_a_process_that_says_no_more_that_its_loop_turns_is_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    script = "import sys; print(flush=True); sys.stdin.read()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=PIPE, stdout=PIPE)
    child = module._Child(process, asyncio.create_task(process.wait()))
    assert process.stdout is not None
    hearing = asyncio.create_task(module._hear(child, process.stdout))
    await module._watch(child)
    assert "it hung: it said nothing for" in module._how(child, await child.ending)
    await hearing
    # That a replica's loop turns is said from the first moment.
    beating = asyncio.create_task(_beat())
    await asyncio.sleep(0)
    beating.cancel()
    assert capfd.readouterr().out == "\n"


def test_a_model_that_fails_is_tried_ever_more_rarely() -> None:
    served = Served("colours", 1)
    pauses = []
    for _ in range(9):
        served.failed("no model")
        pauses.append(served.pause_s)
    assert pauses[:3] == [0.5, 1.0, 2.0] and pauses[-1] == 60.0
    served.ready(1)
    served.failed("no model")
    assert served.pause_s == 0.5
