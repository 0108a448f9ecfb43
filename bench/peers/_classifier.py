"""The work itself, the same in every peer and in the bare loop: JPEGs to the five likeliest classes.

Imports nothing of Marram: peers run in environments of their own.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

SIDE = 224
TOP = 5

# How a peer's process is told what to serve, and where.
MODEL_VARIABLE = "MARRAM_BENCH_MODEL"
LABELS_VARIABLE = "MARRAM_BENCH_LABELS"
PORT_VARIABLE = "MARRAM_BENCH_PORT"

Picture = NDArray[np.uint8]
Answer = dict[str, Any]


def port() -> int:
    """Where to listen, on loopback."""
    return int(os.environ[PORT_VARIABLE])


class Classifier:
    """One ONNX session with `threads` threads. `run` may be called by several threads at once."""

    def __init__(self, model: str | None = None, labels: str | None = None, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = model or os.environ[MODEL_VARIABLE]
        self._session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (entry,) = self._session.get_inputs()
        self._name = entry.name
        self._bytes = entry.type == "tensor(uint8)"
        self._labels = Path(labels or os.environ[LABELS_VARIABLE]).read_text(encoding="utf-8").splitlines()

    def answer(self, jpegs: Sequence[bytes]) -> list[Answer]:
        """Decode, resize, infer, interpret."""
        return self.run([decode(jpeg) for jpeg in jpegs])

    def run(self, pictures: Sequence[Picture]) -> list[Answer]:
        """`{"labels": [...], "scores": [...]}` of each, likeliest first; all in one batch."""
        batch: NDArray[Any] = np.stack(pictures)  # (N, H, W, 3)
        if not self._bytes:  # the file with integers has this in its scale and zero-point
            batch = (batch.astype(np.float32) - np.float32(127)) / np.float32(128)
        (logits,) = self._session.run(None, {self._name: batch})  # (N, classes)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = raised / raised.sum(axis=1, keepdims=True)
        likeliest = np.argsort(-shares, axis=1, kind="stable")[:, :TOP]
        return [
            {"labels": [self._labels[k] for k in row], "scores": [float(share[k]) for k in row]}
            for row, share in zip(likeliest.tolist(), shares, strict=True)
        ]


def decode(jpeg: bytes) -> Picture:
    """uint8 [224, 224, 3], RGB; a picture of another size is resized."""
    picture: Picture = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    if picture.shape[:2] == (SIDE, SIDE):
        return picture
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
