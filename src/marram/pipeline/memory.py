"""What a pipeline learnt and would lose by a restart, in one small file.

Written now and then and at the end, by whoever runs the pipeline, never by a thread that answers frames. It may be lost
or be another version's: everything in it can be learnt anew, so nothing here ever fails an app.
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


class Memory:
    """The file `path`, a JSON document of each part's name and what it saved. None: remembers nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._parts: dict[str, Callable[[], dict[str, Any]]] = {}
        self._written = ""
        self._before = self._read()

    def hold(self, name: str, save: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What an earlier run saved under `name`, None where nothing; from now on `save` says what to keep."""
        with self._lock:
            self._parts[name] = save
        found = self._before.get(name)
        return found if isinstance(found, dict) else None

    def write(self) -> None:
        """Replace the file where something changed. What no part of this run holds is dropped."""
        if self._path is None:
            return
        with self._lock:
            document = json.dumps({name: save() for name, save in self._parts.items()})
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
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, it is learnt anew: %s", self._path, error)
            return {}
        return document if isinstance(document, dict) else {}
