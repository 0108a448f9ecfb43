"""The bare loop from outside: its process, its fastest way on this machine, its windows between the others'."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bench.peers import _environment
from bench.peers._classifier import Answer
from bench.peers._material import Material
from bench.peers._score import spread

_BATCHES = (1, 2, 4, 8, 16)
_PASSES = 3


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
        self.cpu_ms: list[float] = []
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
        for _ in range(_PASSES):
            for sessions, threads in ((cores, 1), (1, cores), (1, 1)):
                for batch in _BATCHES:
                    window = self._window(sessions, threads, batch, self._pace.search_s)
                    tried.setdefault((sessions, threads, batch), []).append(window)
        whole = [each for each in tried if each[0] * each[1] == cores]  # a busy machine makes one core look as good
        fastest = max(whole, key=lambda each: max(window["per_s"] for window in tried[each]))
        alone = [each for each in tried if each[0] == each[2] == 1]
        soonest = min(alone, key=lambda each: min(window["p50_ms"] for window in tried[each]))
        self._fastest, self._soonest = (
            dict(zip(("sessions", "threads", "batch"), each, strict=True)) for each in (fastest, soonest)
        )
        return f"{fastest[0]} × {fastest[1]} threads, batch {fastest[2]}; alone {soonest[1]} threads"

    def per_s(self) -> float:
        """Pictures a second in a window now."""
        window = self._window(**self._fastest, seconds=self._pace.bare_s)
        self.rates.append(window["per_s"])
        self.cpu_ms.append(window["cpu_ms"])
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

    def told(self) -> dict[str, float]:
        """Its figures."""
        rate = statistics.median(self.rates)
        return {
            "bare_per_s": round(rate, 1),
            "bare_spread": round(spread(self.rates) / rate, 3),
            "bare_cpu_ms": round(statistics.median(self.cpu_ms), 2),
            "bare_alone_ms": round(statistics.median(self.latencies_ms), 2),
        }
