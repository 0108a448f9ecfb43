"""A model swapped a hundred times while it answers. `python -m bench.swap`

Two versions of EfficientNet-Lite0 (`marram model build efficientnet-lite0`), in turns the newest and gone, in a `Host`
that 8 askers keep busy. Counted: questions that failed (the goal is none), and the memory of the process, once after
each swap: how many batches were under way just then moves it by a tenth, so medians of twenty are compared. `ratio` is
that of the second twenty (by then threads and malloc have what they keep) over that of the last, 1 or more where it did
not grow; 5 % are noise.

Beside it, in the same run: what an answer takes by the same `Host` in a process of its own, over shared memory, and so
what the way there and back costs.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from bench._verdict import conclude, skip
from marram.runtime import library
from marram.runtime.bundle import CARD, Bundle
from marram.runtime.example import example
from marram.runtime.image import encode_jpeg
from marram.schema.errors import MarramError, Missing
from marram.schema.payload import Payload
from marram.serving.contract import Question
from marram.serving.engine import EngineProcess
from marram.serving.host import Host
from marram.serving.memory import few_arenas, resident_bytes

MODEL = "efficientnet-lite0"
SWAPS, ASKERS = 100, 8
# Swaps at each end that are compared.
SOME = 20
GOAL = 0.95
HANDOVERS = 200
# Of the bytes of one message on the bus, and of one picture.
SIZES = (20_000, 4_000_000)


def versions(bundle: Bundle, folder: Path) -> list[Path]:
    """The bundle twice, as version 1 and 2."""
    made = []
    for number in (1, 2):
        copy = folder / str(number)
        copy.mkdir()
        for name in bundle.files():
            (copy / name).hardlink_to(bundle.folder / name) if name != CARD else None
        card = yaml.safe_load((bundle.folder / CARD).read_text()) | {"version": number}
        (copy / CARD).write_text(yaml.safe_dump(card, sort_keys=False))
        made.append(copy)
    return made


def question(bundle: Bundle) -> Question:
    """A picture of the model's size, as JPEG."""
    return Question(MODEL, payload=Payload("image/jpeg", encode_jpeg(np.asarray(example(bundle.card), np.uint8))))


async def swapped(folders: list[Path], asked: Question) -> tuple[int, int, list[int]]:
    """Answered, failed, and the process's memory after each swap."""
    host, going, answered, failed, sizes = Host(), True, 0, 0, list[int]()
    await host.put(folders[0])

    async def ask() -> None:
        nonlocal answered, failed
        while going:
            try:
                await host.infer(asked)
                answered += 1
            except MarramError as error:
                failed += 1
                print(f"failed: {error}")

    asking = [asyncio.create_task(ask()) for _ in range(ASKERS)]
    for swap in range(SWAPS):
        new = 2 - swap % 2
        await host.put(folders[new - 1])
        await host.drop(MODEL, 3 - new)
        sizes.append(resident_bytes())
        if (swap + 1) % SOME == 0:
            print(
                f"{swap + 1:4} swaps   {answered:6} answered   {failed} failed   {sizes[-1] / 1e6:.0f} MB", flush=True
            )
    going = False
    await asyncio.gather(*asking)
    await host.close()
    return answered, failed, sizes


async def handover_ms(folder: Path) -> dict[str, float]:
    """What a question refused at once takes: here, and in a process of its own, by how many bytes it has."""
    took: dict[str, float] = {}
    engine, host = EngineProcess(), Host()
    await engine.start()
    try:
        for name, answering in (("here", host), ("process", engine)):
            await answering.put(folder)
            for size in SIZES:
                wrong = Question(MODEL, payload=Payload("none", bytes(size)))
                each = []
                for _ in range(HANDOVERS):
                    began_s = time.perf_counter()
                    try:
                        await answering.infer(wrong)
                    except MarramError:
                        each.append((time.perf_counter() - began_s) * 1e3)
                took[f"{name}_{size // 1000}_kB_ms"] = round(statistics.median(each), 3)
    finally:
        await engine.close()
        await host.close()
    return took


def main() -> None:
    try:
        bundle = library.get(MODEL)
    except Missing:
        skip("swap", GOAL, f"it needs the model: marram model build {MODEL}")
        return
    few_arenas()
    with tempfile.TemporaryDirectory(dir=bundle.folder.parent, prefix=".swap-") as scratch:
        folders = versions(bundle, Path(scratch))
        answered, failed, sizes = asyncio.run(swapped(folders, question(bundle)))
        took = asyncio.run(handover_ms(folders[0]))
    for name, value in took.items():
        print(f"{name:20} {value:.3f}")
    before, after = statistics.median(sizes[SOME : 2 * SOME]), statistics.median(sizes[-SOME:])
    figures = {
        "swaps": SWAPS,
        "answered": answered,
        "failed": failed,
        "early_mb": round(before / 1e6, 1),
        "last_mb": round(after / 1e6, 1),
        "highest_mb": round(max(sizes) / 1e6, 1),
    }
    conclude("swap", before / after, GOAL, figures | took, also=failed == 0)


if __name__ == "__main__":
    main()
