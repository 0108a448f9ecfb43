"""The local library: `$MARRAM_HOME/models/NAME/VERSION/`, and how a reference in an app finds a bundle.

A bundle appears in the library whole or not at all, and a version that is there never changes.
It must import neither NumPy nor an engine: the device's agent and the command line use it too.
"""

from __future__ import annotations

import difflib
import filecmp
import shutil
import tempfile
from pathlib import Path

from marram.runtime.build import BUILDABLE
from marram.runtime.bundle import CARD, Bundle
from marram.schema import paths
from marram.schema.errors import Conflict, Invalid, Missing, Permanent
from marram.schema.ids import parse_model_reference
from marram.system.files import sync


def names() -> list[str]:
    """Models in the library, in name order."""
    root = paths.models()
    if not root.is_dir():
        return []
    return sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith(".") and versions(f.name))


def versions(name: str) -> list[int]:
    """Versions of `name` in the library, oldest first."""
    root = paths.models() / name
    if not root.is_dir():
        return []
    return sorted(int(f.name) for f in root.iterdir() if f.name.isdecimal() and (f / CARD).is_file())


def get(name: str, version: int | None = None) -> Bundle:
    """The bundle of `name` (its newest version where none is named). Raises Missing, saying what to do, or Invalid."""
    present = versions(name)
    if not present:
        raise _unknown(name)
    if version is not None and version not in present:
        has = ", ".join(map(str, present))
        raise Missing(f'no version {version} of model "{name}" here; there is {has}', hint="`marram model list`")
    return Bundle.open(paths.models() / name / str(present[-1] if version is None else version))


def resolve(reference: str, base: Path) -> Bundle:
    """What an app means by `reference`: `name`, `name@3`, or a path to a bundle folder relative to `base`.

    Raises Missing where there is no such model, Invalid where the reference or the bundle is malformed.
    """
    if "/" in reference or reference.startswith("."):
        return Bundle.open(base / reference)
    name, version = parse_reference(reference)
    return get(name, version)


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`name@3` -> ("name", 3); `name` -> ("name", None). Raises Invalid; Missing for a channel: a cloud resolves it."""
    try:
        parsed = parse_model_reference(reference)
    except ValueError as error:
        raise Invalid(f'"{reference}" names no model: {error}') from error
    if parsed.channel is not None:
        raise Missing(
            f'"{reference}" is a channel of a cloud; the models on this machine have none',
            hint=f"Name a version, as in {parsed.name}@3.",
        )
    return parsed.name, parsed.version


def add(folder: Path, *, replace: bool = False) -> Bundle:
    """Copy the bundle in `folder` into the library. The same content again is no fault.

    Raises Conflict where that version is there with other content (unless `replace`), Missing or Invalid where
    `folder` is no bundle, Permanent where the disk refuses.
    """
    bundle = Bundle.open(folder)
    home = paths.models() / bundle.card.model
    target = home / str(bundle.card.version)
    if target.is_dir() and not replace:
        if _same(bundle, target):
            return Bundle.open(target)
        raise Conflict(
            f"{bundle.reference} is in the library with other content",
            where=str(folder),
            hint=f"Raise `version` in its {CARD}, or use --force.",
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".adding-") as temporary:
            fresh = Path(temporary) / "bundle"
            for name in bundle.files():
                copy = fresh / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.folder / name, copy)
                sync(copy)
            sync(fresh)
            if target.exists():
                target.rename(Path(temporary) / "old")
            fresh.rename(target)
            sync(home)
    except OSError as error:
        raise Permanent(f"cannot write the model: {error.strerror}", where=str(home)) from error
    return Bundle.open(target)


def _same(bundle: Bundle, target: Path) -> bool:
    try:
        there = Bundle.open(target)
    except (Missing, Invalid):
        return False
    ours = bundle.files()
    return ours == there.files() and all(
        filecmp.cmp(bundle.folder / name, target / name, shallow=False) for name in ours
    )


def _unknown(name: str) -> Missing:
    if name in BUILDABLE:
        return Missing(f'model "{name}" is not on this machine yet', hint=f"`marram model build {name}` makes it.")
    near = difflib.get_close_matches(name, {*names(), *BUILDABLE}, n=5)
    if near:
        # Of several that are equally near, the first by name: the smaller model of a family.
        likeness = {each: difflib.SequenceMatcher(None, each, name).ratio() for each in near}
        near.sort(key=lambda each: (-likeness[each], each))
    meant = f'; did you mean "{near[0]}"?' if near else "."
    return Missing(f'no model "{name}"{meant}', hint="`marram model list` shows all.")
