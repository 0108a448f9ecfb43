"""From a model's outputs to a `Result`, one file a form of output; the module's name is the card's `output.form`."""

from __future__ import annotations

from marram.runtime.postprocess import (
    blazeface,
    fastestdet,
    logits,
    reconstruction,
    score,
    softmax,
    ssd,
    value,
    yunet,
)
from marram.runtime.postprocess.contract import Form

FORMS: dict[str, Form] = {
    "softmax": softmax.interpret,
    "logits": logits.interpret,
    "ssd": ssd.interpret,
    "fastestdet": fastestdet.interpret,
    "yunet": yunet.interpret,
    "blazeface": blazeface.interpret,
    "value": value.interpret,
    "reconstruction": reconstruction.interpret,
    "score": score.interpret,
}

# How many outputs a form takes, where that is not one.
OUTPUTS = {"ssd": 4, "yunet": 12, "blazeface": 2}
