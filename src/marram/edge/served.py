"""The worker's side of `serve:`: keeps the process that answers for its models (`edge/serving.py`) running.

Whatever becomes of that process, the pipeline goes on: it is started again after a pause, and `words` says how it
stands. It must import neither a web server nor gRPC: the worker is small.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from marram.edge.process import ended, worker_environment
from marram.runtime.bundle import Bundle
from marram.schema.addresses import bracketed
from marram.schema.app import App, Serve, model_uses
from marram.schema.errors import Invalid

READY, FAULT = "ready", "fault"
_NEEDED = ("uvicorn", "starlette", "grpc", "google.protobuf")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Having answered so long it was well: its next end begins with a short pause again.
_WELL_S = 30.0
_STOP_S = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the process is told: bundle folders, each with the variant that the app names, and where to listen."""

    models: list[tuple[str, str | None]]
    http: int | None
    grpc: int | None
    host: str

    def text(self) -> str:
        """As it stands on the command line; there is nothing secret in it."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Plan:
        document = json.loads(text)
        return cls([(folder, variant) for folder, variant in document.pop("models")], **document)


def check_installed() -> None:
    """Raises Invalid where this device lacks what `serve:` needs."""
    lacking = [name.partition(".")[0] for name in _NEEDED if not _is_there(name)]
    if lacking:
        raise Invalid(
            f"needs {', '.join(lacking)}, which this device does not have",
            where="serve",
            hint="On the device: pip install 'marram[serve]', then deploy again.",
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def own_models(app: App, resolve: Callable[[str], Bundle]) -> list[tuple[str, str | None]]:
    """The folders of the models that the app runs here, each once, with the variant that it names.

    Raises what `resolve` does for one that is not here.
    """
    own: dict[str, tuple[str, str | None]] = {}
    for use in model_uses(app):
        if not use.cloud:
            bundle = resolve(use.reference)
            own.setdefault(bundle.card.reference, (str(bundle.folder), use.variant))
    return list(own.values())


class Served:
    """The process, and the thread that keeps it. `close` ends both."""

    def __init__(self, serve: Serve, models: list[tuple[str, str | None]]) -> None:
        self._plan = Plan(models, serve.http, serve.grpc, serve.host)
        self._closed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.words = "starting"
        self._thread = threading.Thread(target=self._keep, name="serve", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; any number of times."""
        self._closed.set()
        with self._lock:
            process = self._process
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()
        self._thread.join(_STOP_S)

    def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set():
            began_s = time.monotonic()
            try:
                why = self._live()
            except OSError as error:
                why = f"cannot be started: {error.strerror}"
            if self._closed.is_set():
                return
            if time.monotonic() - began_s > _WELL_S:
                pause_s = _FIRST_PAUSE_S
            self.words = f"not now: {why}"
            print(f"serve: {why}", file=sys.stderr, flush=True)
            self._closed.wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _live(self) -> str:
        """One life of the process; why it ended."""
        with self._lock:
            if self._closed.is_set():
                return ""
            # What it prints is heard; what it logs goes where the app's own output goes.
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "marram.edge.serving", self._plan.text()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                errors="replace",
                env=worker_environment(os.environ),  # without the app's secrets
            )
        assert process.stdout is not None
        why = ""
        for line in process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == READY:
                self.words = self._where()
                print(f"serve: {self.words}", file=sys.stderr, flush=True)
            elif word == FAULT:
                why = rest
        status = process.wait()
        return why or ended(status)

    def _where(self) -> str:
        host = bracketed(self._plan.host)
        http = [] if self._plan.http is None else [f"http://{host}:{self._plan.http}/v2"]
        return ", ".join([*http, *([] if self._plan.grpc is None else [f"grpc {host}:{self._plan.grpc}"])])
