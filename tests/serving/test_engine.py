"""The engines' process: killed, it fails what was under way at once, comes back with what it served, leaks nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.spinning import spinning

from marram.schema.errors import NotReady, Retryable
from marram.serving.contract import Question
from marram.serving.engine import SLOTS, EngineProcess
from marram.serving.shm import Slots

from .conftest import MakeModel

Ask = Callable[..., Question]


async def test_a_crash_fails_what_was_under_way_and_nothing_else(make_model: MakeModel, ask_of: Ask) -> None:
    engine = EngineProcess()
    await engine.start()
    try:
        await engine.put(make_model())
        first = engine.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)  # nothing is answered from now on
        items = np.ones((1, 3, 4, 4), np.float32)
        asked = [asyncio.create_task(engine.infer(Question("colours", tensors={"x": items}))) for _ in range(SLOTS + 6)]
        while engine.slots_free:
            await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        faults = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(fault) for fault in faults} == {Retryable}
        assert engine.slots_free == SLOTS
        assert not any(each.ready for each in engine.models())
        with pytest.raises(NotReady, match="is away"):
            await engine.infer(ask_of())
        while not any(each.ready for each in engine.models()):
            await asyncio.sleep(0.01)
        answer = await engine.infer(ask_of("blue"))
        assert answer.result is not None and answer.result.label == "blue"
        assert engine.restarts == 1 and engine.pid != first
    finally:
        last = engine.pid
        await engine.close()
    assert last is not None and not psutil.pid_exists(last)


async def test_a_model_that_takes_the_process_down_twice_is_put_aside_and_the_other_comes_back(
    make_model: MakeModel, tmp_path: Path, ask_of: Ask
) -> None:
    spins = spinning(tmp_path)
    engine = EngineProcess()
    await engine.start()
    try:
        await engine.put(make_model())
        await engine.put(spins)
        for _ in range(2):
            pid, items = engine.pid, np.full((1, 3, 4, 4), 1e3, np.float32)
            assert pid is not None
            asked = asyncio.create_task(engine.infer(Question("spins", tensors={"x": items})))
            while psutil.Process(pid).cpu_percent(0.02) < 20:  # it is at it, and never ends
                await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGSEGV)
            with pytest.raises(Retryable, match="ended over it"):
                await asked
            while not all(each.ready for each in engine.models() if each.card.model == "colours"):
                await asyncio.sleep(0.01)
        answer = await engine.infer(ask_of("blue"))
        assert answer.result is not None and answer.result.label == "blue"
        with pytest.raises(NotReady, match=r"asked \(SIGSEGV\): put aside for 60 s"):
            await engine.infer(Question("spins", tensors={"x": items}))
        again = await engine.put(spins)  # somebody says that it is well now
        assert again.ready
        quick = await engine.infer(Question("spins", tensors={"x": np.zeros((1, 3, 4, 4), np.float32)}))
        assert quick.outputs["y"].shape == (1, 3)
    finally:
        await engine.close()


async def test_a_model_that_no_longer_loads_keeps_no_other_away(make_model: MakeModel, ask_of: Ask) -> None:
    engine = EngineProcess()
    await engine.start()
    try:
        broken = make_model("broken")
        await engine.put(broken)
        await engine.put(make_model())
        (broken / "net.onnx").write_bytes(b"this is no model")
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        while not {each.card.model: each.ready for each in engine.models()}["colours"] or engine.restarts < 1:
            await asyncio.sleep(0.01)
        answer = await engine.infer(ask_of("blue"))
        assert answer.result is not None and answer.result.label == "blue"
        with pytest.raises(NotReady, match="not an ONNX model"):
            while True:
                await asyncio.sleep(0.01)
                await engine.infer(ask_of("blue", "broken"))
    finally:
        await engine.close()


_ASKER = """
import asyncio, sys
from pathlib import Path
from marram.serving.engine import EngineProcess

async def main():
    engine = EngineProcess()
    await engine.start()
    await engine.put(Path(sys.argv[1]))
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_whose_asker_is_killed_ends(make_model: MakeModel) -> None:
    """Nor does any memory stay: it has no name, so nothing in /dev/shm could be left."""
    before = _named()
    asker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _ASKER, str(make_model())), stdout=asyncio.subprocess.PIPE
    )
    assert asker.stdout is not None
    pid = int(await asker.stdout.readline())
    assert psutil.pid_exists(pid)
    asker.kill()
    await asker.wait()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.01)
    assert _named() <= before


def test_slots_are_shared_and_only_those_in_use_are_touched() -> None:
    slots = Slots.make(4, 8192)
    other = Slots.attach(os.dup(slots.descriptor), 4, 8192)
    try:
        first, second = slots.take(), slots.take()
        assert first is not None and second is not None and slots.free == 2
        assert slots.write(first, [b"one", memoryview(b"two")], 6) and slots.write(second, [b"three"], 5)
        assert (other.read(first, 6), other.read(second, 5)) == (b"onetwo", b"three")
        assert not slots.write(first, [bytes(8193)], 8193)
        assert other.read(first, 6) == b"onetwo"
        slots.give_back(first)
        assert slots.take() == first
        assert [slots.take(), slots.take()].count(None) == 0 and slots.take() is None
    finally:
        slots.close()
        slots.close()
        other.close()


def _named() -> set[str]:
    folder = Path("/dev/shm")
    return {each.name for each in folder.glob("*marram*")} if folder.is_dir() else set()
