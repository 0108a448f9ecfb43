"""Greengrass code where two functions share a process, and where the disk fails in the middle of a shadow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marram.pipeline.contract import Frame, Step
from marram.pipeline.greengrass.shadow import ShadowFault, Shadows

# As many samples have it: the client is made where it is used.
HANDLER = """
def function_handler(event, context):
    import greengrasssdk
    greengrasssdk.client("iot-data").publish(topic="t", payload=event)
"""


def test_a_message_goes_out_with_the_function_that_sends_it(
    tmp_path: Path, last_step: Callable[[str], Step], heard: Any, clean_process: None
) -> None:
    steps: list[Any] = []
    for name in ("first", "second"):
        (tmp_path / f"handler_{name}.py").write_text(HANDLER)
        steps.append(last_step(f"source: {{mqtt: t}}\nsteps: [{{function: 'handler_{name}.py:function_handler'}}]"))
    try:
        for number, step in enumerate([*steps, *reversed(steps)]):
            list(step(Frame(number, 1.0, 0.0, reading=str(number), name="t")))
    finally:
        for step in steps:
            step.close()
    assert [event.data["function"].partition(".")[0] for event in heard.events] == [
        "handler_first", "handler_second", "handler_second", "handler_first",
    ]  # fmt: skip


def test_a_disk_that_fails_in_the_middle_of_an_update_leaves_the_shadow_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadows = Shadows(tmp_path)
    shadows.update("pump", json.dumps({"state": {"reported": {"speed": 3}}}))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ShadowFault, match="500: The shadow cannot be kept"):
            shadows.update("pump", json.dumps({"state": {"reported": {"speed": 9}}}))
    document = shadows.get("pump")
    assert (document["state"], document["version"]) == ({"reported": {"speed": 3}}, 1)
