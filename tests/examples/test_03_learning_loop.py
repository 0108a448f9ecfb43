"""Example 03: the loop closes over real processes, and the changed site gains while the other does not lose."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs PyTorch (pip install 'marram[torch]')")
LOOP = Path(__file__).resolve().parents[2] / "examples" / "03-learning-loop" / "loop.py"


@pytest.mark.timeout(600)
def test_the_changed_site_gains_and_the_other_does_not_lose(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("loop", LOOP)
    assert spec is not None and spec.loader is not None
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    figures = loop.run(tmp_path / "stage", print)
    assert figures["versions"] == [1, 2]
    assert figures["accuracy_usual"]["a"] > 0.9 and figures["accuracy_usual"]["b"] > 0.9
    assert figures["accuracy_changed"] < 0.5
    # Held-out data of both sites was judged, and none of it fell by more than the one example that proves nothing.
    judged = {score["slice"]: score for score in figures["judged"]}
    assert {"base", "b"} <= set(judged)
    for score in judged.values():
        assert (
            score["old"] is None or (score["old"] - score["new"]) * score["examples"] < 1.5 or score["slice"] == "base"
        )
    assert judged["base"]["new"] >= judged["base"]["old"] - 0.01
    # On pictures no training saw.
    before, after = figures["accuracy_before"], figures["accuracy_after"]
    assert after["b"] > before["b"] + 0.3
    assert after["a"] >= before["a"] - 0.02
