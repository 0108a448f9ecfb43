"""What a pipeline learnt and would lose by a restart, in one small file.

Written every minute and at the end by a thread of its own: a disk that hangs holds up no frame. It may be lost or be
damaged: everything in it can be learnt anew, so nothing here ever fails an app.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.system import files

log = logging.getLogger(__name__)

EVERY_S = 60.0
# Of parts that this run does not have (another version's models, which may come back) the last so many are kept.
_MOST_OTHERS = 8
_PATIENCE_S = 5.0


class Memory:
    """The file `path`, a JSON document of each part's name and what it saved. None: remembers nothing.

    Between `start` and `close` it is written every `every_s`.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._parts: dict[str, Callable[[], dict[str, Any]]] = {}
        self._written = ""
        self._before = self._read()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, name: str, save: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What an earlier run saved under `name`, None where nothing; from now on `save` says what to keep."""
        with self._lock:
            self._parts[name] = save
        found = self._before.get(name)
        return found if isinstance(found, dict) else None

    def start(self, every_s: float = EVERY_S) -> None:
        """Write now and then, where there is anything to write."""
        if self._path is not None and self._parts:
            self._thread = threading.Thread(target=self._keep, args=(every_s,), name="marram-memory", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write for the last time. Waits a little for a disk that hangs."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    def _keep(self, every_s: float) -> None:
        while not self._closing.wait(every_s):
            self.write()
        self.write()

    def write(self) -> None:
        """Replace the file where something changed."""
        if self._path is None:
            return
        with self._lock:
            others = [(name, part) for name, part in self._before.items() if name not in self._parts]
            saved = {name: save() for name, save in self._parts.items()}
            document = json.dumps(dict(others[-_MOST_OTHERS:]) | saved)
            if not self._parts or document == self._written:
                return
            try:
                files.write(self._path, document.encode())
            except OSError as error:
                log.warning("%s cannot be written, what was learnt lasts until the app ends: %s", self._path, error)
            self._written = document  # also where it failed: one warning, until there is something new

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            document = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s cannot be read, it is learnt anew: %s", self._path, error)
            return {}
        return document if isinstance(document, dict) else {}
