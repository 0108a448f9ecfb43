"""From a trained network to a bundle that a device runs: ONNX, static int8, the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marram.runtime.build.quantize import quantize_static
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.schema.model import Engine, ModelCard, Output, Task, Variant
from marram.train.data import Example
from marram.train.fit import export_onnx, inputs
from marram.train.recipe import Recipe

# Enough pictures to see every activation's range; more only take longer.
_CALIBRATION = 200


def write_bundle(recipe: Recipe, model: Any, version: int, train: list[Example], folder: Path) -> Bundle:
    """Write `model` (a torch module) as a bundle into the empty `folder`: ONNX int8 and fp32, calibrated on `train`."""
    folder.mkdir(parents=True, exist_ok=True)
    full, small = folder / "model.onnx", folder / "model.int8.onnx"
    export_onnx(recipe, model, full)
    step = max(1, len(train) // _CALIBRATION)
    quantize_static(full, small, [batch[None] for batch in inputs(recipe, train[::step])])
    card = ModelCard(
        model=recipe.recipe,
        version=version,
        task=Task.CLASSIFICATION,
        input=recipe.input,
        output=Output(form="logits"),
        variants=[
            Variant(name="onnx-int8", engine=Engine.ONNX, file=small.name, precision="int8"),
            Variant(name="onnx-fp32", engine=Engine.ONNX, file=full.name, precision="fp32"),
        ],
        labels=recipe.labels,
        licence=recipe.licence,
        source=recipe.source,
        description=recipe.description,
    )
    (folder / CARD).write_text(dump_card(card), encoding="utf-8")
    return Bundle.open(folder)
