"""What an app wants of placement that it cannot have: faults and notes, as `pipeline/check.py` finds them."""

from __future__ import annotations

from marram.pipeline.findings import Findings
from marram.schema.app import App, DetectStep, FunctionStep, InferStep, Step, asks_peers, running_steps
from marram.schema.errors import Invalid
from marram.schema.page import Place
from marram.schema.placing import Tariff

# What says how the cloud is asked, and says nothing where none is.
_OF_THE_CLOUD = ("encoding_loss", "split", "hedge", "costs", "budget")


def check_placing(app: App, found: Findings) -> None:
    """Regions of what was not detected, budgets of what costs nothing, options that say nothing here."""
    steps = running_steps(app)
    for number, (place, step) in enumerate(steps):
        if isinstance(step, InferStep):
            _check_region(app, place, step, [before for _, before in steps[:number]], found)
            _check_costs(place, step, found)
            _note_idle(app, place, step, found)
    _check_peers(app, found)


def _check_peers(app: App, found: Findings) -> None:
    """Other devices can be asked only about what may leave this one, and where the step has the choice."""
    if not app.peers:
        return
    with found.at(("peers",)):
        if app.raw == "never":
            raise Invalid(
                "`raw: never` lets nothing of the input leave the device, so no other one can answer",
                hint="Write `raw: allowed`, or `raw: redacted`; or leave `peers` away.",
            )
        if app.raw == "redacted" and app.gives_readings:
            raise Invalid(
                "`raw: redacted` lets only pictures leave the device, and the source gives readings",
                hint="Write `raw: allowed`, or leave `peers` away.",
            )
    nobody = not any(asks_peers(app, step) for step in app.inferences)
    if nobody:
        found.note(
            ("peers",),
            "no other device is ever asked: no step has the choice",
            "They answer for a step whose `place` is soonest, surest or cheapest and that has no `cascade`.",
        )
    for place, step in running_steps(app):
        if isinstance(step, InferStep) and step.cascade is not None and not nobody:
            found.note(
                (*place, "cascade"),
                "no other device answers this step: its own edge does first, then the cloud",
                "Leave `cascade` away where another device is to answer instead.",
            )


def _check_region(app: App, place: Place, step: InferStep, before: list[Step], found: Findings) -> None:
    if step.region is None:
        return
    with found.at((*place, "region")):
        # A function may make readings of pictures, and detections of anything.
        made = any(isinstance(each, FunctionStep) for each in before)
        if app.gives_readings and not made:
            raise Invalid("is a part of a picture, and the source gives readings", hint="Leave it away.")
        if step.region == "detections" and not made and not any(isinstance(each, DetectStep) for each in before):
            raise Invalid(
                "no step before this one detects anything",
                hint="Put a `detect` step before it, or name the part: [0.25, 0, 0.75, 1].",
            )


def _check_costs(place: Place, step: InferStep, found: Findings) -> None:
    """A budget counts what `costs` say an inference takes; of nothing, nothing is ever spent."""
    if step.budget.power is not None and not (step.costs.edge or step.costs.send):
        with found.at((*place, "budget")):
            raise Invalid(
                "power is not counted: neither computing nor sending draws any",
                hint="Say what they take, such as costs: {edge: 4 W, send: 1.2 W}.",
            )
    if step.budget.money is not None and not step.costs.cloud:
        with found.at((*place, "budget")):
            raise Invalid(
                "money is not counted: an answer of the cloud costs none",
                hint="Say what one costs, such as costs: {cloud: 0.0004}.",
            )


def _note_idle(app: App, place: Place, step: InferStep, found: Findings) -> None:
    if step.cloud is not None and step.place == "cheapest" and step.costs == Tariff():
        found.note(
            (*place, "place"),
            "nothing costs anything here, so the edge answers wherever it is in time",
            "Say what things take, such as costs: {edge: 4 W, send: 1.2 W, cloud: 0.0004}.",
        )
    if step.cloud is None and not asks_peers(app, step):
        for name in _OF_THE_CLOUD:
            if name in step.model_fields_set:
                found.note((*place, name), "says nothing here: the step has no `cloud:` model to choose between")
    elif "hedge" in step.model_fields_set and step.hedge and step.deadline is None:
        found.note((*place, "hedge"), "says nothing here: without a `deadline` no reply is late")
