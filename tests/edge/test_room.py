"""A device never fetches itself into a full disk: what it keeps free is for its outbox."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from marram.edge.bundles import Bundles
from marram.schema.errors import Retryable
from marram.schema.model import File


def test_what_is_kept_free_for_the_outbox_is_not_fetched_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    bundles = Bundles(tmp_path, reserve_bytes=6_000_000)
    bundles.make()
    model = File(path="net.tflite", sha256="ab" * 32, size_bytes=4_000_001)
    with pytest.raises(Retryable, match=r"10 MB free, 6 MB of it kept for the outbox"):
        bundles.room.take([model])
    bundles.partial(model).write_bytes(b"x")  # what is here of it already needs no more room
    bundles.room.take([model])
