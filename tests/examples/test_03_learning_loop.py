"""Example 03: the loop closes over real processes, and the changed site gains while the other does not lose."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs PyTorch (pip install 'marram[torch]')")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "03-learning-loop"


@pytest.mark.timeout(600)
def test_the_changed_site_gains_and_the_other_does_not_lose(tmp_path: Path) -> None:
    # As it is, but that its cameras take 25 pictures a second instead of 50, and leave some of the machine to others.
    example = tmp_path / "example"
    shutil.copytree(EXAMPLE, example)
    page = (example / "app.yaml").read_text()
    assert "every: 20 ms" in page
    (example / "app.yaml").write_text(page.replace("every: 20 ms", "every: 40 ms"))
    spec = importlib.util.spec_from_file_location("loop", example / "loop.py")
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
