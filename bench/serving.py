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
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bench._verdict import conclude, skip
from bench.peers import _environment
from bench.peers._classifier import Answer
from bench.peers._client import Broken, Window
from bench.peers._contenders import Contender, contenders
from bench.peers._material import Material
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
_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things are looked at, in seconds."""

    window_s: float = 1.5
    settle_s: float = 0.4
    alone_s: float = 0.8
    bare_s: float = 0.6
    search_s: float = 0.4


QUICK = Pace(window_s=0.7, settle_s=0.2, alone_s=0.4, bare_s=0.4, search_s=0.25)


class BareLoop:
    """The process of `bench.peers._bare`. A context."""

    def __init__(self, material: Material, pace: Pace) -> None:
        command = [sys.executable, "-m", "bench.peers._bare", *map(str, (material.model, material.labels))]
        self._process = subprocess.Popen(
            [*command, str(material.pictures)],
            cwd=_environment.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pace = pace
        self.rates: list[float] = []
        self.latencies_ms: list[float] = []
        self._fastest: dict[str, int] = {}
        self._soonest: dict[str, int] = {}

    def __enter__(self) -> BareLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def answers(self) -> list[Answer]:
        """What each picture shows."""
        told: list[Answer] = self._ask({"answers": True})["answers"]
        return told

    def search(self, cores: int) -> str:
        """Find the batch and the threads that are fastest, and those that answer one picture soonest; in words."""
        tried: dict[tuple[int, int, int], list[dict[str, float]]] = {}
        for _ in range(3):
            for sessions, threads in ((cores, 1), (1, cores), (1, 1)):
                for batch in _BATCHES:
                    window = self._window(sessions, threads, batch, self._pace.search_s)
                    tried.setdefault((sessions, threads, batch), []).append(window)
        fastest = max(tried, key=lambda each: max(window["per_s"] for window in tried[each]))
        alone = [each for each in tried if each[0] == each[2] == 1]
        soonest = min(alone, key=lambda each: min(window["p50_ms"] for window in tried[each]))
        self._fastest, self._soonest = (
            dict(zip(("sessions", "threads", "batch"), each, strict=True)) for each in (fastest, soonest)
        )
        return f"{fastest[0]} × {fastest[1]} threads, batch {fastest[2]}; alone {soonest[1]} threads"

    def per_s(self) -> float:
        """Pictures a second in a window now."""
        self.rates.append(self._window(**self._fastest, seconds=self._pace.bare_s)["per_s"])
        return self.rates[-1]

    def alone_ms(self) -> float:
        """The median time of one picture in a window now, milliseconds."""
        self.latencies_ms.append(self._window(**self._soonest, seconds=self._pace.bare_s)["p50_ms"])
        return self.latencies_ms[-1]

    def _window(self, sessions: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
        return self._ask({"sessions": sessions, "threads": threads, "batch": batch, "seconds": seconds})

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


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
            window = self._window(contender, in_flight, self._pace.window_s)
            after_per_s = self._bare.per_s()
            score.loaded(in_flight, window, (before_per_s + after_per_s) / 2)
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


def judged(scores: dict[str, Score], missing: dict[str, str], windows: int) -> tuple[float, dict[str, Any], bool]:
    """Ratio, figures, and whether the goals beside the ratio are reached."""
    ours = scores[OURS]
    slower = {}
    for name, theirs in scores.items():
        for in_flight in IN_FLIGHT if name != OURS and not name.startswith(f"{OURS}-") else ():
            compared = compare(ours.shares[in_flight], theirs.shares[in_flight])
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
        "not_measured": missing,
        "wrong_answers": wrong,
        "windows": windows,
        "servers": {name: told(score) for name, score in scores.items()},
    }
    reached = (
        over_ms <= GOAL_OVER_MS
        and memory_mb <= GOAL_MB
        and ready_s <= GOAL_READY_S
        and not (slower or missing or wrong)
        and windows >= LEAST_WINDOWS
    )
    return ours.share(ours.best()), figures, reached


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
        "client_cores": round(statistics.median(score.client), 3),
        "answers": score.answers,
    }


def report(scores: dict[str, Score]) -> None:
    """The table that a person reads."""
    heads = "".join(f"{f'{n} in flight':>16}" for n in IN_FLIGHT)
    print(f"\n{'of the bare loop':<16}{heads}{'alone, ms over':>18}{'memory MB':>11}{'ready s':>9}{'client':>8}")
    for name, score in sorted(scores.items(), key=lambda each: -each[1].share(each[1].best())):
        cells = "".join(f"{score.share(n):>9.2f} ± {spread(score.shares[n]):.2f}" for n in IN_FLIGHT)
        over = f"{statistics.median(score.over_ms):>11.1f} ± {spread(score.over_ms):.1f}"
        rest = f"{max(score.weight_mb):>11.0f}{statistics.median(score.ready_s):>9.2f}"
        print(f"{name:<16}{cells}{over:>18}{rest}{statistics.median(score.client):>8.0%}")


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
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        material = Material.make(Path(temporary))
        bare = stack.enter_context(BareLoop(material, pace))
        answers = bare.answers()
        print(f"bare loop: {bare.search(cores)}", flush=True)
        chosen, missing = contenders(material, [name for name in options.only.split(",") if name], options.install)
        running = []
        for contender in chosen:
            try:
                contender.start()
            except MarramError as error:
                missing[contender.name] = str(error)
            else:
                stack.callback(contender.stop)
                running.append(contender)
                contender.halt()
                print(f"{contender.name:<12} ready in {statistics.median(contender.ready_s):.2f} s", flush=True)
        for name, why in missing.items():
            print(f"{name:<12} not measured: {why}", flush=True)
        if not running:
            skip("serving", GOAL_RATIO, f"nothing could be started: {missing}")
            return
        race = Race(bare, running, answers, pace)
        for number in range(options.windows):
            print(f"round {number + 1} of {options.windows}", flush=True)
            race.round(number)
        report(race.scores)
        missing |= race.left
        around = {
            "bare_per_s": round(statistics.median(bare.rates), 1),
            "bare_spread": round(spread(bare.rates) / statistics.median(bare.rates), 3),
            "bare_alone_ms": round(statistics.median(bare.latencies_ms), 2),
            "cores": cores,
        }
        if OURS not in race.scores:
            figures = {"not_measured": missing, "servers": {name: told(score) for name, score in race.scores.items()}}
            conclude("serving", None, GOAL_RATIO, around | figures)
            return
        ratio, figures, reached = judged(race.scores, missing, options.windows)
        conclude("serving", ratio, GOAL_RATIO, around | figures, also=reached)


if __name__ == "__main__":
    main()
