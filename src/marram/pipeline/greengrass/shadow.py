"""Thing shadows kept on this device, as Greengrass V1's local shadow service kept them.

A shadow is a JSON document `{"state": {"desired": …, "reported": …}, "metadata": …, "version": n, "timestamp": s}`. An
update is merged into it, null deletes a key, and a `version` that is not the present one is refused (AWS IoT developer
guide, "Device shadow service documents"). It never leaves the device by itself.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marram.schema.words import file_fault
from marram.system import files

_THING = re.compile(r"[A-Za-z0-9:_-]{1,128}")
# The service's own limit for a shadow document.
_MAX_BYTES = 8192


class ShadowFault(Exception):
    """The service's answer to a request it refuses: an HTTP-like `code` and words."""

    def __init__(self, code: int, words: str) -> None:
        self.code = code
        self.words = words
        super().__init__(f"{code}: {words}")


class Shadows:
    """The shadows in one folder, one file a thing; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, thing: str) -> dict[str, Any]:
        """The document, with `delta` where desired differs from reported. Raises ShadowFault 404 without one."""
        with self._locked(thing) as path:
            document = _read(path)
        if document is None:
            raise ShadowFault(404, f"No shadow exists with name: '{thing}'")
        return _with_delta(document)

    def update(self, thing: str, payload: str | bytes) -> dict[str, Any]:
        """Merge `payload` in; answers what was accepted. Raises ShadowFault 400, 409 (version) or 413 (too large)."""
        if len(payload) > _MAX_BYTES:
            raise ShadowFault(413, "The payload exceeds the maximum size allowed")
        request = _parse(payload)
        with self._locked(thing) as path:
            document = _read(path) or {"state": {}, "metadata": {}, "version": 0}
            wanted = request.get("version")
            if wanted is not None and wanted != document["version"]:
                raise ShadowFault(409, "Version conflict")
            now_s = int(time.time())
            metadata: dict[str, Any] = {}
            for section in ("desired", "reported"):
                if section not in request["state"]:
                    continue
                change = request["state"][section]
                metadata[section] = _stamped(change, now_s)
                document["state"][section] = _merged(document["state"].get(section), change)
                document["metadata"][section] = _merged(document["metadata"].get(section), metadata[section])
                if not document["state"][section]:
                    del document["state"][section]
                    document["metadata"].pop(section, None)
            document["version"] += 1
            document["timestamp"] = now_s
            if len(json.dumps(document["state"])) > _MAX_BYTES:
                raise ShadowFault(413, "The document exceeds the maximum size allowed")
            files.write(path, json.dumps(document).encode())
        accepted = {"state": request["state"], "metadata": metadata, "version": document["version"], "timestamp": now_s}
        return accepted | ({"clientToken": request["clientToken"]} if "clientToken" in request else {})

    def delete(self, thing: str) -> dict[str, Any]:
        """Forget the document. Raises ShadowFault 404 where there is none."""
        with self._locked(thing) as path:
            document = _read(path)
            if document is None:
                raise ShadowFault(404, f"No shadow exists with name: '{thing}'")
            path.unlink()
        return {"version": document["version"], "timestamp": int(time.time())}

    @contextmanager
    def _locked(self, thing: str) -> Iterator[Path]:
        if not _THING.fullmatch(thing):
            raise ShadowFault(400, f"Invalid thing name: '{thing}'")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield self._folder / f"{thing}.json"
        except OSError as error:
            raise ShadowFault(500, f"The shadow cannot be kept ({file_fault(error)})") from error


def _parse(payload: str | bytes) -> dict[str, Any]:
    try:
        request = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ShadowFault(400, "Payload contains invalid json") from error
    state = request.get("state") if isinstance(request, dict) else None
    if not isinstance(state, dict):
        raise ShadowFault(400, "Missing required node: state")
    for section, change in state.items():
        if section not in ("desired", "reported"):
            raise ShadowFault(400, f"State contains an invalid node: '{section}'")
        if change is not None and not isinstance(change, dict):
            raise ShadowFault(400, f"State node '{section}' must be an object")
    return {**request, "state": state}


def _merged(old: Any, change: Any) -> Any:
    """`change` merged into `old`: null deletes, objects are merged, everything else replaces (also whole lists)."""
    if change is None:
        return {}
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merged(merged.get(key), value)
        else:
            merged[key] = value
    return merged


def _stamped(change: Any, now_s: int) -> Any:
    """The metadata of a change: when each of its values was set."""
    if change is None:
        return None
    if isinstance(change, dict):
        return {key: None if value is None else _stamped(value, now_s) for key, value in change.items()}
    return {"timestamp": now_s}


def _with_delta(document: dict[str, Any]) -> dict[str, Any]:
    state = document["state"]
    delta = _difference(state.get("desired", {}), state.get("reported", {}))
    return {**document, "state": {**state, "delta": delta}} if delta and "reported" in state else document


def _difference(desired: dict[str, Any], reported: dict[str, Any]) -> dict[str, Any]:
    """What of `desired` the device has not reported."""
    delta: dict[str, Any] = {}
    for key, value in desired.items():
        there = reported.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            if inner := _difference(value, there):
                delta[key] = inner
        elif value != there:
            delta[key] = value
    return delta


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document if isinstance(document["state"], dict) and isinstance(document["version"], int) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # Not written by us, or damaged by the disk: a shadow is state that code reports again, so begin anew.
        return None
