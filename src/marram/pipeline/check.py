"""What can be known of an app before anything is opened or run: each fault at its field, and what is seldom meant.

`examine` is asked by `Pipeline.build` on the machine that runs the app, and `look_ahead`, which knows more, by
`marram app check` on any machine: whether a camera, a broker or a folder of the device is there, neither can say.
It must open no device and no connection, and never run a user's code.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from pathlib import Path

from marram.pipeline import plugins
from marram.pipeline.addresses import check_topic, parse_broker
from marram.pipeline.conditions import Condition
from marram.pipeline.findings import Findings, at
from marram.pipeline.functions import check_requirements
from marram.pipeline.loading import check_task
from marram.pipeline.placing import check_placing
from marram.pipeline.secrets import undeclared, with_secrets
from marram.pipeline.sinks.video import CODECS
from marram.pipeline.steps.redact import check_detector
from marram.runtime import library, machine
from marram.runtime.build import BUILDABLE
from marram.runtime.bundle import Bundle
from marram.schema import page
from marram.schema.app import (
    SOURCES,
    AlertStep,
    App,
    FilterStep,
    FunctionStep,
    ImagesSource,
    InferStep,
    KeepStep,
    ModelUse,
    MqttSink,
    MqttSource,
    PreviewSink,
    RedactStep,
    SeriesSource,
    Sink,
    VideoSink,
    VideoSource,
    may_send,
    model_uses,
    running_steps,
)
from marram.schema.errors import Invalid, MarramError, Missing, NotReady, Retryable
from marram.schema.page import Place
from marram.schema.words import did_you_mean

Resolve = Callable[[str, Path], Bundle]
# A bundle of which only the card is here, by its reference. Raises Missing where nobody has such a model, Retryable
# where it cannot be known now.
Elsewhere = Callable[[str], Bundle]

_WHY_NEVER = "`raw: never` lets nothing of the input leave the device"
_WHY_REDACTED = "`raw: redacted` lets only redacted pictures leave the device, and "


def rules(app: App) -> Findings:
    """What the app file alone tells: conditions, what each step wants of the others, `raw`. Raises nothing."""
    found = Findings()
    for place, step in running_steps(app):
        if isinstance(step, FilterStep | KeepStep | AlertStep):
            named = (*place, step.verb)
            with found.at(named):
                Condition(getattr(step, step.verb), where=page.field(named))
        with found.at((*place, step.verb) if place != ("raw",) else place):
            plugins.check_step(step, app)
    _check_cloud(app, found)
    check_placing(app, found)
    found.faults += undeclared(app)
    return found


def examine(app: App, base: Path, resolve: Resolve = library.resolve, elsewhere: Elsewhere | None = None) -> Findings:
    """`rules`, the models on the device, and what this machine cannot keep. `base` is the app file's folder."""
    found = rules(app)
    for use in model_uses(app):
        if not use.cloud:
            _check_model(app, base, use, resolve, elsewhere, found)
    if app.limits.power is not None:
        modes = machine.inspect().power_modes
        # Jetson's modes are the whole machine's, and set by its owner.
        why = f"set its power mode yourself ({', '.join(modes)})" if modes else "no power mode to set"
        found.note(("limits", "power"), f"not enforced on this machine: {why}")
    return found


def look_ahead(app: App, base: Path, elsewhere: Elsewhere | None = None) -> Findings:
    """`examine`, and what only whoever writes the app needs: its files, source, sinks, functions, cloud models.

    `elsewhere` is asked for the models that are not on this machine; None: there is nobody to ask.
    """
    found = examine(app, base, elsewhere=elsewhere)
    found.faults[:0] = missing_files(app, base)
    if any(place == ("raw",) for place, _ in running_steps(app)):
        found.note(
            ("raw",), "no step redacts, so `redact: faces` runs before all others: every step sees faces covered"
        )
    if not undeclared(app):
        # What stands in an address for a secret is looked at as if it were one: it may be a port.
        app = with_secrets(app, dict.fromkeys(app.secrets, "1"))
    _look_at_source(app, base, found)
    for use in model_uses(app):
        if use.cloud:
            _check_model(app, base, use, library.resolve, elsewhere, found)
    for index, step in enumerate(app.steps):
        if isinstance(step, FunctionStep):
            _look_at_function(base, ("steps", index, "function"), step, found)
    for index, sink in enumerate(app.sinks):
        _look_at_sink(("sinks", index), sink, found)
    return found


# ---------------------------------------------------------------- what may leave


def _check_cloud(app: App, found: Findings) -> None:
    """What `raw` forbids to leave the device can never be asked of the cloud."""
    redacted = False
    for place, step in running_steps(app):
        if isinstance(step, FunctionStep) and app.raw == "redacted" and not redacted:
            _note_function(app, (*place, "function"), step, found)
        redacted = redacted or isinstance(step, RedactStep | FunctionStep)
        if not isinstance(step, InferStep) or step.cloud is None:
            continue
        if app.raw == "allowed" or (app.raw == "redacted" and redacted and not app.gives_readings):
            continue
        if app.raw == "never":
            why = _WHY_NEVER
        else:
            why = _WHY_REDACTED + ("the source gives readings" if app.gives_readings else "no step before it redacts")
        if step.place == "cloud" or step.cascade is not None:
            with found.at((*place, "cloud")):
                raise Invalid(
                    f"the cloud may not answer: {why}",
                    hint="Write `raw: allowed`, or `raw: redacted` with `- redact: faces` before this step.",
                )
        else:
            found.note(
                (*place, "cloud"), f"is never asked: {why}", "To let the cloud answer too, write `raw: allowed`."
            )


def _note_function(app: App, place: Place, step: FunctionStep, found: Findings) -> None:
    after = app.steps[app.steps.index(step) + 1 :]
    if any(may_send(app, step) for step in after) and not any(isinstance(s, RedactStep) for s in app.steps):
        found.note(
            place,
            "is the only step that could redact: what it does not mark as `frame.redacted` never leaves the device",
            "Faces are covered by `- redact: faces`.",
        )


# ---------------------------------------------------------------- models


def _check_model(
    app: App, base: Path, use: ModelUse, resolve: Resolve, elsewhere: Elsewhere | None, found: Findings
) -> None:
    """The model is here, whole, or elsewhere; and it is for this task and this source."""
    try:
        with at(use.place):
            bundle = resolve(use.reference, base)
    except Missing as error:
        if _buildable(use.reference):
            found.unbuilt.append(error)
            return
        if is_path(use.reference) or (elsewhere is None and not use.cloud):
            found.faults.append(error)
            return
        here = f"{error.what.rstrip('.')} on this machine"
        if elsewhere is None:
            found.note(use.place, f"{here}; the cloud has to have it")
            return
        try:
            with at(use.place):
                bundle = elsewhere(use.reference)
        except Retryable as away:
            found.note(use.place, f"{here}, and whether the cloud has it is not known: {away.what}", away.hint)
            return
        except MarramError as fault:
            found.faults.append(fault)
            return
    except MarramError as error:
        found.faults.append(error)
        return
    with found.at(use.place):
        _check_fits(app, use, bundle)


def _check_fits(app: App, use: ModelUse, bundle: Bundle) -> None:
    step, card = use.step, bundle.card
    if isinstance(step, RedactStep):
        check_detector(step, card)
        return
    assert isinstance(step, InferStep)
    try:
        check_task(step, card, "")
    except Invalid as error:
        error.what = f"{card.model} {error.what}"
        raise
    if use.variant is not None and not use.cloud:
        with at((*use.place[:-1], "variant")):
            bundle.variant(use.variant)
    place = next(i for i, each in enumerate(app.steps) if each is step)
    if any(isinstance(before, FunctionStep) for before in app.steps[:place]):
        return  # a function in between may make readings of pictures
    if app.gives_readings != (card.input.kind == "tensor"):
        gives, takes = ("readings", "pictures") if app.gives_readings else ("pictures", "readings")
        raise Invalid(
            f"{card.model} takes {takes}, and the source gives {gives}",
            hint="Choose a model for this source: `marram model list` shows what each takes.",
        )


def is_path(reference: str) -> bool:
    """Whether it names a bundle's folder, not a model by its name."""
    return "/" in reference or reference.startswith(".")


def _buildable(reference: str) -> bool:
    """Whether `marram model build` makes it, and has not yet."""
    name, _, version = reference.partition("@")
    return name in BUILDABLE and version in ("", "1") and not library.versions(name)


# ---------------------------------------------------------------- only ahead of time


def missing_files(app: App, base: Path) -> list[MarramError]:
    """A fault for each file that travels with the app and is not beside it."""
    found: list[MarramError] = []
    for place, name in travelling_files(app):
        where = page.field(place)
        if (base / name).is_dir():
            found.append(Invalid(f'"{name}" is a folder', where=where, hint="Name its files."))
        elif not (base / name).is_file():
            there = (file.name for file in (base / name).parent.glob(f"*{Path(name).suffix}"))
            near = difflib.get_close_matches(Path(name).name, there, n=1)
            hint = f'Did you mean "{near[0]}"?' if near else None
            found.append(Missing(f'no file "{name}" beside the app', where=where, hint=hint))
    return found


def travelling_files(app: App) -> list[tuple[Place, str]]:
    """The files that travel with the app, relative to its folder, each with the field that names it."""
    functions: list[tuple[Place, str]] = [
        (("steps", index, "function"), step.file)
        for index, step in enumerate(app.steps)
        if isinstance(step, FunctionStep)
    ]
    return [*functions, *((("files", index), name) for index, name in enumerate(app.files))]


def note_source_left_behind(app: App, found: Findings) -> None:
    """Note a source that lies beside the app file and does not travel with it: on a device it is nowhere."""
    path, thing = _read_from(app)
    if path is None or path.startswith("~") or Path(path).is_absolute():
        return
    inside = f"{Path(path).as_posix()}/"
    if not any(f"{Path(name).as_posix()}/".startswith(inside) for name in app.files):
        travels = f"`files: [{path}]` sends it along" if thing == "file" else "`files:` sends what it names along"
        found.note(
            ("source", plugins.verb_of(app.source, SOURCES)),
            f'{thing} "{path}" stays here, and a device looks beside the app, too',
            f"{travels}; or name where it is on the device, from / or ~ on.",
        )


def _read_from(app: App) -> tuple[str | None, str]:
    """The file or folder that the source reads, and which of the two; None where it reads neither."""
    match app.source:
        case SeriesSource(series=path) | VideoSource(video=path) if "://" not in path:
            return path, "file"
        case ImagesSource(images=path):
            return path, "folder"
    return None, ""


def _look_at_source(app: App, base: Path, found: Findings) -> None:
    """What can be seen of the source from any machine; its pictures and rows may be on the device only."""
    source = app.source
    path, thing = _read_from(app)
    if path is None and not isinstance(source, MqttSource):
        return
    place = ("source", plugins.verb_of(source, SOURCES))
    if path is not None:
        here = base / Path(path).expanduser()
        if not (here.is_dir() if thing == "folder" else here.exists()):
            found.note(place, f'no {thing} "{path}" on this machine; it has to be where the app runs')
            return
    if isinstance(source, VideoSource):
        return  # to look into it would want OpenCV, and take long
    try:
        with at(place):
            plugins.open_source(source, base).close()
    except Missing as error:
        found.note(place, f"{error.what} (yet)")
    except MarramError as error:
        found.faults.append(error)


def _look_at_function(base: Path, place: Place, step: FunctionStep, found: Findings) -> None:
    """Its syntax and its name, without running it; what it requires may be on the device only."""
    path, name = base / step.file, step.function.rpartition(":")[2]
    try:
        with at(place):
            check_requirements(step.requires, page.field(place))
    except NotReady as error:
        found.note(place, f"{error.what} (the device needs it)", error.hint)
    except Invalid as error:
        found.faults.append(error)
    if step.mqtt is not None:
        with found.at(place):
            parse_broker(step.mqtt, f"{page.field(place[:-1])}.mqtt")
    if not path.is_file():
        return
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError, OSError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else error
        found.faults.append(Invalid(f"{step.file}{line}  {type(error).__name__}: {what}", where=page.field(place)))
        return
    names = _names(tree)
    if names is not None and name not in names:
        found.note(place, f'no "{name}" is seen in {step.file}{did_you_mean(name, names)}')


def _names(tree: ast.Module) -> set[str] | None:
    """The names that a file binds; None where it imports some that cannot be seen."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return None if "*" in names else names


def _look_at_sink(place: Place, sink: Sink, found: Findings) -> None:
    if isinstance(sink, MqttSink):
        with found.at((*place, "mqtt")):
            check_topic(sink.mqtt, "")
        with found.at((*place, "broker")):
            parse_broker(sink.broker, "")
    elif isinstance(sink, VideoSink) and Path(sink.video).suffix.lower() not in CODECS:
        with found.at((*place, "video")):
            raise Invalid(f'"{Path(sink.video).suffix}" is no video file', hint=f"Use one of {', '.join(CODECS)}.")
    elif isinstance(sink, PreviewSink) and isinstance(sink.preview, int) and not 0 < sink.preview < 65_536:
        with found.at((*place, "preview")):
            raise Invalid(f"{sink.preview} is no port", hint="Write 1 to 65535, or `preview: auto`.")
