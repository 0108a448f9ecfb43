"""`marram run app.yaml`: the app right here, with no cloud and no set-up; later the same file is deployed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from marram.cli._appfile import AppFile, build_detector
from marram.cli._options import parsed
from marram.cli._show import plain
from marram.edge.served import Served, check_installed, own_models
from marram.pipeline.build import Around, Pipeline
from marram.pipeline.contract import Frame
from marram.pipeline.events import data_of
from marram.pipeline.secrets import with_secrets
from marram.runtime import library
from marram.schema.app import App, CameraSource, ImagesSource, VideoSource
from marram.schema.errors import Invalid, MarramError, Missing, Permanent
from marram.schema.event import Event, EventKind
from marram.schema.model import Task
from marram.schema.result import Result
from marram.schema.units import format_duration, parse_duration

app = typer.Typer(add_completion=False, help="Run an app right here, with no cloud and no set-up.")


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The app file (YAML).", metavar="FILE", show_default=False)],
    camera: Annotated[
        int | None, typer.Option(help="Read this camera instead of the app's source.", metavar="INDEX")
    ] = None,
    video: Annotated[
        str | None, typer.Option(help="Read this video file or stream (rtsp://…) instead.", metavar="FILE|URL")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Read the pictures of this folder instead.", metavar="FOLDER")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many results.", metavar="N")] = None,
    duration: Annotated[str | None, typer.Option(help="End after so long: 10 s, 5 min.", metavar="TIME")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print JSON, one line a result or event.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no results, only the summary.")] = False,
) -> None:
    """Run an app right here, with no cloud and no set-up.

    Results go to stdout, one a line, and a summary to stderr. Ctrl-C ends it.

    The exit status is 2 where it cannot start, or where errors were all it gave.
    """
    seconds = parsed(parse_duration, duration, "--duration") if duration is not None else None
    read = AppFile.read(file)
    found, option = _with_source(read.app, camera, video, images)
    lines = Lines(json_lines=json_lines, quiet=quiet, limit=limit)
    try:
        build_detector(found)
        around = Around(outlet=lines, sinks=(lines,), on_open=_tell)
        pipeline = Pipeline.build(_with_secrets(found), read.folder, around)
        lines.stop = pipeline.stop
        started_s = time.monotonic()
        with _served(found, read.folder):
            stopped_by = _run(pipeline, seconds)
        took_s = time.monotonic() - started_s
    except MarramError as error:
        if option is not None and (error.where or "").startswith("source"):
            error.where = option
        read.page.locate(error)
        raise
    stats = pipeline.stats()
    if lines.broken:
        raise BrokenPipeError
    if stats["errors"] and not stats["frames"] and not stats["dropped"] and stopped_by is None:
        raise Permanent(
            f"nothing was answered ({_count(stats['errors'], 'error')}). The last: {stats['last_error']}",
            where=str(file),
        )
    print(summary(stats, took_s), file=sys.stderr)
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _served(found: App, folder: Path) -> Iterator[None]:
    """The app's models answer other programs meanwhile, where it says so."""
    if found.serve is None:
        yield
        return
    check_installed()
    served = Served(found.serve, own_models(found, lambda reference: library.resolve(reference, folder)))
    try:
        yield
    finally:
        served.close()


def _run(pipeline: Pipeline, seconds: float | None) -> int | None:
    """Run to the end; the signal where one ended it. A second Ctrl-C does not wait for frames in work."""
    stopped_by: int | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_by
        if stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        stopped_by = number
        pipeline.stop()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(seconds, pipeline.stop) if seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        pipeline.run()
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped_by


class Lines:
    """Prints each result, alert and message as a line; a sink and an outlet at once. Ends the run at `limit`."""

    def __init__(self, *, json_lines: bool, quiet: bool, limit: int | None) -> None:
        self._json, self._quiet, self._limit = json_lines, quiet, limit
        self._printed = 0
        self._lock = threading.Lock()
        self.stop: Callable[[], None] = lambda: None
        self.broken = False

    def write(self, frame: Frame) -> None:
        """See `contract.Sink`."""
        if self._limit is not None and self._printed >= self._limit:
            return
        self._printed += 1
        data = data_of(frame)
        self._print({"kind": "result"} | data, lambda: words(frame))
        if self._printed == self._limit:
            self.stop()

    def emit(self, event: Event) -> None:
        """See `contract.Outlet`. Results are printed as they come, not as `send` would choose them."""
        if event.kind is not EventKind.RESULT:
            data = {"kind": event.kind.value, **event.data}
            self._print(data, lambda: f"{event.kind.value.upper():<8} {_brief(event)}")

    def close(self) -> None:
        """See `contract.Sink`."""

    def _print(self, data: dict[str, Any], text: Callable[[], str]) -> None:
        if self._quiet or self.broken:
            return
        # What a function or a broker gave may be long, or made to move the cursor.
        line = json.dumps(data, ensure_ascii=False, default=str) if self._json else plain(text(), 1000).plain
        try:
            with self._lock:
                print(line, flush=True)
        except BrokenPipeError:
            # Whoever read our lines has enough of them (`| head`).
            self.broken = True
            self.stop()


def words(frame: Frame) -> str:
    """One frame's answer for a person: `cat.jpg  tabby 82 % · tiger cat 9 %  12 ms`."""
    took = "" if frame.placed is None else f"  {format_duration(frame.placed.latency_s)}"
    where = "" if frame.placed is None or frame.placed.place.value == "edge" else f" {frame.placed.place.value}"
    name = f"{frame.name} " if frame.name else ""
    return f"{frame.index:>6}  {name}{'' if frame.result is None else _answer(frame.result)}{took}{where}"


def _answer(result: Result) -> str:
    if result.top:
        said = " · ".join(f"{label} {confidence:.0%}" for label, confidence in result.top)
    elif result.detections:
        said = " · ".join(
            f"{found.label} {found.confidence:.0%} [{' '.join(f'{side:.0f}' for side in found.box)}]"
            for found in result.detections
        )
    elif result.value is not None:
        said = f"{result.value:.5g} {result.unit or ''}".strip()
    elif result.score is not None:
        said = f"score {result.score:.4g}{'  ANOMALY' if result.anomaly else ''}"
    else:
        # What a function made of a reading is in its own fields: only a detector looked for something.
        said = result.label or ("nothing found" if result.task is Task.DETECTION else "")
    return "  ".join([*([said] if said else ()), *(f"{key}={value}" for key, value in result.extra.items())])


def _brief(event: Event) -> str:
    return "  ".join(
        f"{key}={value}" for key, value in event.data.items() if value not in (None, "") and key != "result"
    )


def summary(stats: dict[str, Any], took_s: float) -> str:
    """The last line: `30 frames · 160.4/s · p50 16.7 ms · p95 48.3 ms · 2 errors (last: …)`."""
    parts = [_count(stats["frames"], "frame"), f"{stats['frames'] / max(took_s, 1e-3):.1f}/s"]
    for name in ("p50", "p95"):
        if stats[f"{name}_ms"] is not None:
            parts.append(f"{name} {stats[f'{name}_ms']:.1f} ms")
    parts.append(f"{stats['skipped']} skipped")
    parts += [_count(stats[f"{name}s"], name) for name in ("alert", "sample") if stats[f"{name}s"]]
    parts += [f"{stats['dropped']} dropped"] if stats["dropped"] else []
    parts.append(_count(stats["errors"], "error") + (f" (last: {stats['last_error']})" if stats["errors"] else ""))
    return " · ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _with_source(found: App, camera: int | None, video: str | None, images: Path | None) -> tuple[App, str | None]:
    """The app with another source, where an option named one, and that option. Raises Invalid where several did."""
    if sum(given is not None for given in (camera, video, images)) > 1:
        raise Invalid("an app has one source", where="--camera, --video, --images", hint="Name one of them.")
    source: CameraSource | VideoSource | ImagesSource
    if camera is not None:
        if camera < 0:
            raise Invalid(f"{camera} is no camera", where="--camera", hint="The first one is 0.")
        option, source = "--camera", CameraSource(camera=camera)
    elif video is not None:
        # Paths in an app file are relative to it, those on the command line to where one stands.
        option, source = "--video", VideoSource(video=video if "://" in video else str(Path(video).resolve()))
    elif images is not None:
        option, source = "--images", ImagesSource(images=str(images.resolve()))
    else:
        return found, None
    return found.model_copy(update={"source": source}), option


def _with_secrets(found: App) -> App:
    """With the secrets that it declares, which here come from the environment. Raises Missing, Invalid."""
    missing = [name for name in found.secrets if name not in os.environ]
    if missing:
        raise Missing(
            f"the secret {', '.join(missing)} is not in the environment",
            where="secrets",
            hint="On a device it comes from the cloud; here, export it before `marram run`.",
        )
    return with_secrets(found, {name: os.environ[name] for name in found.secrets})


def _tell(sink: Any) -> None:
    url = getattr(sink, "url", None)
    if url is not None:
        print(f"preview  {url}", file=sys.stderr)
