"""What a step that asks a model works with: the edge's model, the cloud's card, the fronts of its cuts, all checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from marram.pipeline.contract import StepContext
from marram.pipeline.edge_pool import Seat
from marram.pipeline.inputs import check_same_input
from marram.runtime.bundle import Bundle
from marram.runtime.codecs import cuts_for
from marram.runtime.cut import Front
from marram.runtime.example import example
from marram.runtime.model import Model
from marram.schema.app import InferStep
from marram.schema.errors import Invalid, MarramError
from marram.schema.model import ModelCard

log = logging.getLogger(__name__)


def load_seats(spec: InferStep, context: StepContext, cloud: ModelCard | None, fronts: Bundle | None) -> list[Seat]:
    """One seat for each of `parallel`; `fronts`: where the fronts of the cloud's model lie, if anywhere.

    Raises Missing, NotReady (no such model, no engine for it), Invalid (wrong model file, or a model for another task).
    A front that does not load is told, and is no way.
    """
    where = f"{spec.verb}: {spec.model}"
    bundle = context.resolve(spec.model)
    check_task(spec, bundle.card, where)
    if cloud is not None:
        check_same_input(bundle.card, cloud)
    seats: list[Seat] = []
    try:
        for _ in range(spec.parallel):
            seats.append(Seat(Model.load(bundle, variant=spec.variant)))
            _warm(seats[-1].model)
        if cloud is not None and fronts is not None and spec.split:
            seats = _with_fronts(seats, cloud, fronts)
    except MarramError:
        for seat in seats:
            seat.close()
        raise
    return seats


def _warm(model: Model) -> None:
    """Run it once: an engine's first run takes longer, and placement would take that for what the edge takes."""
    try:
        model.run(model.prepare(example(model.card)))
    except MarramError as error:
        log.debug("%s cannot be warmed up: %s", model.bundle.reference, error)


def check_task(spec: InferStep, card: ModelCard, where: str) -> None:
    """Raises Invalid where the model answers another question than the step asks."""
    if card.task is not spec.task:
        verb = {"classification": "classify", "detection": "detect", "regression": "estimate", "anomaly": "score"}
        raise Invalid(f"is a model for {card.task}", where=where, hint=f"Use the step `{verb[card.task]}`.")


def cloud_model(spec: InferStep, cards: Mapping[str, ModelCard]) -> ModelCard | None:
    """The card of the cloud model that `spec` names; None where it names none, or the cloud does not serve it (yet).

    With the accuracy that its codecs and cuts may cost here, where the app says so.
    """
    if spec.cloud is None or spec.cloud not in cards:
        return None
    card = cards[spec.cloud]
    check_task(spec, card, f"cloud: {spec.cloud}")
    return within(spec, card)


def within(spec: InferStep, card: ModelCard) -> ModelCard:
    """The card with the accuracy that sending its inputs may cost, where the step says so."""
    return card if spec.encoding_loss is None else card.model_copy(update={"accuracy_budget": spec.encoding_loss})


def _with_fronts(seats: list[Seat], cloud: ModelCard, bundle: Bundle) -> list[Seat]:
    """The same seats, each with the fronts of all cuts that are allowed, are here and load."""
    names = [cut.name for cut in cuts_for(cloud) if any(cut == here for here in bundle.card.cuts)]
    loaded: list[dict[str, Front]] = [{} for _ in seats]
    for name in names:
        try:
            for fronts in loaded:
                fronts[name] = Front.load(bundle, name)
        except MarramError as error:
            log.warning("%s is not parted at %s: %s", cloud.reference, name, error)
            for fronts in loaded:
                if (front := fronts.pop(name, None)) is not None:
                    front.close()
    return [Seat(seat.model, fronts) for seat, fronts in zip(seats, loaded, strict=True)]
