"""An app: one page of YAML, source → steps → sinks. `parse_app` turns its text into an `App` or says what to mend.

The YAML text itself is the canonical form: it is what travels to devices and what is kept; every side parses it anew.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from marram.schema.errors import Invalid
from marram.schema.health import Health
from marram.schema.ids import SECRET, Name
from marram.schema.model import RelativePath, Strict, Task
from marram.schema.page import Page, Place
from marram.schema.placing import (
    HEDGE,
    Allowance,
    CascadeField,
    Deadline,
    HedgeShare,
    ObjectiveField,
    Region,
    Tariff,
    spelt_out,
)
from marram.schema.placing import Cascade as Cascade
from marram.schema.placing import Objective as Objective
from marram.schema.serve import Serve as Serve
from marram.schema.serve import ServeField
from marram.schema.units import Budget, Duration, Power, Share, Size
from marram.schema.words import did_you_mean, field_fault

# ---------------------------------------------------------------- sources


class CameraSource(Strict):
    """A camera by index; live: keeps the newest frame."""

    camera: int = Field(ge=0)
    every: Duration | None = None


class VideoSource(Strict):
    """A video file (loses no frame) or a stream `rtsp://…`, `http://…` (live: keeps the newest frame)."""

    video: str
    every: Duration | None = None
    repeat: bool = False


class ImagesSource(Strict):
    """Every picture of a folder, in name order. `every` paces them, `repeat` starts over at the end."""

    images: str
    every: Duration | None = None
    repeat: bool = False


class SeriesSource(Strict):
    """Rows of a CSV or JSONL file; with `window`, those of the last so long (or so many rows), `every` so often."""

    series: str
    columns: list[str] | None = None
    time: str | None = None
    window: Duration | int | None = None
    every: Duration | int | None = None
    repeat: bool = False


class MqttSource(Strict):
    """Messages of an MQTT topic: JSON, number or text payloads; `window` gathers as in a series."""

    mqtt: str
    broker: str = "localhost:1883"
    window: Duration | None = None
    every: Duration | None = None


Source = CameraSource | VideoSource | ImagesSource | SeriesSource | MqttSource
SOURCES: dict[str, type[Strict]] = {
    "camera": CameraSource,
    "video": VideoSource,
    "images": ImagesSource,
    "series": SeriesSource,
    "mqtt": MqttSource,
}

# ---------------------------------------------------------------- steps


class Step(Strict):
    """One verb with its main argument; what follows are options."""

    verb: ClassVar[str]


class InferStep(Step):
    """What every step that asks a model has in common."""

    task: ClassVar[Task]
    # A model that may answer instead, in the cloud: sooner, or surer.
    cloud: str | None = None
    # `surest within 200 ms` says the deadline too.
    place: ObjectiveField = "soonest"
    deadline: Deadline | None = None
    # What of the picture the model sees, at the edge and in the cloud: a box of it, or the surest earlier detection's.
    # Boxes in results stay in pixels of the frame.
    region: Region | None = None
    # How much accuracy the encoding of what is sent may cost, as the card's measurements say; None: the card's own.
    encoding_loss: Share | None = None
    # Whether the model's front may run here and its back in the cloud, where its card has a cut that can win.
    split: bool = True
    # The share of the cloud's requests that the edge starts on too, where the reply threatens to be late.
    hedge: HedgeShare = HEDGE
    cascade: CascadeField = None
    costs: Tariff = Tariff()
    budget: Allowance = Allowance()
    # Share of the time spent answering everything at the edge, then everything in the cloud, so that what
    # placement saves is measured instead of supposed.
    audit: Share = 0.0
    # How many inferences may run side by side at the edge, one engine instance each.
    parallel: int = Field(default=1, ge=1, le=16)
    variant: str | None = None

    @property
    def model(self) -> str:
        return str(getattr(self, self.verb))

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        return spelt_out(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _cloud_named(self) -> InferStep:
        if self.cloud is None:
            for wants, word in ((self.place == "cloud", "place: cloud"), (self.cascade is not None, "cascade")):
                if wants:
                    raise ValueError(f'{word} needs a cloud model; add for example "cloud: efficientnet-lite2"')
        if self.cascade is not None and self.place in ("edge", "cloud"):
            raise ValueError(f"cascade asks the cloud where the edge is unsure, and place: {self.place} never may")
        return self


class ClassifyStep(InferStep):
    """Name what a picture (or a window of readings) shows."""

    verb: ClassVar[str] = "classify"
    task: ClassVar[Task] = Task.CLASSIFICATION
    classify: str
    top: int = Field(default=5, ge=1)


class DetectStep(InferStep):
    """Find objects and where they are."""

    verb: ClassVar[str] = "detect"
    task: ClassVar[Task] = Task.DETECTION
    detect: str
    min_confidence: float | None = Field(default=None, ge=0, le=1)


class EstimateStep(InferStep):
    """Estimate a quantity (regression)."""

    verb: ClassVar[str] = "estimate"
    task: ClassVar[Task] = Task.REGRESSION
    estimate: str


class ScoreStep(InferStep):
    """Score how unusual the input is (anomaly)."""

    verb: ClassVar[str] = "score"
    task: ClassVar[Task] = Task.ANOMALY
    score: str


class FunctionStep(Step):
    """Call a Python function, `handler.py:name`, with (event, context), as in Greengrass, or with (frame, result)."""

    verb: ClassVar[str] = "function"
    function: str = Field(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")
    requires: list[str] = []
    # Where topics published through greengrasssdk also go: a local MQTT broker.
    mqtt: str | None = None

    @property
    def file(self) -> str:
        return self.function.rpartition(":")[0]

    @field_validator("function")
    @classmethod
    def _inside(cls, value: str) -> str:
        from_file = value.rpartition(":")[0]
        if from_file.startswith("/") or ".." in from_file.split("/"):
            raise ValueError(f'"{from_file}" must lie beside the app file: a relative path without ".."')
        return value


class FilterStep(Step):
    """Let a frame pass only where the CEL condition holds."""

    verb: ClassVar[str] = "filter"
    filter: str


class KeepStep(Step):
    """Keep the input as a sample for the cloud where the CEL condition holds, within a budget."""

    verb: ClassVar[str] = "keep"
    keep: str
    budget: Budget | None = None


class AlertStep(Step):
    """Raise an alert where the CEL condition holds; `… for 10 s` where it has to hold that long."""

    verb: ClassVar[str] = "alert"
    alert: str


class AnnotateStep(Step):
    """Draw the result onto the picture (for video and preview sinks)."""

    verb: ClassVar[str] = "annotate"
    annotate: bool = True


class RedactStep(Step):
    """Blur faces (or what another detector finds) in the picture before anything after this step sees it.

    `raw: redacted` puts `redact: faces` before all other steps where the app has none; see `running_steps`.
    """

    verb: ClassVar[str] = "redact"
    redact: Literal["faces", "detections"] = "faces"
    model: str = "blazeface"


STEPS: dict[str, type[Step]] = {
    cls.verb: cls
    for cls in (
        ClassifyStep, DetectStep, EstimateStep, ScoreStep, FunctionStep, FilterStep, KeepStep, AlertStep, AnnotateStep,
        RedactStep,
    )
}  # fmt: skip

# ---------------------------------------------------------------- sinks


class JsonlSink(Strict):
    """Every result as one JSON line, appended to a file."""

    jsonl: str


class MqttSink(Strict):
    """Every result as JSON to an MQTT topic."""

    mqtt: str
    broker: str = "localhost:1883"


class VideoSink(Strict):
    """The (annotated) pictures as a video file."""

    video: str
    fps: float = Field(default=25, gt=0)


class PreviewSink(Strict):
    """A live view: a page in this machine's browser (on that port), or a window (`window`). `auto`: a window where this
    machine can show one, else a page.
    """

    preview: int | Literal["auto", "window"] = "auto"


SINKS: dict[str, type[Strict]] = {"jsonl": JsonlSink, "mqtt": MqttSink, "video": VideoSink, "preview": PreviewSink}
Sink = JsonlSink | MqttSink | VideoSink | PreviewSink

# ---------------------------------------------------------------- the app


class Limits(Strict):
    """What the worker may use."""

    memory: Size | None = None
    power: Power | None = None


def _verb_of(table: Mapping[str, type[Strict]]) -> Callable[[Any], str | None]:
    def verb(value: Any) -> str | None:
        # `mqtt` is a source, a sink and an option of `function`: the first known key is the verb.
        return next((key for key in value if key in table), None) if isinstance(value, dict) else None

    return verb


def _one_of(table: Mapping[str, type[Strict]]) -> Any:
    """The union of a table's models, told apart by which verb the mapping has."""
    tagged = tuple(Annotated[model, Tag(verb)] for verb, model in table.items())
    return Annotated[Union[tagged], Discriminator(_verb_of(table))]  # noqa: UP007


if TYPE_CHECKING:
    AnySource = Source
    AnyStep = Step
    AnySink = Sink
else:
    AnySource, AnyStep, AnySink = _one_of(SOURCES), _one_of(STEPS), _one_of(SINKS)


class App(Strict):
    """One pipeline description."""

    app: Name
    source: AnySource
    steps: list[AnyStep] = Field(min_length=1)
    sinks: list[AnySink] = []
    # What becomes events for the cloud: every result, only results whose label (or detected labels) changed, alerts.
    send: Literal["results", "changes", "alerts", "nothing"] = "results"
    # What may leave the device of the input itself: nothing, pictures after `redact` (see `running_steps`), everything.
    raw: Literal["never", "redacted", "allowed"] = "never"
    limits: Limits = Limits()
    health: Health = Health()
    # Secrets (`marram secret set`) that it is given: `${NAME}` in addresses, environment variables in functions.
    secrets: list[Annotated[str, Field(pattern=SECRET)]] = Field(default=[], max_length=64)
    # Whether devices that run it answer each other's inferences, with the model of the edge.
    peers: bool = False
    # Where its models answer others on this device (Open Inference Protocol); None: nowhere.
    serve: ServeField = None
    # Further files that travel with the app (a model a function loads, a table), relative to the app file.
    files: list[RelativePath] = []

    @property
    def functions(self) -> list[FunctionStep]:
        return [s for s in self.steps if isinstance(s, FunctionStep)]

    @property
    def inferences(self) -> list[InferStep]:
        return [s for s in self.steps if isinstance(s, InferStep)]

    @property
    def gives_readings(self) -> bool:
        """Whether the source gives readings; otherwise it gives pictures."""
        return isinstance(self.source, SeriesSource | MqttSource)


# ---------------------------------------------------------------- what follows from it


def running_steps(app: App) -> list[tuple[Place, Step]]:
    """The steps as they run, each with the field of the page it comes from.

    They are those of the page, but where `raw: redacted` would let nothing leave because no step redacts: then
    `redact: faces` runs before all others, and its field is `raw`. A function counts as a step that redacts (in its own
    way), and a `redact` step anywhere stands where its author wants it.
    """
    written: list[tuple[Place, Step]] = [(("steps", index), step) for index, step in enumerate(app.steps)]
    if app.raw != "redacted" or app.gives_readings or any(isinstance(step, RedactStep) for step in app.steps):
        return written
    leaves = next((i for i, step in enumerate(app.steps) if may_send(app, step)), None)
    if leaves is None or any(isinstance(step, FunctionStep) for step in app.steps[:leaves]):
        return written
    return [(("raw",), RedactStep()), *written]


def may_send(app: App, step: Step) -> bool:
    """Whether the step sends its input off the device, where `raw` allows it."""
    if isinstance(step, InferStep):
        return step.cloud is not None or asks_peers(app, step)
    return isinstance(step, KeepStep)


def asks_peers(app: App, step: InferStep) -> bool:
    """Whether other devices may answer the step: they have the edge's model, so where that has the choice."""
    return app.peers and step.cascade is None and step.place not in ("edge", "cloud")


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model as the app names it. `place`: its field, as in `Page.where`. `cloud`: it runs there, not here."""

    place: Place
    reference: str
    step: Step
    cloud: bool = False

    @property
    def variant(self) -> str | None:
        return self.step.variant if isinstance(self.step, InferStep) else None


def model_uses(app: App) -> list[ModelUse]:
    """Every model the app needs, in the order of its steps: on the device, and in the cloud."""
    uses: list[ModelUse] = []
    for place, step in running_steps(app):
        if isinstance(step, InferStep):
            uses.append(ModelUse((*place, step.verb), step.model, step))
            if step.cloud is not None:
                uses.append(ModelUse((*place, "cloud"), step.cloud, step, cloud=True))
        elif isinstance(step, RedactStep) and step.redact == "faces":
            # A step that is not written has one field, `raw`; one that names no model has its verb.
            part = () if place == ("raw",) else ("model",) if "model" in step.model_fields_set else (step.verb,)
            uses.append(ModelUse((*place, *part), step.model, step))
    return uses


# ---------------------------------------------------------------- text -> App


def app_json_schema() -> dict[str, Any]:
    """JSON Schema of an app file, for editors."""
    return App.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Marram app"}


def parse_app(text: str, name: str = "app.yaml") -> App:
    """The app that `text` (YAML) describes. `name` is the file's name, for messages.

    Raises Invalid with every fault found, one a line: `name:line  field: fault`.
    """
    return app_on(Page.read(text, name))


def app_on(page: Page) -> App:
    """The app that `page` describes; who keeps the page can name the line of later faults too. Raises Invalid."""
    document = page.document
    if not isinstance(document, dict):
        raise Invalid(
            "an app is a mapping with app, source and steps", where=page.name, hint="See `marram app schema`."
        )
    try:
        return App.model_validate(document)
    except ValidationError as error:
        raise Invalid("\n".join(_fault(page, e) for e in error.errors())) from error


def _fault(page: Page, error: Any) -> str:
    """One pydantic error as `file:line  field: fault`."""
    location = _document_location(error["loc"])
    message = _message(error, location)
    # What is wrong with several fields together is found at what holds them, and names the one to mend first.
    field, colon, rest = message.partition(": ")
    if colon and page.span([*location, field]) is not None:
        location, message = [*location, field], rest
    return f"{page.where(location)}: {message}"


def _document_location(loc: tuple[str | int, ...]) -> list[str | int]:
    """Pydantic's location without the union tags: (steps, 0, classify, top) is steps[0].top in the document."""
    parts = list(loc)
    tag_at = {"source": 1, "steps": 2, "sinks": 2}.get(str(parts[0])) if parts else None
    if tag_at is not None and len(parts) > tag_at:
        del parts[tag_at]
    return parts


_TABLES: dict[str, tuple[str, dict[str, type[Any]]]] = {
    "source": ("source", SOURCES),
    "steps": ("step", STEPS),
    "sinks": ("sink", SINKS),
}
# Mappings inside the page, by the field they stand under.
_PARTS: dict[str, type[Strict]] = {
    "limits": Limits,
    "health": Health,
    "cascade": Cascade,
    "costs": Tariff,
    "budget": Allowance,
    "serve": Serve,
}


def _message(error: Any, location: list[str | int]) -> str:
    """Pydantic's fault in our words, with the next step."""
    kind, given = error["type"], error.get("input")
    if kind == "union_tag_not_found":
        what, table = _TABLES[str(location[0])]
        if not isinstance(given, dict):
            return f'a {what} is a mapping, such as "{next(iter(table))}: …"'
        key = str(next(iter(given), ""))
        return f'no {what} "{key}"{_one_of_these(key, list(table))}'
    if kind == "extra_forbidden":
        model: type[Any] = App
        if location[0] in _TABLES and len(location) > 1:
            table = _TABLES[str(location[0])][1]
            model = table.get(str(error["loc"][1 if location[0] == "source" else 2]), App)
        model = _PARTS.get(str(location[-2]), model) if len(location) > 1 else model
        return f"no such option{_one_of_these(str(location[-1]), list(model.model_fields))}"
    if kind == "model_type" and location[-1] in _PARTS:
        return f"is a mapping of {', '.join(_PARTS[str(location[-1])].model_fields)}, got {reprlib.repr(given)}"
    if kind == "missing" and len(location) == 1:
        return "is missing; an app has app, source and steps"
    return field_fault(error)


def _one_of_these(word: str, known: list[str]) -> str:
    return did_you_mean(word, known) or f"; use one of {', '.join(known)}"
