"""`marram edge status` beside the device: what was given up and what was skipped is there without any cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import marram.cli.edge
from marram.cli import execute
from marram.edge.state import Credentials, Folder


@pytest.mark.parametrize("columns", ["40", "160"])
def test_what_was_given_up_and_skipped_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    folder = Folder(tmp_path / "device")
    folder.make()
    folder.save_credentials(Credentials(device="pi-1", brokers=["nats://127.0.0.1:1"]))
    stats = {"frames": 950, "fps": 9.5, "p50_ms": 21.0, "errors": 1207, "last_error": "002.jpg is not a whole JPEG"}
    app = {"name": "gate", "version": 3, "state": "committed", "reason": "", "restarts": 0, "stats": stats}
    waits = {
        "name": "fun",
        "version": 4,
        "state": "pending",
        "running": 3,
        "reason": "held",
        "restarts": 0,
        "stats": {},
    }
    reported: dict[str, Any] = {
        "apps": [app, waits], "uptime_s": 60.0, "memory_bytes": 30_000_000,
        "outbox_depth": 12, "outbox_bytes": 4000, "dropped": 2311,
    }  # fmt: skip
    answer = {"device": "pi-1", "link": "connected", "rtt_s": 0.02, "reported": reported}
    monkeypatch.setattr(marram.cli.edge, "ask", lambda _: answer)
    monkeypatch.setenv("COLUMNS", columns)
    with folder.lock():
        assert execute(["edge", "status", "--folder", str(folder.path)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for expected in (
        "12 events wait",
        "2,311 given up",
        "1,207",
        "950",
        "002.jpg is not a whole JPEG",
        "3 runs meanwhile; held",
    ):
        assert expected in words


def test_what_is_typed_next_names_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path / "device")
    folder.make()
    folder.save_credentials(Credentials(device="pi-1", brokers=["nats://127.0.0.1:1"]))
    assert execute(["edge", "status", "--folder", str(folder.path)]) == 0
    assert f"marram edge run --folder {folder.path}" in " ".join(capsys.readouterr().out.split())
