"""The bare loop: decode, resize, infer, interpret, with nothing around it. What every server is held to.

`python -m bench.peers._bare MODEL LABELS PICTURES` reads one line of JSON a window on stdin and answers with one on
stdout; between windows it sleeps there. PICTURES is a folder of JPEGs. Asked:

    {"sessions": 2, "threads": 1, "batch": 4, "seconds": 0.6}   each session in a thread of its own, as fast as it goes
    {"answers": true}                                           what each picture shows, for judging the servers

Answered: `per_s`, `p50_ms` (of one batch) and `cpu_ms` (of one picture), or `answers`.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bench.peers._classifier import Answer, Classifier


class Bare:
    """Sessions are made when first asked for, and stay."""

    def __init__(self, model: str, labels: str, pictures: list[bytes]) -> None:
        self._files = (model, labels)
        self._pictures = pictures
        self._classifiers: dict[int, list[Classifier]] = {}

    def answers(self) -> list[Answer]:
        """What each picture shows, one at a time."""
        (classifier,) = self._of(1, 1)
        return [classifier.answer([picture])[0] for picture in self._pictures]

    def window(self, sessions: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
        """Pictures a second, the median milliseconds of a batch, the processor's milliseconds of a picture."""
        spans: list[list[float]] = [[] for _ in range(sessions)]
        begun_s, spent_s = time.perf_counter(), time.process_time()
        workers = [
            threading.Thread(target=self._loop, args=(classifier, batch, begun_s + seconds, spans[index]))
            for index, classifier in enumerate(self._of(sessions, threads))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        elapsed_s, spent_s = time.perf_counter() - begun_s, time.process_time() - spent_s
        done = [span for each in spans for span in each]
        pictures = len(done) * batch
        return {
            "per_s": pictures / elapsed_s,
            "p50_ms": statistics.median(done) * 1e3,
            "cpu_ms": spent_s / pictures * 1e3,
        }

    def _loop(self, classifier: Classifier, batch: int, ends_s: float, spans: list[float]) -> None:
        pictures = self._endless()
        now_s = time.perf_counter()
        while now_s < ends_s:
            classifier.answer(list(islice(pictures, batch)))
            before_s, now_s = now_s, time.perf_counter()
            spans.append(now_s - before_s)

    def _endless(self) -> Iterator[bytes]:
        while True:
            yield from self._pictures

    def _of(self, sessions: int, threads: int) -> list[Classifier]:
        """Sessions with `threads` threads each, warm."""
        made = self._classifiers.setdefault(threads, [])
        while len(made) < sessions:
            made.append(Classifier(*self._files, threads=threads))
            made[-1].answer(self._pictures[:1])
        return made[:sessions]


def main() -> None:
    """Serve windows until standard input ends."""
    model, labels, folder = sys.argv[1:]
    bare = Bare(model, labels, [file.read_bytes() for file in sorted(Path(folder).glob("*.jpg"))])
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        told = {"answers": bare.answers()} if asked.pop("answers", False) else bare.window(**asked)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
