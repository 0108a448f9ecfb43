"""One frame's answer as one JSON record: what the `jsonl` and `mqtt` sinks write."""

from __future__ import annotations

import json
from typing import Any

from marram.pipeline.contract import Frame
from marram.pipeline.plain import plain


def record(frame: Frame) -> dict[str, Any]:
    """`frame` (index), `name`, `time_s`, `result`, and where and how fast it was answered.

    A frame without a result (an app that only passes readings on) has its `reading` instead.
    """
    document: dict[str, Any] = {"frame": frame.index, "name": frame.name, "time_s": round(frame.time_s, 6)}
    if frame.placed is not None:
        document["place"] = frame.placed.place.value
        document["latency_ms"] = round(frame.placed.latency_s * 1000, 3)
    if frame.result is not None:
        document["result"] = frame.result.to_dict()
    elif frame.reading is not None:
        document["reading"] = frame.reading
    return document


def line(frame: Frame) -> bytes:
    """`record` as UTF-8 JSON without a newline. Raises Invalid where user code left what JSON has no word for."""
    return json.dumps(plain(record(frame), "frame"), ensure_ascii=False, separators=(",", ":")).encode()
