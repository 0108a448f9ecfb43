"""`marram sample`: the inputs devices kept: look at them, label them, make them the next model's training data."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from marram.bus.http import CloudApi
from marram.cli import _show
from marram.cli._context import Json, Token, Url, connect, print_json
from marram.schema.api import SampleView
from marram.schema.errors import Invalid, Missing, Permanent
from marram.schema.figures import figure_of
from marram.schema.units import format_size

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List, export and label the samples devices kept.")

App = Annotated[str | None, typer.Option("--app", help="Only of this app.")]
Device = Annotated[str | None, typer.Option("--device", help="Only from this device.")]
Labelled = Annotated[bool | None, typer.Option("--labelled/--unlabelled", help="Only those with, or without, a label.")]

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "application/json": ".json", "application/x-npy": ".npy"}
_COLUMNS = ["id", "label", "file", "device", "app", "answer", "confidence", "reason"]
_PAGE = 500


@app.command("list")
def list_(
    app: App = None,
    device: Device = None,
    labelled: Labelled = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000)] = 100,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Kept samples: why each was kept, what the model said, what a person says."""
    with connect(url, token) as api:
        found = _all(api, app, device, labelled, limit)
    if json:
        print_json(found)
        return
    if not found:
        print("No samples. A `keep:` step in an app keeps them.")
        return
    rows = _show.table(">id", "time", "device", "app", "kept because", "answer", "label", ">size")
    for item in found:
        answer, confidence = _answer(item)
        rows.add_row(
            str(item.id),
            _show.clock(item.time_s),
            item.device,
            _show.plain(item.app, 63),
            _show.plain(item.reason, 60),
            _show.plain(f"{answer} {confidence}".strip() or "–", 60),
            _show.plain(item.label or "–", 60),
            format_size(item.body_bytes),
        )
    _show.console().print(rows)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to write the pictures and labels.csv.")],
    app: App = None,
    device: Device = None,
    labelled: Labelled = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000)] = 10_000,
    url: Url = None,
    token: Token = None,
) -> None:
    """Write samples as files, and a labels.csv to fill in: then `marram sample label FOLDER/labels.csv`.

    Run again, it fetches what is new; labels typed into labels.csv meanwhile stay, those of other samples too.
    """
    sheet = folder / "labels.csv"
    typed = {id: label for id, label in _read_labels(sheet) if label} if sheet.exists() else {}
    with connect(url, token) as api:
        found = _all(api, app, device, labelled, limit)
        if not found:
            raise Missing("no samples to export", hint="`marram sample list` shows all.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _progress() as progress:
                for item in progress.track(found, description="samples"):
                    file = folder / _file(item)
                    if not file.exists():
                        _write(file, api.sample_body(item.id))
            _write_sheet(sheet, found, typed)
        except OSError as error:
            raise Permanent(f"cannot write there: {error.strerror}", where=str(folder)) from error
    print(f"{len(found)} samples in {folder}. Fill in the column `label`, then: marram sample label {sheet}")


@app.command()
def label(
    sheet: Annotated[Path, typer.Argument(help="A CSV file with the columns id and label.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Send labels from a CSV file (columns `id` and `label`; rows with an empty label are left as they are)."""
    pairs = [(id, label) for id, label in _read_labels(sheet) if label]
    if not pairs:
        raise Invalid("no row has a label", where=str(sheet), hint="Fill in the column `label`.")
    with connect(url, token) as api, _progress() as progress:
        for id, label in progress.track(pairs, description="labels"):
            api.label_sample(id, label)
    print(f"{len(pairs)} sample{'s' if len(pairs) != 1 else ''} labelled")


def _all(api: CloudApi, app: str | None, device: str | None, labelled: bool | None, limit: int) -> list[SampleView]:
    found: list[SampleView] = []
    after = 0
    while len(found) < limit:
        asked = min(_PAGE, limit - len(found))
        page = api.samples(app=app, device=device, labelled=labelled, after=after, limit=asked)
        found += page
        if len(page) < asked:
            break
        after = page[-1].id
    return found


def _answer(item: SampleView) -> tuple[str, str]:
    inner = item.data.get("result")
    result = inner if isinstance(inner, dict) else item.data
    confidence = figure_of(result, "confidence")
    return str(result.get("label") or ""), "" if confidence is None else f"{confidence:.2f}"


def _file(item: SampleView) -> str:
    return f"{item.id:06d}{_SUFFIXES.get(item.media or '', '.bin')}"


def _write(file: Path, body: bytes) -> None:
    fresh = file.with_name(f".{file.name}.part")
    fresh.write_bytes(body)
    fresh.replace(file)


def _write_sheet(sheet: Path, found: list[SampleView], typed: dict[int, str]) -> None:
    fresh = sheet.with_name(f".{sheet.name}.{os.getpid()}")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for item in found:
            answer, confidence = _answer(item)
            told = typed.pop(item.id, "") or item.label or ""
            texts = (item.device, item.app, answer, confidence, item.reason)
            rows.writerow([item.id, told, _file(item), *map(_harmless, texts)])
        rows.writerows(
            [id, told] for id, told in typed.items()
        )  # this export's filter left them out; nobody typed in vain
    fresh.replace(sheet)


def _harmless(text: str) -> str:
    """A spreadsheet must not take what a device sent for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _read_labels(sheet: Path) -> list[tuple[int, str]]:
    """(id, label) of each row. Raises Missing, Invalid naming the line."""
    try:
        with sheet.open(newline="", encoding="utf-8-sig") as file:
            # Spreadsheets of half the world save with ; between the fields.
            header = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter=max(",;\t", key=header.count))
            columns = rows.fieldnames or []
            if "id" not in columns or "label" not in columns:
                raise Invalid(
                    'has no columns "id" and "label"', where=str(sheet), hint="`marram sample export` makes one."
                )
            pairs = []
            for row in rows:
                try:
                    pairs.append((int(row["id"]), (row["label"] or "").strip()))
                except (TypeError, ValueError) as error:
                    where = f"{sheet}:{rows.line_num}"
                    raise Invalid(f'"{row["id"]}" is not the id of a sample', where=where) from error
            return pairs
    except FileNotFoundError as error:
        raise Missing(f"no such file {sheet}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Invalid(f"cannot be read as CSV: {error}", where=str(sheet)) from error


def _progress() -> Progress:
    out = _show.console()
    return Progress(console=out, transient=True, disable=not out.is_terminal)
