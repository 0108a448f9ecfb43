"""The seam of postprocessing: `interpret(outputs, asked) -> Result`, where `asked` is everything but the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marram.runtime.contract import Tensor, TensorInfo
from marram.runtime.fit import Fit
from marram.runtime.session import dequantise
from marram.schema.errors import Invalid
from marram.schema.model import ModelCard
from marram.schema.result import Result


@dataclass(frozen=True, slots=True)
class Options:
    """What the asker may choose: how many classes to name, and from which confidence on (None: the card's)."""

    top: int = 5
    min_confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the outputs answer. `fit` is None for readings; `tensors` went in, described by `inputs`."""

    card: ModelCard
    labels: tuple[str, ...]
    tensors: list[Tensor]
    inputs: tuple[TensorInfo, ...]
    fit: Fit | None
    options: Options

    @property
    def min_confidence(self) -> float:
        chosen = self.options.min_confidence
        return self.card.output.min_confidence if chosen is None else chosen

    def label(self, index: int) -> str:
        """The name of class `index`; `class 7` where the labels do not reach it."""
        line = index + self.card.output.label_offset
        return self.labels[line] if 0 <= line < len(self.labels) and self.labels[line] else f"class {index}"

    def placed(self) -> Fit:
        """The fit, for forms whose answers lie somewhere in a picture. Raises Invalid for readings."""
        if self.fit is None:
            raise Invalid("boxes need a picture", where=self.card.model, hint="Set input.kind: image in model.yaml.")
        return self.fit

    def real_input(self) -> NDArray[np.float32]:
        """What went in first, as real numbers."""
        tensor, info = self.tensors[0], self.inputs[0]
        return tensor if tensor.dtype == np.float32 else dequantise(tensor, info)  # type: ignore[return-value]

    def wrong(self, outputs: list[Tensor], wanted: str) -> Invalid:
        """The fault to raise where the outputs are not what the form takes."""
        shapes = ", ".join(str(list(o.shape)) for o in outputs)
        return Invalid(
            f'"{self.card.output.form}" takes {wanted}; the model gave {shapes}',
            where=f"{self.card.model}: output.form",
            hint="Choose the form that fits in model.yaml.",
        )


Form = Callable[[list[Tensor], Asked], Result]
