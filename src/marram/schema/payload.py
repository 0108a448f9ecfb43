"""What a model elsewhere is sent: one input, encoded. The same on every way there: bus, shared memory, peers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Payload:
    """One input in the form that `media` names; `runtime/codecs.py` encodes and decodes each.

    | media | body |
    |---|---|
    | `image/jpeg` (or any picture) | the picture, fitted to the model's input already where `frame_size` is set |
    | `application/x-pixels+zstd` | uint8 `shape` [H, W, 3], RGB, likewise, compressed with Zstandard |
    | `application/x-tensor` | readings: float32, little-endian, of `shape` |
    | `application/x-cut+zstd` | what crosses the cut called `cut`: uint8 of `shape`, compressed with Zstandard |
    | `application/x-tensors` | the file's own inputs by name (`RawTensor`), any number of items (`bus/inferences.py`) |

    `frame_size` (height, width of the original frame) lets boxes be given in the frame's pixels. At a cut
    real = (byte - `zero_point`) * `scale`.
    """

    media: str
    body: bytes
    shape: tuple[int, ...] = ()
    frame_size: tuple[int, int] | None = None
    cut: str = ""
    scale: float = 1.0
    zero_point: int = 0


# The file's own tensors are sent; the answer is the file's own outputs, not a result.
TENSORS = "application/x-tensors"


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as it travels: `dtype` is NumPy's name, `body` little-endian in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    body: bytes
