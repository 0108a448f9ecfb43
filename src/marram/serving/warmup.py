"""From a bundle to lanes that are ready: loaded, run, compared, timed. Blocking, so in a thread.

What is chosen is measured here, on this machine: whether several items as one give the answers that each gives alone,
whether lanes side by side get more done than one with all the threads, how long n items take. The first run of an
engine lays out its memory; nobody's question pays for that.

Lanes run sessions with few threads, whose threads need not wait for each other: a tenth more gets done than by sharing
one that has a thread for every core. A question alone is answered sooner by that one, so a small model has it as well.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marram.runtime.bundle import Bundle
from marram.runtime.contract import Tensor
from marram.runtime.cut import Back
from marram.runtime.example import example
from marram.runtime.model import Answerer, Model
from marram.schema.errors import MarramError
from marram.serving.batching import Speed
from marram.serving.rows import run

log = logging.getLogger(__name__)

# The largest batch that is tried. Beyond it an item on a CPU gets no cheaper, and memory grows with it.
MOST = 8
# Measuring ends after so long: what is not measured yet is learnt from questions.
_BUDGET_S = 0.25
# What several lanes must gain: on one session they cost a thread each, so they are left out only where they clearly
# do harm; several sessions cost memory.
_LANES_WORTH, _SESSIONS_WORTH = 0.7, 1.25
# A larger file is in memory once where one session can serve all lanes, and there is none for a question alone where
# not. (The larger a model, the less its threads wait for each other.)
_COPIED_BYTES = 64 * 2**20
_MOST_LANES, _MOST_SESSIONS = 8, 4
_RUNS = 2
# How far answers of a batch may lie from each alone: other kernels sum in another order.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3


@dataclass(frozen=True, slots=True)
class Warm:
    """Answerers for as many lanes (one several times where its session is parallel), `alone` with a thread for every
    core for who is asked alone (None: a lane does that, too), and what is known of the lanes' speed.
    """

    answerers: tuple[Answerer, ...]
    speed: Speed
    alone: Answerer | None = None


def warm(bundle: Bundle, cut: str, cores: int) -> Warm:
    """Load the model, or the back of its cut called `cut`, for `cores` cores, and find out how it runs best.

    Raises Missing, Invalid, NotReady as `Model.load` does, Permanent where it cannot run at all.
    """
    first = _load(bundle, cut, cores)
    lanes: tuple[Answerer, ...] = (first,)
    try:
        item = _item(first)
        first.session.run(item)
        speed = Speed(MOST if _takes_several(first, item) else 1)
        until_s = time.perf_counter() + _BUDGET_S
        if cores > 1:
            lanes = _side_by_side(bundle, cut, first, item, cores)
        for _ in range(3):
            speed.ran(1, _timed(lanes[0], item, 1))
        count = 2
        while count <= speed.most and time.perf_counter() + speed.run_s(count) < until_s:
            for _ in range(2):
                speed.ran(count, _timed(lanes[0], item, count))
            count *= 2
    except MarramError:
        for each in {first, *lanes}:
            each.close()
        raise
    alone = None if first in lanes else first
    if alone is not None and not _small(bundle, cut):
        alone.close()
        alone = None
    log.info(
        "%s%s: %d lanes%s, best batch %d, %.1f ms",
        bundle.reference,
        f" {cut}" if cut else "",
        len(lanes),
        " and one for who is alone" if alone else "",
        speed.best(),
        speed.run_s(1) * 1e3,
    )
    return Warm(lanes, speed, alone)


def file_of(bundle: Bundle, cut: str) -> Path:
    """What is loaded, as a rule: a card's later variants are for machines that cannot run its first."""
    return bundle.folder / (bundle.cut(cut).back if cut else bundle.card.variants[0].file)


def _load(bundle: Bundle, cut: str, threads: int) -> Answerer:
    if cut:
        return Back.load(bundle, cut, threads=threads, free=True)
    return Model.load(bundle, threads=threads, free=True)


def _item(answerer: Answerer) -> list[Tensor]:
    """One made-up item as the engine takes it."""
    if isinstance(answerer, Back):
        noise = np.random.default_rng(0)
        return answerer.prepare(noise.integers(0, 256, answerer.cut.shape, dtype=np.uint8)).tensors
    return answerer.prepare(example(answerer.card)).tensors


def _takes_several(answerer: Answerer, item: list[Tensor]) -> bool:
    """Whether two items as one give what each gives alone: a file may say so (or be made to), its graph not do it."""
    session = answerer.session
    if not all(info.shape and info.shape[0] == -1 for info in session.inputs):
        return False
    other = [np.ascontiguousarray(np.flip(tensor, axis=tuple(range(1, tensor.ndim)))) for tensor in item]
    try:
        alone = [run(answerer, [each], 1)[0] for each in (item, other)]
        together = run(answerer, [item, other], 2)
    except MarramError:
        return False
    return all(
        one.shape == two.shape and np.allclose(one, two, _RELATIVE, _ABSOLUTE, equal_nan=True)
        for ones, twos in zip(alone, together, strict=True)
        for one, two in zip(ones, twos, strict=True)
    )


def _side_by_side(bundle: Bundle, cut: str, first: Answerer, item: list[Tensor], cores: int) -> tuple[Answerer, ...]:
    """As many lanes as get more done than `first` alone, which has a thread for every core."""
    parallel = first.session.parallel
    count = min(cores, _MOST_LANES if parallel else _MOST_SESSIONS)
    others: list[Answerer] = []
    if parallel and not _small(bundle, cut):
        lanes = (first,) * count
        better = _gain(lanes, first, item) > _LANES_WORTH
    else:
        try:
            for _ in range(1 if parallel else count):
                others.append(_load(bundle, cut, max(1, cores // count)))
                others[-1].session.run(item)
            lanes = tuple(others) * (count if parallel else 1)
            better = _gain(lanes, first, item) > (_LANES_WORTH if parallel else _SESSIONS_WORTH)
        except MarramError:
            better = False
    if better:
        return lanes
    for each in others:
        each.close()
    return (first,)


def _small(bundle: Bundle, cut: str) -> bool:
    return file_of(bundle, cut).stat().st_size <= _COPIED_BYTES


def _gain(lanes: Sequence[Answerer], alone: Answerer, item: list[Tensor]) -> float:
    """How many times as much gets done by `lanes` at once as by `alone`; the best of three tries each.

    Both do the same work: on a busy machine the shorter of two measurements is the luckier one.
    """
    begun_s = time.perf_counter()
    one_s = together_s = float("inf")
    for _ in range(3):
        one_s = min(one_s, _timed_at_once([alone], item, _RUNS * len(lanes)))
        together_s = min(together_s, _timed_at_once(lanes, item, _RUNS))
        if time.perf_counter() - begun_s > _BUDGET_S:
            break
    return one_s / together_s


def _timed(answerer: Answerer, item: list[Tensor], count: int) -> float:
    tensors = [np.repeat(tensor, count, axis=0) for tensor in item]
    began_s = time.perf_counter()
    answerer.session.run(tensors)
    return time.perf_counter() - began_s


def _timed_at_once(lanes: Sequence[Answerer], item: list[Tensor], runs: int) -> float:
    """Seconds until each of `lanes`, side by side, ran so often."""
    threads = [threading.Thread(target=_run_often, args=(lane, item, runs)) for lane in lanes]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s


def _run_often(lane: Answerer, item: list[Tensor], runs: int) -> None:
    with contextlib.suppress(MarramError):  # one that fails side by side is found out by questions, each told
        for _ in range(runs):
            lane.session.run(item)
