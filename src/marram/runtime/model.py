"""A model ready to answer: card + session. One call (`predict`), or its three parts where a caller times each.

    prepared = model.prepare(image)             # fit, colour, normalise, quantise
    outputs = model.run(prepared)               # the engine
    result = model.interpret(outputs, prepared) # boxes in pixels of the frame, labels by name

A model belongs to one thread at a time, as its session does. It must never answer with numbers that are none (NaN).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marram.runtime import image as pictures
from marram.runtime.bundle import Bundle
from marram.runtime.contract import Session, Tensor, TensorInfo
from marram.runtime.engines import PLUGINS
from marram.runtime.fit import Fit, plan
from marram.runtime.image import Image
from marram.runtime.postprocess import FORMS, OUTPUTS
from marram.runtime.postprocess.contract import Asked, Options
from marram.runtime.preprocess import Preprocessor
from marram.runtime.session import format_shape
from marram.schema.errors import Invalid, Missing, NotReady, Permanent
from marram.schema.model import ModelCard, Output, Variant
from marram.schema.result import Result

__all__ = ["Answerer", "Model", "Options", "Prepared", "fit_for"]

DEFAULT = Options()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What goes into the engine, and how it lies in the frame (None for readings)."""

    tensors: list[Tensor]
    fit: Fit | None


class Answerer(ABC):
    """What gives the card's answers: a whole model, or the back of one that is cut (`runtime/cut.py`)."""

    def __init__(self, bundle: Bundle, session: Session, where: str) -> None:
        self.bundle = bundle
        self.card = bundle.card
        self.session = session
        self._taken = _taken(self.card.output, session, where)
        check_labels(bundle, [session.outputs[i].shape for i in self._taken], where)
        self._form = FORMS[self.card.output.form]

    @abstractmethod
    def prepare(self, data: Image | Tensor, frame_size: tuple[int, int] | None = None) -> Prepared:
        """Make what came ready for the engine; `frame_size` (height, width): of the frame it was made from."""

    def run(self, prepared: Prepared) -> list[Tensor]:
        """The engine's outputs that the card's form takes, float32. Raises Invalid, Permanent."""
        return self.taken(self.session.run(prepared.tensors))

    def taken(self, outputs: list[Tensor]) -> list[Tensor]:
        """Of all that the session gave, what the card's form takes, in its order."""
        return [outputs[i] for i in self._taken]

    def interpret(self, outputs: list[Tensor], prepared: Prepared, options: Options = DEFAULT) -> Result:
        """What `outputs` say. Raises Invalid where they do not fit the card, Permanent where they are not numbers."""
        if any(np.isnan(output).any() for output in outputs):
            raise Permanent(
                "the model answered NaN",
                where=self.card.model,
                hint="Its input holds NaN or infinity, or the file is damaged.",
            )
        asked = Asked(self.card, self.bundle.labels, prepared.tensors, self.session.inputs, prepared.fit, options)
        return self._form(outputs, asked)

    def predict(
        self, data: Image | Tensor, frame_size: tuple[int, int] | None = None, options: Options = DEFAULT
    ) -> Result:
        """`prepare`, `run`, `interpret`. Raises Invalid (wrong input), Permanent (the engine failed, or said NaN)."""
        prepared = self.prepare(data, frame_size)
        return self.interpret(self.run(prepared), prepared, options)

    def close(self) -> None:
        """Free the engine's memory."""
        self.session.close()


class Model(Answerer):
    """See the module's words. Made by `load`."""

    def __init__(self, bundle: Bundle, variant: Variant, session: Session) -> None:
        where = str(bundle.file(variant))
        self.variant = variant
        self._preprocessor = preprocessor_for(bundle.card, session, where)
        super().__init__(bundle, session, where)

    @classmethod
    def load(cls, bundle: Bundle | Path, *, variant: str | None = None, threads: int = 1, free: bool = False) -> Model:
        """Load the variant called `variant`, or the card's first that this machine can run; `free`: see `Engine.load`.

        Raises Missing (no such folder, file, variant), Invalid (card or file malformed), NotReady (no engine for it).
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        wanted = [opened.variant(variant)] if variant is not None else opened.card.variants
        if not wanted:
            raise Missing("only the fronts of its cuts are here, no variant", where=opened.reference)
        unready: NotReady | None = None
        for candidate in wanted:
            try:
                session = PLUGINS[candidate.engine].load(opened.file(candidate), threads=threads, free=free)
            except NotReady as error:
                unready = error
                continue
            try:
                return cls(opened, candidate, session)
            except Invalid:
                session.close()
                raise
        assert unready is not None
        raise NotReady(
            f"no engine here runs {', '.join(v.name for v in wanted)} ({unready.what})",
            where=opened.reference,
            hint=unready.hint or "`marram runtime` shows what this machine has.",
        ) from unready

    def prepare(self, data: Image | Tensor, frame_size: tuple[int, int] | None = None) -> Prepared:
        """A picture (uint8 [H, W, 3], RGB), or readings for a model of `kind: tensor`, made ready for the engine.

        With `frame_size` (height, width) the picture is taken as fitted already, by `fit_for`, from a frame of that
        size. Raises Invalid where `data` is not what the model takes.
        """
        return prepared_for(self.card, self._preprocessor, data, frame_size)


def preprocessor_for(card: ModelCard, session: Session, where: str) -> Preprocessor:
    """What fills the input of `session`, a file that takes the card's input. Raises Invalid where it does not."""
    preprocessor = Preprocessor(card.input, the_input(session, where), where)
    preprocessor.check()
    return preprocessor


def the_input(session: Session, where: str) -> TensorInfo:
    """The one input. Raises Invalid where there are others."""
    if len(session.inputs) != 1:
        raise Invalid(f"has {len(session.inputs)} inputs; Marram feeds models that have one", where=where)
    return session.inputs[0]


def prepared_for(
    card: ModelCard, preprocessor: Preprocessor, data: Image | Tensor, frame_size: tuple[int, int] | None
) -> Prepared:
    """What `Model.prepare` does, for whatever file takes the card's input. Raises Invalid."""
    if card.input.kind == "tensor":
        return Prepared([preprocessor.tensor(np.asarray(data))], None)
    picture = pictures.check(data, card.model)
    height, width = picture.shape[:2] if frame_size is None else frame_size
    fit = plan(card.input, height, width)
    if frame_size is None:
        picture = pictures.apply(fit, picture)
    elif picture.shape[:2] != fit.size:
        got, takes = f"{picture.shape[1]}×{picture.shape[0]}", f"{fit.size[1]}×{fit.size[0]}"
        raise Invalid(f"a fitted picture is {takes} here, got {got}", where=card.model)
    return Prepared([preprocessor.image(picture)], fit)


def _taken(output: Output, session: Session, where: str) -> list[int]:
    """Which of the file's outputs the form takes, in its order. Raises Missing; Invalid for another number."""
    names = [info.name for info in session.outputs]
    has = ", ".join(f"{info.name} {format_shape(info.shape)}" for info in session.outputs)
    for name in output.tensors:
        if name not in names:
            raise Missing(f'the file has no output "{name}"; it has {has}', where=f"{where}  output.tensors")
    wanted = OUTPUTS.get(output.form, 1)
    if len(output.tensors or names) != wanted:
        count = f"{wanted} output{'s' if wanted != 1 else ''}"
        raise Invalid(
            f'"{output.form}" takes {count}, '
            + (
                f"output.tensors names {len(output.tensors)}" if output.tensors else f"the file has {len(names)}: {has}"
            ),
            where=f"{where}  output.form",
            hint="Choose the form that fits in model.yaml"
            + (f", or name what it takes: `output.tensors: [{names[-1]}]`." if len(names) > wanted else "."),
        )
    return [names.index(name) for name in output.tensors] or list(range(len(names)))


def check_labels(bundle: Bundle, shapes: list[tuple[int, ...]], where: str) -> None:
    """Raises Invalid where a classifier's labels are not as many as its classes: every name could be another's.

    `shapes`: of the outputs that the form takes, as the file declares them (-1 where free) or as they came.
    """
    output = bundle.card.output
    if output.form not in ("logits", "softmax") or not bundle.labels or len(shapes) != 1:
        return
    classes, named = shapes[0][-1:], len(bundle.labels) - output.label_offset
    if classes and classes[0] > 0 and classes[0] != named:
        at = f" from line {output.label_offset} on" if output.label_offset else ""
        one_more = named == classes[0] + 1 and not output.label_offset
        raise Invalid(
            f"has {classes[0]} classes, its labels name {named}{at}",
            where=where,
            hint="If the first label is a background that it does not answer, set output.label_offset: 1 in model.yaml."
            if one_more
            else "Mend labels in model.yaml.",
        )


def fit_for(card: ModelCard, image: Image) -> Image:
    """The frame as a cloud model of `card` wants to be sent it: uint8 [H, W, 3], RGB, of the model's size.

    Encode it with `image.encode_jpeg`; the replica decodes and calls `predict(picture, frame_size=frame.shape[:2])`.
    Raises Invalid for a model that takes no picture.
    """
    if card.input.kind != "image":
        raise Invalid("takes readings, not a picture", where=card.model)
    picture = pictures.check(image)
    return pictures.apply(plan(card.input, picture.shape[0], picture.shape[1]), picture)
