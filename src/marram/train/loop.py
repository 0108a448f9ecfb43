"""One turn of the loop: examples → candidate → judged beside the old version → registered, or refused with the reason.

It must never register what was not judged, and never touch the version that runs.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from marram.bus.http import CloudApi
from marram.runtime import library
from marram.runtime.bundle import Bundle
from marram.schema.api import Origin, SliceScore
from marram.schema.errors import Missing
from marram.train.bundle import write_bundle
from marram.train.compare import Verdict, judge
from marram.train.data import Examples, gather
from marram.train.fit import fit
from marram.train.recipe import Recipe


class Watcher(Protocol):
    """Who wants to see how it goes (the command line draws bars)."""

    def samples(self, done: int, total: int) -> None: ...

    def gathered(self, examples: Examples) -> None: ...

    def epoch(self, done: int, total: int, loss: float) -> None: ...

    def judging(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: the verdict, and the version it was registered as (None where refused)."""

    verdict: Verdict
    model: str
    old_version: int | None
    version: int | None


def run_recipe(recipe: Recipe, folder: Path, api: CloudApi | None, watcher: Watcher) -> Outcome:
    """Train `recipe` (its paths relative to `folder`), judge, and register the model where it is accepted.

    With a cloud (`api`): its labelled samples are used, the old version is the registry's newest, and the new one is
    registered there. Without: the local library's. Raises as `gather`, `fit` and `CloudApi` do.
    """
    examples = gather(recipe, folder, api, watcher.samples)
    watcher.gathered(examples)
    model = fit(recipe, examples.train, watcher.epoch)
    watcher.judging()
    with tempfile.TemporaryDirectory(prefix="marram-train-") as scratch:
        old = _newest(recipe.recipe, api, Path(scratch) / "old")
        version = (old.card.version if old else 0) + 1
        new = write_bundle(recipe, model, version, examples.train, Path(scratch) / "new")
        verdict = judge(new, old, examples.held_out, recipe.accept.tolerance)
        if not verdict.accepted:
            return Outcome(verdict, recipe.recipe, old.card.version if old else None, None)
        if api is not None:
            origin = _origin(recipe, old, examples, verdict)
            made = api.push_model(new.card, new.folder, new.files(), version=version, origin=origin)
            version = made.version
        else:
            library.add(new.folder)
        return Outcome(verdict, recipe.recipe, old.card.version if old else None, version)


def _origin(recipe: Recipe, old: Bundle | None, examples: Examples, verdict: Verdict) -> Origin:
    """What is remembered of how the version was made, and how well it did."""
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    by_slice = Counter(example.slice for example in (*examples.train, *examples.held_out))
    return Origin(
        parent=old.card.version if old else None,
        recipe=text[:20_000],
        trained_on=len(examples.train),
        held_out=len(examples.held_out),
        samples=dict(by_slice.most_common(200)),
        accuracy=[
            SliceScore(slice=score.slice[:200], examples=score.examples, old=score.old, new=score.new)
            for score in verdict.scores[:200]
        ],
    )


def _newest(name: str, api: CloudApi | None, folder: Path) -> Bundle | None:
    """The version in use: the registry's newest, or the library's. None where there is none."""
    if api is not None:
        try:
            view = api.model(name)
        except Missing:
            return None
        api.pull_model(view, folder)
        return Bundle.open(folder)
    numbers = library.versions(name)
    return library.get(name, numbers[-1]) if numbers else None
