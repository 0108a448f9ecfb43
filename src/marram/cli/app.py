"""`marram app`: check app files before anything runs them; print the JSON Schema that editors complete from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from marram.schema.app import app_json_schema, parse_app
from marram.schema.errors import Missing

app = typer.Typer(no_args_is_help=True, help="Check app files; print their JSON Schema.")


@app.command()
def check(files: Annotated[list[Path], typer.Argument(help="App files (YAML).")]) -> None:
    """Check app files: names file, line, field, fault and next step; exit status 2 on any fault."""
    for file in files:
        if not file.is_file():
            raise Missing(f"no such file {file}")
        found = parse_app(file.read_text(errors="replace"), str(file))
        print(f"{file}: ok, {found.app}: {len(found.steps)} step{'s' if len(found.steps) != 1 else ''}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of app files, for editors (`# yaml-language-server: $schema=app.schema.json`)."""
    print(json.dumps(app_json_schema(), indent=2))
