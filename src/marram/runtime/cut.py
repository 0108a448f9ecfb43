"""A model in two parts: the front runs on the device, what it gives crosses as bytes, the back answers in the cloud.

    crossing = front.run(image)                       # uint8, of the cut's shape
    payload = encode_cut(cut, crossing, image.shape[:2])
    result = back.predict(decode(payload, card), payload.frame_size)

A number crosses as one byte by the card's scale and zero-point, whatever the two files work with. The files are made by
`runtime/build/cut.py`; nothing of that is needed here. It must never let NaN cross: a byte would make a number of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marram.runtime.bundle import Bundle
from marram.runtime.contract import Session, Tensor, TensorInfo
from marram.runtime.engines import PLUGINS
from marram.runtime.fit import Fit, plan
from marram.runtime.image import Image
from marram.runtime.model import Answerer, Prepared, prepared_for, preprocessor_for, the_input
from marram.runtime.session import dequantise, fits, format_shape, quantise
from marram.schema.errors import Invalid, MarramError, Permanent
from marram.schema.model import Cut


class Front:
    """The part before the cut. Made by `load`; belongs to one thread at a time, as its session does."""

    def __init__(self, bundle: Bundle, cut: Cut, session: Session) -> None:
        where = str(bundle.folder / cut.front)
        self.bundle, self.card, self.cut, self.session = bundle, bundle.card, cut, session
        self._preprocessor = preprocessor_for(bundle.card, session, where)
        if len(session.outputs) != 1:
            raise Invalid(f"has {len(session.outputs)} outputs; the front of a cut has one", where=where)
        _check_shape(cut, session.outputs[0], where)
        self._levels = levels(cut)

    @classmethod
    def load(cls, bundle: Bundle, name: str, *, threads: int = 1) -> Front:
        """The front of the cut called `name`. Raises Missing, Invalid (card or file), NotReady (no engine for it)."""
        cut = bundle.cut(name)
        session = PLUGINS[cut.engine].load(bundle.folder / cut.front, threads=threads)
        try:
            return cls(bundle, cut, session)
        except MarramError:
            session.close()
            raise

    def run(self, data: Image | Tensor, frame_size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """What crosses, uint8 of the cut's shape; `data` and `frame_size` as in `Model.prepare`.

        Raises Invalid (wrong input), Permanent (the engine failed, or said NaN).
        """
        prepared = prepared_for(self.card, self._preprocessor, data, frame_size)
        (real,) = self.session.run(prepared.tensors)
        if np.isnan(real).any():
            raise Permanent(f'the front of cut "{self.cut.name}" answered NaN', where=self.card.model)
        crossing: NDArray[np.uint8] = quantise(real, self._levels)[0]  # type: ignore[arg-type]
        return crossing

    def close(self) -> None:
        """Free the engine's memory."""
        self.session.close()


class Back(Answerer):
    """The part after the cut, which answers as the whole model does. Made by `load`."""

    def __init__(self, bundle: Bundle, cut: Cut, session: Session) -> None:
        where = str(bundle.folder / cut.back)
        self.cut = cut
        _check_shape(cut, the_input(session, where), where)
        self._levels = levels(cut)
        super().__init__(bundle, session, where)

    @classmethod
    def load(cls, bundle: Bundle, name: str, *, threads: int = 1, free: bool = False) -> Back:
        """The back of the cut called `name`; `free`: see `Engine.load`.

        Raises Missing, Invalid (card or file), NotReady (no engine for it).
        """
        cut = bundle.cut(name)
        session = PLUGINS[cut.engine].load(bundle.folder / cut.back, threads=threads, free=free)
        try:
            return cls(bundle, cut, session)
        except MarramError:
            session.close()
            raise

    def prepare(self, data: Image | Tensor, frame_size: tuple[int, int] | None = None) -> Prepared:
        """What crossed (uint8, of the cut's shape) made ready; boxes come in the pixels of `frame_size`.

        Raises Invalid where it is not of that shape.
        """
        crossing = np.asarray(data)
        if crossing.dtype != np.uint8 or crossing.shape != tuple(self.cut.shape):
            raise Invalid(
                f'cut "{self.cut.name}" takes uint8 {self.cut.shape}, got {crossing.dtype} {list(crossing.shape)}',
                where=self.card.model,
            )
        return Prepared([dequantise(crossing[None], self._levels)], self._fit(frame_size))

    def _fit(self, frame_size: tuple[int, int] | None) -> Fit | None:
        if self.card.input.kind != "image":
            return None
        height, width = frame_size or (self.card.input.size[0], self.card.input.size[1])
        return plan(self.card.input, height, width)


def levels(cut: Cut) -> TensorInfo:
    """How real numbers become the bytes that cross, as `session.quantise` and `dequantise` read it."""
    return TensorInfo(cut.tensor, (1, *cut.shape), "uint8", cut.scale, cut.zero_point)


def _check_shape(cut: Cut, info: TensorInfo, where: str) -> None:
    shape = (1, *cut.shape)
    if not fits(shape, info.shape):
        raise Invalid(f'cut "{cut.name}" has shape {cut.shape}, the file {format_shape(info.shape)}', where=where)
