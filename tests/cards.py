"""The card of a model made for a test."""

from __future__ import annotations

from pathlib import Path

from marram.runtime.bundle import dump_card
from marram.schema.model import Input, ModelCard, Output, Task, Variant


def write_card(folder: Path, name: str, entry: Input) -> Path:
    """In `folder`, of a classifier in `net.onnx` there that says which colour it sees; the folder."""
    card = ModelCard(
        model=name,
        task=Task.CLASSIFICATION,
        input=entry,
        output=Output(form="logits"),
        variants=[Variant(name="fp32", engine="onnx", file="net.onnx")],
        labels=["red", "green", "blue"],
        licence="Apache-2.0",
        source="made for this test",
    )
    (folder / "model.yaml").write_text(dump_card(card))
    return folder
