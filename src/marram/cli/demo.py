"""`marram demo`: see it all work: real models, three devices, three links, a cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marram.lab.demo import Demo, Options
from marram.lab.demo_report import nothing_lost, silent
from marram.lab.demo_view import View

app = typer.Typer(add_completion=False)


@app.command(help="See it all work: real models, three devices, three links, a cut.")
def demo(
    duration: Annotated[float, typer.Option(help="Seconds to run after the set-up.", metavar="S")] = 40.0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Go on until Ctrl-C, to look around.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Write what was shown to this file, as an SVG picture.")] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.")] = False,
    folder: Annotated[Path, typer.Option(help="Where it keeps everything; emptied at the start.")] = Path("demo"),
    port: Annotated[
        int | None, typer.Option(help="Port of API and console (default: 8080, else a free one).", min=1, max=65535)
    ] = None,
) -> None:
    """Start a cloud and three devices here, rehearse, count, and end everything that was started.

    Exit status 1 where an event was lost or stored twice, or a device answered nothing while the links were cut.
    """
    options = Options(duration_s=duration, json_file=json, keep=keep, no_color=no_color, folder=folder, port=port)
    view = View(no_color=no_color, picture=picture)
    figures = Demo(options, view).run()
    view.save()
    if silent(figures) or not nothing_lost(figures):
        raise typer.Exit(1)
