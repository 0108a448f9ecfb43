"""`marram app`: check app files before anything runs them; print the JSON Schema that editors complete from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from marram.cli._appfile import DETECTOR, AppFile
from marram.cli._context import Token, Url, connect, signed_in
from marram.cli._shipping import CloudModels, unset
from marram.pipeline.check import look_ahead
from marram.schema.app import app_json_schema
from marram.schema.errors import Invalid, MarramError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Check app files; print their JSON Schema.")

_CLOUD_S = 3.0


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="App files (YAML).", metavar="FILE", show_default=False)],
    url: Url = None,
    token: Token = None,
) -> None:
    """Check app files without running them: file, line, field, fault and next step.

    Looks at what any machine can tell: fields, conditions, models, privacy, files. Where a cloud is known here, it is
    asked for the models that this machine lacks, and whether the app's secrets are set.

    Notes and faults go to stderr; the exit status is 2 where a file has a fault.
    """
    faults: list[str] = []
    # One that does not answer costs a moment, once.
    elsewhere = CloudModels(lambda: connect(url, token, timeout_s=_CLOUD_S)) if signed_in(url) else None
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    for file in files:
        try:
            read = AppFile.read(file)
            found = look_ahead(read.app, read.folder, elsewhere)
            if read.app.secrets and signed_in(url):
                found.notes += unset(read.app, lambda: connect(url, token, timeout_s=_CLOUD_S))
        except MarramError as error:
            faults.append(str(error))
            continue
        # What a command makes by itself on first use is nobody's to build.
        unbuilt = [error for error in found.unbuilt if DETECTOR not in error.what]
        for note in (*unbuilt, *found.notes):
            notes.print(f"note  {read.page.locate(note)}", style="yellow", markup=False)
        if found.faults:
            faults += [str(read.page.locate(fault)) for fault in found.faults]
        else:
            steps = len(read.app.steps)
            print(f"{file}: ok, {read.app.app}: {steps} step{'s' if steps != 1 else ''}")
    if faults:
        raise Invalid("\n".join(faults))


@app.command()
def schema() -> None:
    """Print the JSON Schema of app files, which editors complete and check from.

    Begin an app file with: # yaml-language-server: $schema=app.schema.json
    """
    print(json.dumps(app_json_schema(), indent=2))
