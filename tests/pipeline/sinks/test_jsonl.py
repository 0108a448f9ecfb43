"""jsonl: whole lines, whatever the disk does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.pipeline.contract import Frame, Placed
from marram.pipeline.sinks.jsonl import Jsonl, open_sink
from marram.schema.app import JsonlSink
from marram.schema.errors import Invalid, Retryable
from marram.schema.model import Task
from marram.schema.result import Place, Result


def frame(index: int = 0, **extra: Any) -> Frame:
    result = Result(task=Task.CLASSIFICATION, model="m", label="cat", confidence=0.5, extra=extra)
    return Frame(index, 100.5, 0.0, name="a.jpg", result=result, placed=Placed(Place.EDGE, 0.0125))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_a_result(tmp_path: Path) -> None:
    sink = open_sink(JsonlSink(jsonl="out/results.jsonl"), tmp_path)
    for index in range(100):
        sink.write(frame(index, people=np.int64(3), odd=float("nan"), word="naïve\n"))
    sink.write(Frame(100, 1.0, 0.0, reading={"t": 21.5}))
    sink.close()
    found = lines(tmp_path / "out" / "results.jsonl")
    assert [line["frame"] for line in found] == list(range(101))
    assert found[0] | {"fallback": 0, "audit": 0} == {
        "time_s": 100.5, "task": "classification", "model": "m", "label": "cat", "confidence": 0.5, "people": 3,
        "odd": None, "word": "naïve\n", "frame": 0, "name": "a.jpg", "place": "edge", "latency_ms": 12.5,
        "fallback": 0, "audit": 0,
    }  # fmt: skip
    assert found[100]["reading"] == {"t": 21.5}


def test_appends_to_what_is_there(tmp_path: Path) -> None:
    for index in range(2):
        sink = Jsonl(tmp_path / "r.jsonl")
        sink.write(frame(index))
        sink.close()
    assert [line["frame"] for line in lines(tmp_path / "r.jsonl")] == [0, 1]


def test_what_json_has_no_word_for_is_that_frames_fault(tmp_path: Path) -> None:
    sink = Jsonl(tmp_path / "r.jsonl")
    with pytest.raises(Invalid, match=r"frame\.thing is a object"):
        sink.write(frame(0, thing=object()))
    sink.write(frame(1))
    sink.close()
    assert [line["frame"] for line in lines(tmp_path / "r.jsonl")] == [1]


def test_a_full_disk_loses_lines_counted_and_blocks_nobody() -> None:
    sink = Jsonl(Path("/dev/full"))
    faults = []
    for index in range(2000):
        try:
            sink.write(frame(index))
        except Retryable as error:
            faults.append(str(error))
    with pytest.raises(Retryable, match="no space left on device"):
        sink.close()
    assert sink.lost == 2000
    assert all("/dev/full" in fault for fault in faults)


def test_a_disk_that_is_full_for_a_while_tears_no_line(tmp_path: Path) -> None:
    """A file size limit is a disk that fills in the middle of a line."""
    code = """
import resource, signal, sys
from pathlib import Path
from marram.pipeline.contract import Frame
from marram.pipeline.sinks.jsonl import Jsonl
from marram.schema.errors import Retryable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = Jsonl(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
def told(act, *arguments):
    try:
        act(*arguments)
    except Retryable as error:
        print(error)
import time
index = 0
while not sink.lost:
    told(sink.write, Frame(index, 1.0, 0.0, reading="x" * 90)); index += 1
    time.sleep(0.001)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
told(sink.write, Frame(9999, 1.0, 0.0, reading="x" * 90))
told(sink.close)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.jsonl")], capture_output=True, text=True, timeout=60, check=True
    )
    assert "file too large" in ran.stdout
    assert [line["frame"] for line in lines(tmp_path / "r.jsonl")][-1] == 9999


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = Jsonl(path)
    sink.write(frame(0))
    while not path.stat().st_size:
        pass
    path.rename(tmp_path / "r.jsonl.1")
    sink.write(frame(1))
    sink.close()
    assert [line["frame"] for line in lines(tmp_path / "r.jsonl.1")] == [0]
    assert [line["frame"] for line in lines(path)] == [1]


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = Jsonl(fifo, limit_lines=50)
    try:
        # Nobody reads: a pipe holds 64 kB, the writer hangs, the queue fills.
        with pytest.raises(Retryable, match="the disk is too slow"):
            for index in range(3000):
                sink.write(frame(index))
        assert sink.lost >= 1
    finally:
        os.set_blocking(reader, True)
        drained = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 65536), b"")])
        drained.start()
        with contextlib.suppress(Retryable):
            sink.close()
        drained.join(30)
        os.close(reader)


def test_a_folder_that_is_absent_elsewhere_is_said_not_made(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no such file or directory"):
        open_sink(JsonlSink(jsonl=str(tmp_path / "absent" / "r.jsonl")), tmp_path / "app")
    assert not (tmp_path / "absent").exists()
    open_sink(JsonlSink(jsonl=str(tmp_path / "app" / "out" / "r.jsonl")), tmp_path / "app").close()
    assert (tmp_path / "app" / "out" / "r.jsonl").exists()


@pytest.mark.parametrize("path", [".", "file/r.jsonl"])
def test_what_cannot_be_written_is_said_at_the_start(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match=r"sinks\.jsonl: cannot write"):
        open_sink(JsonlSink(jsonl=path), tmp_path)
