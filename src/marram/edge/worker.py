"""`python -m marram.edge.worker FD PARENT`: runs one app in a process of its own, started and watched by the agent.

It knows the app's files, its models' folders, the outbox file and one end of a channel: no network, no credential.
It ends with the agent, however that ends. What user code does wrong happens here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from marram.edge import _small as _small  # before anything that imports secrets
from marram.edge import _unplugged as _unplugged  # before anything that imports pydantic

# isort: split
from marram.bus.outbox import Outbox
from marram.bus.progress import Progress
from marram.bus.writer import OutboxWriter
from marram.edge.channel import WorkerEnd
from marram.edge.guest import answer
from marram.edge.process import be_second, die_with, give_back_memory
from marram.edge.remote import ChannelRemote
from marram.edge.served import Served, check_installed, own_models
from marram.pipeline.build import Around, Pipeline
from marram.pipeline.check import rules
from marram.pipeline.contract import Position
from marram.pipeline.findings import at
from marram.pipeline.progress import Ledger
from marram.pipeline.secrets import with_secrets
from marram.pipeline.shadow import Before
from marram.runtime.bundle import CARD, Bundle
from marram.runtime.library import parse_reference
from marram.runtime.model import Model
from marram.schema.app import App, JsonlSink, Sink, VideoSink, app_on, model_uses, parse_app
from marram.schema.device import CloudModel
from marram.schema.errors import Invalid, MarramError, Missing, NotReady, Permanent, Retryable
from marram.schema.event import Event
from marram.schema.model import ModelCard
from marram.schema.page import Page

_BEAT_S = 1.0
_QUICK_S = 2.0
# In the working folder, which outlives versions: what a cascade learnt (`pipeline/memory.py`).
_LEARNT = ".marram-learnt.json"


def main(arguments: list[str]) -> int:
    """The process's whole life; returns its exit status."""
    fd, parent = (int(argument) for argument in arguments)
    die_with(parent)
    # Engine calls release the GIL; waiting threads get it back sooner than the interpreter's 5 ms.
    sys.setswitchinterval(0.001)
    channel = WorkerEnd(socket.socket(fileno=fd))
    run: Run | None = None
    try:
        start = channel.receive()
        if start is None:
            return 1
        run = Run(channel, start)
        return run.live()
    except MarramError as error:
        # What is missing may come (a camera that is plugged in later); what is wrong stays wrong.
        again = isinstance(error, (Retryable, Missing))
        disk = run is not None and run.recording and isinstance(error, Retryable)
        _fatal(channel, error, again=again, engine=isinstance(error, NotReady), disk=disk)
        return 3
    except Exception as error:  # noqa: BLE001 - the worker's outermost supervisor: the log has the trace, the agent the line
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        fault = Permanent(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        _fatal(channel, fault, again=True, engine=True)
        return 4


def _fatal(channel: WorkerEnd, error: MarramError, *, again: bool, engine: bool, disk: bool = False) -> None:
    told = {"message": _sendable(str(error)), "again": again, "engine": engine, "disk": disk}
    channel.send({"t": "fatal", **told})
    channel.drain(1)


class Run:
    """One app, from the agent's `start` to its end. `recording`: we are at the outbox, and in no code of the app's."""

    def __init__(self, channel: WorkerEnd, start: dict[str, Any]) -> None:
        self._channel = channel
        self._start = start
        self._folder = Path(start["folder"])
        self._models = {name: Path(folder) for name, folder in start["models"].items()}
        self._remote = ChannelRemote(channel)
        self._pipeline: Pipeline | None = None
        self._served: Served | None = None
        self._stopping = False
        self.recording = False
        # What the main thread is told. Signals come there too: a SimpleQueue is safe in a handler, an Event is not.
        self._told: SimpleQueue[str] = SimpleQueue()

    def _name(self, error: MarramError) -> None:
        """In `error`, call folders here, which have a digest for a name, by the app's or model's own name."""
        for name, folder in {self._start["app"]: self._folder, **self._models}.items():
            error.what = error.what.replace(str(folder), name)
            error.where = error.where and error.where.replace(str(folder), name)

    def live(self) -> int:
        """Verify where asked to, run the app, leave clean. Raises MarramError where it cannot run."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        be_second(self._start["memory"])
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        # Before any user code; after everything of ours, which never looks there.
        sys.path[:0] = self._start["packages"]
        os.environ.update(self._start["secrets"])
        page = Page.read((self._folder / "app.yaml").read_text(encoding="utf-8"), f"{self._start['app']}/app.yaml")
        try:
            return self._live(with_secrets(app_on(page), self._start["secrets"]))
        except MarramError as error:
            # What is wrong with the app is said by its line, here as where it was written.
            if error.hint and error.hint.startswith("pip install"):
                # Not on a device: what it lacks comes with the app, for the devices that were there as it was deployed.
                error.hint = "Deploy the app again: what it requires is then resolved for this device."
            self._name(page.locate(error))
            raise

    def _live(self, app: App) -> int:
        if self._start["verify"]:
            self._verify(app)
            self._channel.send({"t": "verified"})
            if self._told.get() != "go":
                return 0
        self.recording = True
        outbox = Outbox(Path(self._start["outbox"]))
        name, version = self._start["app"], self._start["version"]
        try:
            reached = outbox.progress(name, version, self._start["started"])
            writer = OutboxWriter(outbox)
            self.recording = False
            try:
                self._run(app, _Ledger(writer, name, version, reached))
            finally:
                writer.close()
        finally:
            outbox.close()
        if waiting := writer.waiting():
            self.recording = True
            # The source may have ended, its records are not safe: they are made again by the next start.
            raise Retryable(f"{waiting} events could not be recorded: {writer.error}")
        if not self._stopping:
            self._channel.send({"t": "finished"})
        self._channel.drain(1)
        return 0

    def _run(self, app: App, ledger: Ledger) -> None:
        cards = self._cloud_cards(app)
        around = Around(
            outlet=ledger,
            ledger=ledger,
            remote=self._remote if self._start["cloud"] or self._start["peers"] else None,
            peers=self._start["peers"],
            cloud_cards=cards,
            fronts=self._fronts(cards),
            resolve=self._resolve,
            device=self._start["device"],
            before=self._before(),
            memory=Path.cwd() / _LEARNT,
        )
        pipeline = Pipeline.build(_writing_here(app), self._folder, around)
        self._pipeline = pipeline
        self._channel.send({"t": "running"})
        if self._stopping:
            return
        if app.serve is not None:
            self._served = Served(app.serve, own_models(app, lambda name: self._resolve(name, self._folder)))
        try:
            pipeline.run()
        finally:
            if self._served is not None:
                self._served.close()
        self._channel.send({"t": "stats", "stats": self._stats(pipeline)})

    # ------------------------------------------------------------ what it was given

    def _before(self) -> Before | None:
        """The version that this one replaces; None where none came along, or its page cannot be read any more."""
        given = self._start.get("before")
        if given is None:
            return None
        models = {name: Path(folder) for name, folder in given["models"].items()}
        try:
            app = parse_app((Path(given["folder"]) / "app.yaml").read_text(encoding="utf-8"))
        except (MarramError, OSError, UnicodeDecodeError):
            return None
        return Before(app, lambda reference: _opened(reference, models), self._start["memory"])

    def _resolve(self, reference: str, base: Path) -> Bundle:
        """The model that the app means by `reference`. Raises Missing where the deployment did not bring it."""
        if "/" in reference and (base / reference / CARD).is_file():
            return Bundle.open(base / reference)
        return _opened(reference, self._models)

    def _cloud_cards(self, app: App) -> dict[str, ModelCard]:
        cards: dict[str, ModelCard] = {}
        offered = [CloudModel.model_validate(document) for document in self._start["cloud"]]
        for reference in {step.cloud for step in app.inferences if step.cloud}:
            name, version = _parsed(reference)
            fitting = [m for m in offered if m.name == name and version in (None, m.version)]
            if fitting:
                cards[reference] = max(fitting, key=lambda m: m.version).card
        return cards

    def _stats(self, pipeline: Pipeline) -> dict[str, Any]:
        stats = pipeline.stats() | ({"serve": self._served.words} if self._served is not None else {})
        return _figures(stats)

    def _fronts(self, cards: dict[str, ModelCard]) -> dict[str, Bundle]:
        """For each reference to a model of the cloud, where the fronts of its cuts lie, if any came along."""
        found = {}
        for reference, card in cards.items():
            with contextlib.suppress(Missing):
                found[reference] = _opened(card.reference, self._models)
        return found

    def _verify(self, app: App) -> None:
        """Load every model the app brought, each as the app will: what does not load never replaces what runs."""
        for fault in rules(app).faults:
            raise fault
        if app.serve is not None:
            check_installed()
        try:
            for use in model_uses(app):
                if not use.cloud:
                    with at(use.place):
                        Model.load(self._resolve(use.reference, self._folder), variant=use.variant).close()
        except Missing as error:
            # All that the deployment brings is here already: what is missing now stays missing.
            raise Invalid(error.what, where=error.where, hint=error.hint) from error

    # ------------------------------------------------------------ its threads

    def _stop(self) -> None:
        self._stopping = True
        self._told.put("stop")
        if self._pipeline is not None:
            self._pipeline.stop()

    def _listen(self) -> None:
        """Hear the agent; when it is gone, so are we, after one try to leave clean."""
        with contextlib.suppress(MarramError):
            while (message := self._channel.receive()) is not None:
                match message.get("t"):
                    case "reply":
                        self._remote.answered(message)
                    case "link":
                        self._remote.link(bool(message.get("up")))
                    case "asked":
                        answer(message, self._pipeline.guests if self._pipeline else None, self._channel)
                    case "go":
                        self._told.put("go")
        self._remote.close()
        self._stop()
        time.sleep(3)
        os._exit(1)

    def _beat(self) -> None:
        proven_s = 0.0
        while True:
            pipeline = self._pipeline
            self._channel.send({"t": "beat", "busy_s": pipeline.busy_s() if pipeline else 0.0})
            if pipeline is not None:
                stats = self._stats(pipeline)
                self._channel.send({"t": "stats", "stats": stats})
                if stats.get("frames") and not proven_s:
                    proven_s = time.monotonic()
                    give_back_memory()
            self._remote.expire()
            # Quick until the first result and a moment longer: a deployment waits for its trial's end.
            quick = not proven_s or time.monotonic() - proven_s < _QUICK_S
            time.sleep(_BEAT_S / 10 if quick else _BEAT_S)


class _Ledger:
    """See `progress.Ledger`: the outbox, for one version of an app."""

    def __init__(self, writer: OutboxWriter, app: str, version: int, reached: Progress | None) -> None:
        self._writer, self._app, self._version = writer, app, version
        self.reached = None if reached is None else Position(reached.frame, reached.name)
        self.emit = writer.emit

    def record(self, events: Sequence[Event], position: Position) -> None:
        """See `progress.Ledger`."""
        self._writer.record(events, Progress(self._app, self._version, position.frame, position.name))


def _opened(reference: str, models: dict[str, Path]) -> Bundle:
    """The bundle among `models` (folders by `name@version`) that a reference means, the newest where it has no number.

    Raises Missing where the deployment did not bring it.
    """
    name, version = _parsed(reference)
    numbers = [int(key.rpartition("@")[2]) for key in models if key.rpartition("@")[0] == name]
    found = models.get(f"{name}@{version or max(numbers, default=0)}")
    if found is None:
        brought = ", ".join(sorted(models)) or "none"
        raise Missing(f'model "{reference}" did not come with the app (it brought: {brought})', hint="Deploy it again.")
    return Bundle.open(found, partial=True)  # the agent brought the variants that run here, and checked each file


def _figures(stats: dict[str, Any]) -> dict[str, Any]:
    return {key: _sendable(value) if isinstance(value, str) else value for key, value in stats.items()}


def _sendable(text: str) -> str:
    """A file name that is no UTF-8 comes as lone surrogates, which no message can carry."""
    return text.encode("utf-8", "replace").decode()


def _writing_here(app: App) -> App:
    """The app with files it writes in the working folder: where the app file lies is replaced with each version."""
    sinks: list[Sink] = []
    for sink in app.sinks:
        if isinstance(sink, JsonlSink):
            sinks.append(sink.model_copy(update={"jsonl": str(Path.cwd() / sink.jsonl)}))
        elif isinstance(sink, VideoSink):
            sinks.append(sink.model_copy(update={"video": str(Path.cwd() / sink.video)}))
        else:
            sinks.append(sink)
    return app.model_copy(update={"sinks": sinks})


def _parsed(reference: str) -> tuple[str, int | None]:
    """A path to a bundle was deployed as the model of that name."""
    return (Path(reference).name, None) if "/" in reference else parse_reference(reference)


if __name__ == "__main__":
    # Threads of user code or of an engine may hang for ever: what must be kept is flushed, so leave without them.
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
