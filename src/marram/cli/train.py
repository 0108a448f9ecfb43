"""`marram train`: a recipe becomes a candidate, judged beside the model that runs, registered where it is better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, load, print_json
from marram.schema.errors import Invalid
from marram.train.data import Examples
from marram.train.loop import Outcome, run_recipe
from marram.train.recipe import read_recipe

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train a model from samples, compare it, register it."
)


@app.callback()
def top() -> None:
    """Keep `run` a word of its own: other verbs will stand beside it."""


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML): data, network, when it is good enough.")],
    local: Annotated[
        bool, typer.Option("--local", help="Use and write this machine's library, not a cloud's registry.")
    ] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Train, judge on held-out data of every site, register where no site loses and one gains; else exit status 1."""
    page = read_recipe(recipe)
    if local and (url or token):
        raise Invalid("--local talks to no cloud", hint="Leave out --url and --token, or --local.")
    columns = TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=_show.console(stderr=json)) as bars:
        watcher = _Bars(bars)
        if local or (url is None and load() is None):
            outcome = run_recipe(page, recipe.parent, None, watcher)
        else:
            with connect(url, token) as api:
                outcome = run_recipe(page, recipe.parent, api, watcher)
    if json:
        print_json(_document(outcome))
    else:
        _print(outcome)
    if outcome.version is None:
        raise typer.Exit(1)


class _Bars:
    """Progress as bars: samples fetched, epochs done, then the judging."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def samples(self, done: int, total: int) -> None:
        self._show("samples", done, total, "")

    def gathered(self, examples: Examples) -> None:
        train, held = len(examples.train), len(examples.held_out)
        skipped = f", {examples.skipped} samples not usable" if examples.skipped else ""
        slices = ", ".join(examples.slices())
        self._bars.console.print(
            f"examples   {train} to train on, {held} held out, of {slices}{skipped}", highlight=False
        )

    def epoch(self, done: int, total: int, loss: float) -> None:
        self._show("training", done, total, f"loss {loss:.3f}")

    def judging(self) -> None:
        self._bars.console.print("judging    int8 on held-out data, beside the version that runs", highlight=False)

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, note=note)
        self._bars.update(self._tasks[name], completed=done, total=total, note=note)


def _print(outcome: Outcome) -> None:
    rows = _show.table("slice", ">held out", ">old", ">new")
    for score in outcome.verdict.scores:
        old = "–" if score.old is None else f"{score.old:.1%}"
        rows.add_row(score.slice, str(score.examples), old, f"{score.new:.1%}")
    console = _show.console()
    console.print(rows)
    if outcome.version is None:
        console.print(f"refused: {outcome.verdict.reason}", highlight=False, style="yellow")
    else:
        console.print(f"registered {outcome.model} {outcome.version}: {outcome.verdict.reason}", highlight=False)


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "model": outcome.model,
        "accepted": outcome.verdict.accepted,
        "reason": outcome.verdict.reason,
        "old_version": outcome.old_version,
        "version": outcome.version,
        "slices": [
            {"slice": s.slice, "examples": s.examples, "old": s.old, "new": s.new} for s in outcome.verdict.scores
        ],
    }
