"""The parent's side: start the child, wait so long and no longer, and say in words what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marram.runtime.admit.pickles import SUFFIXES
from marram.runtime.bundle import Bundle
from marram.schema.errors import KINDS, Invalid, MarramError, Retryable, Threat, Untrusted
from marram.schema.units import format_size
from marram.system.children import tied

# Each opens a model: more at once would only take the memory from one another.
_AT_ONCE = threading.BoundedSemaphore(2)
_ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SYSTEMROOT")
# A card may lie in any folder, somebody's home too.
_MOST_LOOKED_AT = 1000
_CHILD = "marram.runtime.admit.child"
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "out of memory", "Cannot allocate", "length_error")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a model may take to be opened and asked once."""

    memory_bytes: int
    cpu_s: int = 60
    wall_s: float = 120.0

    @classmethod
    def of(cls, folder: Path) -> Bounds:
        """By the size of what is in `folder`: an engine holds a model several times while it loads it."""
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        seconds = 60 + size // 5_000_000
        return cls(memory_bytes=2_000_000_000 + 6 * size, cpu_s=seconds, wall_s=2.0 * seconds)


def admit(folder: Path, bounds: Bounds | None = None) -> list[str]:
    """Check the bundle in `folder`, which holds its files and nothing else. Returns what could not be checked here.

    Each variant's file is looked into; where its engine is installed it is opened and asked once, and its inputs,
    outputs and labels are compared with the card. Raises Untrusted (a pickle, a bomb, a path that leaves the folder,
    a file that takes down who opens it), Invalid (card and files do not agree), Retryable (no process can be started).
    """
    bounds = bounds or Bounds.of(folder)
    with (
        _AT_ONCE,
        tempfile.TemporaryDirectory(prefix="marram-admit-") as scratch,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as complained,
    ):
        try:
            process = subprocess.Popen(
                tied([sys.executable, "-P", "-m", "marram.runtime.admit.box", str(folder.absolute()), _CHILD]),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=complained,
                cwd=folder,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
                | {"MALLOC_ARENA_MAX": "2", "TMPDIR": scratch, "HOME": scratch},
                start_new_session=True,
            )
        except OSError as error:
            raise Retryable(f"the model cannot be checked now: {error.strerror}") from error
        late = False
        try:
            process.communicate(
                json.dumps({"folder": str(folder.absolute()), **asdict(bounds)}).encode(), bounds.wall_s
            )
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        messages = _messages(_end(said))
        at = next((each["at"] for each in reversed(messages) if "at" in each), "it")
        for message in messages:
            if "fault" in message:
                raise _fault(message["fault"])
            if "unchecked" in message and process.returncode == 0:
                return [str(each) for each in message["unchecked"]]
        raise _fall(process.returncode, late, at, _end(complained).decode(errors="replace"), bounds)


def admit_bundle(bundle: Bundle) -> list[str]:
    """`admit` for a bundle in a folder that may hold other things too. Raises Retryable where it cannot be copied."""
    try:
        with tempfile.TemporaryDirectory(prefix="marram-model-") as temporary:
            folder = Path(temporary) / bundle.card.model
            for name in bundle.files():
                copy = folder / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.folder / name, copy)
            return admit(folder)
    except OSError as error:
        raise Retryable(f"cannot copy it to check it: {error.strerror}", where=str(bundle.folder)) from error


def left_behind(bundle: Bundle) -> list[str]:
    """The files in its folder that nothing names, which go nowhere; hidden ones do not count.

    Raises Untrusted where one is called what pickles are called: whoever put it there takes it for a part of the model.
    """
    named, found = set(bundle.files()), list[str]()
    for place, folders, files in os.walk(bundle.folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(place).relative_to(bundle.folder)
        found += [(inside / name).as_posix() for name in sorted(files) if not name.startswith(".")]
        if len(found) > _MOST_LOOKED_AT:
            break
    strays = [name for name in found if name not in named]
    for name in strays:
        if name.lower().endswith(SUFFIXES):
            raise Untrusted(
                f"{name} is a pickle by its name, and the card names it nowhere",
                threat=Threat.PICKLE,
                where=str(bundle.folder),
                hint="Nothing ever unpickles: take it out of the folder, and add the model again.",
            )
    return strays


def _fall(status: int, late: bool, at: str, words: str, bounds: Bounds) -> MarramError:
    """Why there is no verdict. `status`: how the child ended."""
    hint = "Nothing was taken in. If the file is your own, export it again."
    if late or status in (-signal.SIGXCPU, -signal.SIGVTALRM):
        return Untrusted(f"opening {at} takes more than {bounds.cpu_s} s", threat=Threat.EXHAUSTION, hint=hint)
    if status == -signal.SIGKILL or any(sign in words for sign in _OUT_OF_MEMORY):
        what = f"opening {at} takes more than {format_size(bounds.memory_bytes)} of memory"
        return Untrusted(what, threat=Threat.EXHAUSTION, hint=hint)
    if status < 0:
        what = f"opening {at} crashes the engine ({signal.Signals(-status).name})"
        return Untrusted(what, threat=Threat.CRASH, hint=hint)
    last = words.strip().splitlines()[-1:] or ["it said nothing"]
    return Invalid(f"opening {at} failed (exit status {status}): {last[0][:300]}", hint=hint)


def _fault(document: dict[str, Any]) -> MarramError:
    kind = KINDS.get(str(document.get("kind")), Invalid)
    return kind(
        str(document.get("what"))[:2000],
        where=None if document.get("where") is None else str(document["where"])[:500],
        hint=None if document.get("hint") is None else str(document["hint"])[:500],
    )


def _messages(said: bytes) -> list[dict[str, Any]]:
    """What the child said, a JSON object a line; what is none is left out."""
    found = []
    for line in said.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict):
                found.append(message)
    return found


def _end(file: Any) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 65536))
    return bytes(file.read())
