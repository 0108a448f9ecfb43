"""EfficientNet-Lite0 served by Marram and by its peers. `python -m bench.serving`

- A 224 px JPEG in, the five likeliest classes out; one client, one model file (int8), two cores for all of it.
- Peers, each as its documentation has it (`bench/peers/NAME.py`): FastAPI, LitServe, pytriton, BentoML, Ray Serve.
  `--install` makes their environments (two gigabytes under `build/peers`); those without one are not measured.
- The bare loop decodes, resizes and infers in one process with nothing around it, at the batch and with the threads
  that are fastest here. Each window of a server stands between two of its; whoever is not measured is halted.
- Every answer is checked against the bare loop's.

`ratio` is Marram's rate over the bare loop's around it, at the best number of requests in flight.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench._verdict import conclude, skip
from bench.peers import _environment
from bench.peers._bare_loop import QUICK, BareLoop, Pace
from bench.peers._classifier import Answer
from bench.peers._client import Broken, Window
from bench.peers._contenders import Contender, contenders
from bench.peers._material import Material
from bench.peers._peers import PEERS
from bench.peers._score import Score, compare, spread
from bench.pipeline import two_cores
from marram.schema.errors import MarramError

GOAL_RATIO = 0.90
GOAL_OVER_MS = 3.0
GOAL_MB = 250.0
GOAL_READY_S = 1.5
LEAST_WINDOWS = 5
IN_FLIGHT = (8, 16, 32)
OURS = "marram"


class Race:
    """All of them, round by round."""

    def __init__(self, bare: BareLoop, running: Sequence[Contender], answers: Sequence[Answer], pace: Pace) -> None:
        self._bare = bare
        self._running = list(running)
        self._expected = [answer["labels"][0] for answer in answers]
        self._pace = pace
        self.scores = {contender.name: Score(ready_s=contender.ready_s) for contender in running}
        self.left: dict[str, str] = {}

    def round(self, number: int) -> None:
        """One window of each at each number in flight, in an order that changes with `number`."""
        order = random.Random(number).sample(self._running, len(self._running))
        before_per_s = self._bare.per_s()
        for contender in order:
            try:
                before_per_s = self._turn(contender, self.scores[contender.name], before_per_s)
            except (Broken, OSError, MarramError) as error:
                # Its windows no longer pair with the others'.
                del self.scores[contender.name]
                self._running.remove(contender)
                self.left[contender.name] = f"failed in round {number + 1}: {error}"
                print(f"{contender.name} {self.left[contender.name]}", flush=True)
                contender.halt()
                before_per_s = self._bare.per_s()

    def _turn(self, contender: Contender, score: Score, before_per_s: float) -> float:
        words = []
        for in_flight in IN_FLIGHT:
            spent_s = contender.cpu_s()
            window = self._window(contender, in_flight, self._pace.window_s)
            spent_s = contender.cpu_s() - spent_s
            after_per_s = self._bare.per_s()
            score.loaded(in_flight, window, (before_per_s + after_per_s) / 2, spent_s)
            before_per_s = after_per_s
            words.append(f"{in_flight} in flight {window.per_s:4.0f}/s {score.shares[in_flight][-1]:.2f}")
        bare_ms = self._bare.alone_ms()
        score.alone(self._window(contender, 1, self._pace.alone_s), bare_ms)
        score.weight_mb.append(contender.weight_mb())
        print(f"{contender.name:<12} {'   '.join(words)}   alone {score.over_ms[-1]:+.1f} ms", flush=True)
        return before_per_s

    def _window(self, contender: Contender, in_flight: int, seconds: float) -> Window:
        contender.resume()
        window = contender.window(in_flight, self._pace.settle_s, seconds)
        contender.halt()
        score = self.scores[contender.name]
        for number, body in window.bodies:
            labels = contender.told(body)
            score.wrong += len(labels) != 5 or labels[0] != self._expected[number]
        score.answers += len(window.bodies)
        if not window.bodies:
            raise Broken(f"no answer within {seconds:g} s")
        return window


def judged(
    scores: dict[str, Score], missing: dict[str, str], windows: int
) -> tuple[float | None, dict[str, Any], bool | None]:
    """Ratio, figures, and whether the goals beside the ratio are reached; None: not all of them could be looked at."""
    told_of = {"servers": {name: told(score) for name, score in scores.items()}, "not_measured": missing}
    ours = scores.get(OURS)
    if ours is None:
        return None, told_of, False
    slower = {}
    for name in (peer.name for peer in PEERS if peer.name in scores):
        for in_flight in IN_FLIGHT:
            compared = compare(ours.shares[in_flight], scores[name].shares[in_flight])
            if compared.slower:
                slower[f"{name}, {in_flight} in flight"] = f"{compared.gap:+.2f} ± {compared.spread:.2f}"
    over_ms, memory_mb, ready_s = statistics.median(ours.over_ms), max(ours.weight_mb), statistics.median(ours.ready_s)
    wrong = sum(score.wrong for score in scores.values())
    figures = {
        "in_flight": ours.best(),
        "over_ms": round(over_ms, 2),
        "goal_over_ms": GOAL_OVER_MS,
        "memory_mb": round(memory_mb, 1),
        "goal_memory_mb": GOAL_MB,
        "ready_s": round(ready_s, 2),
        "goal_ready_s": GOAL_READY_S,
        "slower_than": slower,
        "wrong_answers": wrong,
    }
    reached: bool | None = (
        over_ms <= GOAL_OVER_MS and memory_mb <= GOAL_MB and ready_s <= GOAL_READY_S and not slower and not wrong
    )
    lacking = [peer.name for peer in PEERS if peer.name not in scores]
    if reached and (lacking or windows < LEAST_WINDOWS):
        reached = None
        figures["skipped"] = (
            f"not compared with {', '.join(lacking)}" if lacking else f"{windows} windows tell too little"
        )
    return ours.share(ours.best()), figures | told_of, reached


def told(score: Score) -> dict[str, Any]:
    """One server's figures: by requests in flight its share of the bare loop's rate and half the range of that."""
    return {
        "of_bare": {str(n): round(score.share(n), 3) for n in score.shares},
        "spread": {str(n): round(spread(shares), 3) for n, shares in score.shares.items()},
        "per_s": {str(n): round(statistics.median(rates)) for n, rates in score.rates.items()},
        "p99_ms": {str(n): round(statistics.median(spans)) for n, spans in score.p99_ms.items()},
        "over_ms": round(statistics.median(score.over_ms), 2),
        "over_ms_spread": round(spread(score.over_ms), 2),
        "memory_mb": round(max(score.weight_mb), 1),
        "ready_s": round(statistics.median(score.ready_s), 2),
        "cpu_ms": round(statistics.median(score.cpu_ms), 2),
        "client_cores": round(statistics.median(score.client), 3),
        "answers": score.answers,
    }


def report(scores: dict[str, Score]) -> None:
    """The table that a person reads."""
    heads = "".join(f"{f'{n} in flight':>16}" for n in IN_FLIGHT)
    rest = f"{'alone, ms over':>18}{'memory MB':>11}{'ready s':>9}{'CPU ms':>8}{'client':>8}"
    print(f"\n{'of the bare loop':<16}{heads}{rest}")
    for name, score in sorted(scores.items(), key=lambda each: -each[1].share(each[1].best())):
        cells = "".join(f"{score.share(n):>9.2f} ± {spread(score.shares[n]):.2f}" for n in IN_FLIGHT)
        over = f"{statistics.median(score.over_ms):>11.1f} ± {spread(score.over_ms):.1f}"
        rest = f"{max(score.weight_mb):>11.0f}{statistics.median(score.ready_s):>9.2f}"
        spent = f"{statistics.median(score.cpu_ms):>8.2f}{statistics.median(score.client):>8.0%}"
        print(f"{name:<16}{cells}{over:>18}{rest}{spent}")


def started(chosen: Sequence[Contender], stack: ExitStack) -> tuple[list[Contender], dict[str, str]]:
    """Start one after another, each halted before the next: those that answer, and why others do not."""
    running: list[Contender] = []
    failed: dict[str, str] = {}
    for contender in chosen:
        stack.callback(contender.stop)
        try:
            contender.start()
        except MarramError as error:
            contender.stop()
            failed[contender.name] = str(error)
        else:
            contender.halt()
            running.append(contender)
            print(f"{contender.name:<12} ready in {statistics.median(contender.ready_s):.2f} s", flush=True)
    return running, failed


def main() -> None:
    """Measure those that are there; see the module's words."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description="Marram and its peers, serving.")
    parser.add_argument("--install", action="store_true", help="make the peers' environments first where absent")
    parser.add_argument("--only", default="", help="names with commas between: marram,marram-nats,fastapi,…")
    parser.add_argument("--windows", type=int, default=LEAST_WINDOWS, help=f"of each server ({LEAST_WINDOWS})")
    parser.add_argument("--quick", action="store_true", help="short windows, for work on it")
    options = parser.parse_args()
    pace = QUICK if options.quick else Pace()
    cores = two_cores()
    # The model is built anew, of the recipe as it is now, and not into the library of whoever runs this.
    os.environ["MARRAM_HOME"] = str(_environment.ROOT / "build" / "serving")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        material = Material.make(Path(temporary))
        bare = stack.enter_context(BareLoop(material, pace))
        answers = bare.answers()
        print(f"bare loop: {bare.search(cores)}", flush=True)
        chosen, missing = contenders(material, [name for name in options.only.split(",") if name], options.install)
        running, failed = started(chosen, stack)
        missing |= failed
        for name, why in missing.items():
            print(f"{name:<12} not measured: {why}", flush=True)
        if not running:
            skip("serving", GOAL_RATIO, f"nothing could be started: {missing}")
            return
        race = Race(bare, running, answers, pace)
        for number in range(options.windows):
            print(f"round {number + 1} of {options.windows}", flush=True)
            race.round(number)
        around = bare.told() | {"cores": cores, "windows": options.windows}
    report(race.scores)
    print(f"{'bare loop':<16}{around['bare_per_s']:.0f}/s, {around['bare_cpu_ms']:.2f} ms of CPU each")
    ratio, figures, reached = judged(race.scores, missing | race.left, options.windows)
    conclude("serving", ratio, GOAL_RATIO, around | figures, also=reached)


if __name__ == "__main__":
    main()
