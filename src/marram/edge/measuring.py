"""Measure a model's variants before one is chosen: where there is a choice, nothing is known yet, and it stays quick.

All of it is bounded: what is fetched to measure it, how long the measuring takes, and what the process that does it may
use. Where a bound is met, the card's order decides, and `Chosen.why` says so. A measurement that fails never fails a
deployment. A variant whose engine does not load has no figure: the engine is at fault, and may be mended without any
file of it changing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from marram.edge.bundles import Bundles
from marram.edge.choices import Choices
from marram.edge.engines import Engines
from marram.edge.process import ended, kill_group, worker_environment
from marram.edge.sandbox import Plan, plan
from marram.edge.state import Folder
from marram.edge.variants import Taste, candidates, card_of, chosen, part, parts, reference_of, taste_of
from marram.runtime.installed import installed
from marram.schema.device import Chosen, DesiredApp, Measured, ModelRef
from marram.schema.errors import MarramError, Missing, Retryable
from marram.schema.model import Manifest, ModelCard, Variant
from marram.schema.units import format_rate, format_size

log = logging.getLogger("marram.edge")

# How often measuring beside an agent begins anew since the agent deleted files that no app of it needs any more.
_SWEPT_TIMES = 3

Bring = Callable[[list[Manifest]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds: to fetch what is only measured, to measure all models of an app, to start a process that measures; and
    how long one variant's runs are timed, where that is fewer.
    """

    fetch_s: float = 5.0
    measure_s: float = 1.5
    start_s: float = 20.0
    enough_s: float = 0.15


DEPLOYING = Budget()
# A person asked for it, and waits.
ASKED = Budget(fetch_s=120.0, measure_s=20.0, start_s=60.0, enough_s=2.0)


@dataclass(frozen=True, slots=True)
class Ways:
    """How a device fetches and installs, and what the measuring process may see of it."""

    bundles: Bundles
    choices: Choices
    engines: Engines
    bring: Bring
    plan: Callable[[Path], Plan | None]


async def measure_app(app: DesiredApp, ways: Ways, taste: Taste, budget: Budget = DEPLOYING, *, again: bool = False,
                      only: str | None = None) -> None:  # fmt: skip
    """Measure what may be chosen for `app` and is not known here (or, `again`, whatever is known). Cards are here.

    `only`: one model's name. Raises Retryable where the first candidate, which is needed in any case, cannot be had.
    """
    left_s = budget.measure_s
    for model in app.models:
        if only not in (None, model.name):
            continue
        able = await asyncio.to_thread(candidates, model, ways.bundles, taste)
        if len(able) < (1 if again else 2):
            continue
        card = await asyncio.to_thread(card_of, model, ways.bundles)
        by_name = parts(model, card)
        if not again and all(ways.choices.figures(card, v, by_name[v.name]) for v in able):
            continue
        why = await _fetched(model, able, ways, budget)
        if not why:
            begun_s = time.monotonic()
            why = await _measured(model, card, able, ways, taste, replace(budget, measure_s=left_s))
            left_s = max(0.2, left_s - (time.monotonic() - begun_s))
        if why:
            why = f"first on the card: {why}"
            log.info("%s: %s", reference_of(model), why)
            ways.choices.why[reference_of(model)] = why
        else:
            ways.choices.why.pop(reference_of(model), None)


async def _fetched(model: ModelRef, able: Sequence[Variant], ways: Ways, budget: Budget) -> str:
    """Bring what is to be measured; why it is not, "" where it is here."""
    first = await asyncio.to_thread(part, model, ways.bundles, able[:1])
    every = await asyncio.to_thread(part, model, ways.bundles, able)
    before = _bytes(ways.bundles.missing([first]))
    begun_s = time.monotonic()
    await ways.bring([first])
    took_s = time.monotonic() - begun_s
    missing = _bytes(ways.bundles.missing([every]))
    # The first one, which is fetched in any case, says how fast the link is; where it was here, trying says it.
    if before > 64_000 and missing * took_s > budget.fetch_s * before:
        return f"measuring the others would fetch {format_size(missing)} more at {format_rate(8 * before / took_s)}"
    try:
        async with asyncio.timeout(budget.fetch_s):
            await ways.bring([every])
    except TimeoutError:
        return f"the others could not be fetched to be measured within {budget.fetch_s:g} s"
    except MarramError as error:
        return f"the others could not be fetched to be measured ({error})"
    return ""


async def _measured(
    model: ModelRef, card: ModelCard, able: Sequence[Variant], ways: Ways, taste: Taste, budget: Budget
) -> str:
    """Run the measuring process; why nothing came of it, "" where all candidates are known now."""
    every = await asyncio.to_thread(part, model, ways.bundles, able)
    try:
        folder = await asyncio.to_thread(ways.bundles.install, every)
    except MarramError as error:
        return f"it could not be measured ({error})"
    found = await bench(folder, [v.name for v in able], taste.limit_bytes, budget, ways.plan(folder))
    await _keep(found, model, card, ways.choices, ways.engines)
    lacking = [variant.name for variant in able if variant.name not in {each.variant for each in found}]
    return f"{' and '.join(lacking)} could not be measured within {budget.measure_s:.2g} s" if lacking else ""


async def _keep(
    found: Sequence[Measured], model: ModelRef, card: ModelCard, choices: Choices, engines: Engines
) -> None:
    """Remember what was measured, and which engines turned out not to load."""
    by_name, variants = parts(model, card), {variant.name: variant for variant in card.variants}
    known = [each for each in found if each.variant in variants]
    if suspects := {variants[each.variant].engine for each in known if each.fault}:
        await engines.examine(suspects)
    results = [(variants[each.variant], by_name[each.variant], each) for each in known]
    loaded = [each for each in results if each[0].engine not in engines.broken]
    await asyncio.to_thread(choices.keep, card, loaded)


async def bench(
    folder: Path, variants: Sequence[str], limit_bytes: int | None, budget: Budget, confined: Plan | None = None
) -> list[Measured]:
    """Time `variants` of the bundle in `folder`, one after another, each in a process of its own (`edge/bench.py`).

    A variant that takes even the process around those down is said to, and the others are measured by another one.
    Those for which there was no time are missing.
    """
    found: list[Measured] = []
    waiting = list(variants)
    ends_s = time.monotonic() + budget.start_s + 3 * budget.measure_s
    while waiting and time.monotonic() < ends_s:
        asked = {"folder": str(folder), "variants": waiting, "memory_bytes": limit_bytes,
                 "seconds": budget.measure_s, "enough_s": budget.enough_s}  # fmt: skip
        fresh, status = await _one_process(asked, ends_s - time.monotonic(), confined)
        known = {each.variant for each in fresh}
        found += [each for each in fresh if each.variant in waiting]
        waiting = [name for name in waiting if name not in known]
        if status == 0 or status is None or not waiting:
            break
        # It fell over the one that came next.
        fault = f"the process that measured it ended: {ended(status)}"
        found.append(Measured(variant=waiting.pop(0), fault=fault))
    return found


async def _one_process(
    asked: dict[str, Any], limit_s: float, confined: Plan | None
) -> tuple[list[Measured], int | None]:
    """What it said, and its exit status; None where it did not end in time or could not be started."""
    box = [] if confined is None else ["marram.edge.sandbox", confined.text()]
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", *box, "marram.edge.bench", str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env=worker_environment(os.environ), start_new_session=True, cwd="/",
        )  # fmt: skip
    except OSError as error:
        log.warning("variants cannot be measured now: %s", error.strerror)
        return [], None
    assert process.stdin is not None and process.stdout is not None
    found: list[Measured] = []
    ready = late = False
    try:
        async with asyncio.timeout(limit_s) as deadline:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(json.dumps(asked).encode())
                process.stdin.close()
            while line := await process.stdout.readline():
                with contextlib.suppress(ValueError, RecursionError, ValidationError):
                    document = json.loads(line)
                    if not ready and document == {"ready": True}:
                        ready = True
                        # From here on it is only as slow as the models are: the first one's run may be a long one.
                        soon_s = asyncio.get_running_loop().time() + 3 * float(asked["seconds"])
                        deadline.reschedule(min(soon_s, deadline.when() or soon_s))
                    else:
                        found.append(Measured.model_validate(document))
            await process.wait()
    except (TimeoutError, ValueError):  # ValueError: a line without end
        late = True
    finally:
        kill_group(process.pid)
        await process.wait()
    return found, None if late else process.returncode


async def measure_here(folder: Folder, only: str | None = None) -> list[Chosen]:
    """Measure the variants whose files are on this device, for the apps that run here: at the device, without a link.

    Safe beside a running agent. Raises Missing where nothing is deployed here, or no such model.
    """
    bundles, choices, engines = Bundles(folder.path), Choices(folder.path), Engines()
    found: dict[str, Chosen] = {}
    for record in folder.records().values():
        app = record.runs or record.target
        taste = await asyncio.to_thread(taste_of, app, bundles, engines.broken, choices)
        for model in app.models:
            if only not in (None, model.name) or reference_of(model) in found:
                continue
            with contextlib.suppress(Retryable):  # its card is not here (yet)
                card = await asyncio.to_thread(card_of, model, bundles)
                for _ in range(_SWEPT_TIMES):
                    if await _measure_here(model, card, (bundles, choices, engines), taste, folder):
                        break
                for each in await asyncio.to_thread(chosen, model, bundles, taste, proven=True):
                    found[each.model] = each
    if not found:
        what = f'no app here runs a model "{only}"' if only else "no app here runs a model"
        raise Missing(what, where=str(folder.path), hint="`marram edge status` shows what runs here.")
    return list(found.values())


async def _measure_here(
    model: ModelRef, card: ModelCard, kept: tuple[Bundles, Choices, Engines], taste: Taste, folder: Folder
) -> bool:
    """False where the agent deleted, meanwhile, what no app of it needs: what is left is to be measured."""
    bundles, choices, engines = kept
    by_name = parts(model, card)
    here = [v for v in card.variants if installed(v.engine) and not any(map(bundles.lacks, by_name[v.name]))]
    if not here:
        return True
    try:
        place = await asyncio.to_thread(bundles.install, await asyncio.to_thread(part, model, bundles, here))
    except Retryable:
        return False
    measured = await bench(place, [v.name for v in here], taste.limit_bytes, ASKED, plan(folder.path, [place], []))
    if not all((place / file.path).exists() for v in here for file in by_name[v.name]):
        return False
    await _keep(measured, model, card, choices, engines)
    return True


def _bytes(missing: Sequence[Any]) -> int:
    return sum(file.size_bytes for file in missing)
