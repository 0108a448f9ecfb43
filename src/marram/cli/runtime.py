"""`marram runtime`: which engines and accelerators this machine has, each tried with a small model."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from marram.runtime import machine
from marram.runtime.contract import Accelerator
from marram.runtime.engines import PLUGINS
from marram.schema.units import format_size

app = typer.Typer(add_completion=False, help="Show which engines and accelerators this machine has.")


@app.callback(invoke_without_command=True)
def show(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Run a small model on every engine and accelerator; PASS or FAIL. Exit status 2 where one that is here fails."""
    here = machine.inspect()
    console = Console(highlight=False)
    rows: list[Accelerator] = []
    with console.status("trying engines", spinner="dots") as status:
        for name, plugin in PLUGINS.items():
            status.update(f"trying {name.value}")
            rows += plugin.describe()
    if as_json:
        document = {"machine": dataclasses.asdict(here), "accelerators": [dataclasses.asdict(row) for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        _print(console, here, rows)
    if any(row.present and not row.ok for row in rows):
        raise typer.Exit(2)


def _print(console: Console, here: machine.Machine, rows: list[Accelerator]) -> None:
    parts = [here.board, here.processor, here.architecture, f"{here.cores} cores", format_size(here.memory_bytes)]
    console.print(" · ".join(part for part in parts if part), markup=False, soft_wrap=True)
    if here.int8:
        console.print(f"fast int8: {', '.join(here.int8)}", markup=False)
    if here.power_mode:
        others = ", ".join(mode for mode in here.power_modes if mode != here.power_mode)
        console.print(f"power mode: {here.power_mode}" + (f" (others: {others})" if others else ""), markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("engine", "runs on", "", "detail"):
        table.add_column(heading, no_wrap=heading != "detail")
    for row in rows:
        verdict = "[green]PASS[/]" if row.ok else "[red]FAIL[/]" if row.present else "[dim]–[/]"
        table.add_row(row.engine, row.device, verdict, row.detail, style=None if row.present else "dim")
    console.print(table)
