"""Example 02 on a device: a worker runs the Greengrass handler; what it publishes reaches the cloud by the outbox."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marram.lab.stage import Stage

pytest.importorskip("torch", reason="needs PyTorch (pip install 'marram[torch]')")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02-sensor-function"


@pytest.mark.timeout(300)
def test_what_the_handler_publishes_reaches_the_cloud_once(tmp_path: Path) -> None:
    folder = tmp_path / "sensor"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("model.pt2", "readings.csv", "__pycache__"))
    subprocess.run([sys.executable, "make_model.py", str(folder)], cwd=folder, capture_output=True, check=True)
    with Stage(tmp_path / "stage") as stage:
        stage.cloud()
        stage.device("pump-7", site="works")
        stage.run("deploy", folder / "app.yaml", "--to", "site=works")
        with stage.api() as api:
            stage.until("36 messages in the cloud", lambda: len(api.events(kinds=["message"], limit=1000)) >= 36)
            messages = api.events(kinds=["message"], limit=1000)
            counts = api.counts(device="pump-7")
    assert len(messages) == 36 and {event.data["topic"] for event in messages} == {"sensor/data"}
    assert {event.data["payload"]["state"] for event in messages} <= {"normal", "imbalance", "bearing"}
    assert len({event.data["payload"]["state"] for event in messages}) == 3
    assert counts.stored == counts.distinct
