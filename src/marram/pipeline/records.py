"""One frame's answer as one JSON record: what the `jsonl` and `mqtt` sinks write. The same fields as its event."""

from __future__ import annotations

import json
from typing import Any

from marram.pipeline.contract import Frame
from marram.pipeline.events import data_of
from marram.pipeline.plain import plain


def record(frame: Frame) -> dict[str, Any]:
    """`time_s` (Unix), then `events.data_of`; without a result (readings only passed on) also the `reading`."""
    document = {"time_s": round(frame.time_s, 6), **data_of(frame)}
    if frame.result is None and frame.reading is not None:
        document["reading"] = frame.reading
    return document


def line(frame: Frame) -> bytes:
    """`record` as UTF-8 JSON without a newline. Raises Invalid where user code left what JSON has no word for."""
    return json.dumps(plain(record(frame), "frame"), ensure_ascii=False, separators=(",", ":")).encode()
