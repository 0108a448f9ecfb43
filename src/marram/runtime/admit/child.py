"""`python -m marram.runtime.admit.child`: checks one bundle for `admit`, bounded, and says what it found.

It reads one JSON object (the folder and the bounds) from stdin and writes JSON lines to stdout: `at` (what it is about
to open), then `fault` or `unchecked`. Nothing that a file makes it do may matter to anybody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from marram.runtime.admit.archives import look_into
from marram.runtime.bundle import CARD, Bundle
from marram.runtime.contract import Tensor
from marram.runtime.cut import Back, Front
from marram.runtime.engines.torch import clean_archive
from marram.runtime.example import example
from marram.runtime.installed import PACKAGES, installed
from marram.runtime.model import Answerer, Model, check_labels
from marram.runtime.onnxfile import outside
from marram.schema.errors import Invalid, MarramError, NotReady, Permanent, Threat, Untrusted
from marram.schema.model import Cut, Engine, Variant

_STARVED = ("bad_alloc", "bad allocation", "allocate memory", "out of memory", "failed to allocate", "length_error")
# The most that a file of what it writes may have: its words, and what an engine keeps beside them for a moment.
_MOST_WRITTEN_BYTES = 4_000_000


def main() -> int:
    """The exit status: 0 where it came to a verdict."""
    asked = json.loads(sys.stdin.buffer.read())
    # Engines print what they like to stdout: our words go where they cannot reach.
    words = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        words.write(json.dumps(message) + "\n")
        words.flush()

    _bound(int(asked["memory_bytes"]), int(asked["cpu_s"]))
    try:
        say(unchecked=check(Path(asked["folder"]), lambda at: say(at=at)))
    except MarramError as error:
        say(fault={"kind": error.kind, "what": error.what, "where": error.where, "hint": error.hint})
    except (MemoryError, RecursionError):
        starved = Untrusted("opening it takes more memory than a model of its size may", threat=Threat.EXHAUSTION)
        say(fault={"kind": starved.kind, "what": starved.what, "where": None, "hint": None})
    return 0


def check(folder: Path, at: Callable[[str], None]) -> list[str]:
    """See `parent.admit`; `at` hears what is opened next."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            at(name)
            look_into(path, name, text=name == CARD or path.suffix in (".txt", ".csv"))
    at(CARD)
    bundle = Bundle.open(folder)
    unchecked = []
    for variant in bundle.card.variants:
        at(variant.file)
        _is_its_format(bundle, variant.engine, variant.file)
        if not installed(variant.engine):
            unchecked.append(f"{variant.name} was not opened: {PACKAGES[variant.engine]} is not installed here")
            continue
        if note := _asked_once(bundle, variant):
            unchecked.append(note)
    for cut in bundle.card.cuts:
        for file in (cut.front, cut.back):
            at(file)
            _is_its_format(bundle, cut.engine, file)
        if not installed(cut.engine):
            unchecked.append(f"cut {cut.name} was not opened: {PACKAGES[cut.engine]} is not installed here")
        elif note := _crossed_once(bundle, cut, at):
            unchecked.append(note)
    return unchecked


def _is_its_format(bundle: Bundle, engine: Engine, where: str) -> None:
    """That the file `where` is what `engine` reads, told without the engine."""
    file = bundle.folder / where
    if engine is Engine.LITERT:
        with file.open("rb") as opened:
            if opened.read(8)[4:] != b"TFL3":
                raise Invalid("not a .tflite model", where=where, hint="Is the file complete?")
    elif engine is Engine.TORCH:
        with _named(bundle):
            clean_archive(file)
    else:
        with _named(bundle):
            places = outside(file)
        for place in sorted(places):
            pure = PurePosixPath(place)
            if pure.is_absolute() or ".." in pure.parts or "\\" in place or place[1:2] == ":":
                what = f'keeps weights in "{place[:200]}", outside of the bundle'
                raise Untrusted(what, threat=Threat.TRAVERSAL, where=where)
            beside = (file.parent / place).relative_to(bundle.folder).as_posix()
            if beside != f"{where}.data":
                what = f'keeps weights in "{place[:200]}"; only {PurePosixPath(where).name}.data travels with it'
                raise Invalid(what, where=where, hint="Export it with its weights inside, or in a file of that name.")


def _asked_once(bundle: Bundle, variant: Variant) -> str:
    """Load the variant and have it answer a made-up input. Returns what that could not tell, "" where nothing."""

    def ask() -> None:
        model = Model.load(bundle, variant=variant.name)
        try:
            _answers(model, example(bundle.card), variant.file)
        finally:
            model.close()

    return _untold(bundle, variant.name, variant.file, ask)


def _crossed_once(bundle: Bundle, cut: Cut, at: Callable[[str], None]) -> str:
    """Load both parts of the cut, and have them answer a made-up input one after the other; as `_asked_once`."""

    def ask() -> None:
        at(cut.front)
        front = Front.load(bundle, cut.name)
        try:
            crossing = front.run(example(bundle.card))
        finally:
            front.close()
        at(cut.back)
        back = Back.load(bundle, cut.name)
        try:
            _answers(back, crossing, cut.back)
        finally:
            back.close()

    return _untold(bundle, f"cut {cut.name}", cut.front, ask)


def _answers(model: Answerer, data: Tensor, file: str) -> None:
    prepared = model.prepare(data)
    outputs = model.run(prepared)
    shapes = [tuple(int(n) for n in output.shape) for output in outputs]
    check_labels(model.bundle, shapes, file)
    model.interpret(outputs, prepared)


def _untold(bundle: Bundle, name: str, file: str, ask: Callable[[], None]) -> str:
    """What asking it could not tell, "" where nothing. Raises what is wrong with it."""
    try:
        with _named(bundle):
            ask()
    except NotReady as error:
        return f"{name} was not opened: {error.what}"
    except Permanent as error:
        if "NaN" in error.what:
            return f"{name} answers NaN to made-up noise: what it answers was not checked"
        if any(sign in error.what.lower() for sign in _STARVED):
            what = f"opening it takes more memory than a model of its size may ({error.what[:200]})"
            raise Untrusted(what, threat=Threat.EXHAUSTION, where=file) from error
        raise
    return ""


@contextlib.contextmanager
def _named(bundle: Bundle) -> Any:
    """What is wrong is said of the file by its name in the bundle, not by where it lies for the check."""
    try:
        yield
    except MarramError as error:
        prefix = f"{bundle.folder}{os.sep}"
        error.what = error.what.replace(prefix, "")
        error.where = error.where and error.where.replace(prefix, "")
        raise


def _bound(memory_bytes: int, cpu_s: int) -> None:
    limits = {
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: _MOST_WRITTEN_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            # Of time, a signal that says what it is for, before the one that says nothing.
            resource.setrlimit(limit, (value, value + 2 if limit == resource.RLIMIT_CPU else value))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an engine's own destructors are nobody's business any more
