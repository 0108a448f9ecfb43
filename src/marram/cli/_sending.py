"""`marram model codecs` and `marram model cut`: what sending an input costs, and where a model may be parted.

Both measure on this machine and write what they found into the card: of a folder in place, of a model in the library as
its next version, since a version that is there never changes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from marram.cli import _show
from marram.cli._context import Json, print_json
from marram.placement.envelope import Envelope, Gain, Option, options_of
from marram.runtime import library
from marram.runtime.build import sending
from marram.runtime.build.cut import Cutter, Inputs, Point, find, points, variant_of
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.codecs import codecs_for
from marram.runtime.image import Image
from marram.schema import paths
from marram.schema.errors import Invalid, Permanent
from marram.schema.model import Codec, Cut, ModelCard, Variant
from marram.schema.units import format_rate, format_size

Reference = Annotated[str, typer.Argument(help="name, name@3, or the path of a folder.")]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Measure on the pictures of this folder (default: photos of scikit-image)."),
]
# A tensor with more numbers than this times the picture's own is not timed: it takes longer to send than the picture,
# and whoever sends that leaves all of the work to the cloud.
_NO_SMALLER = 1.0
# With this many pictures a scan of fifty cuts takes half a minute.
_SCANNED = 80
# A usual device beside a server: a Raspberry Pi 4 or 5 beside two of its cores.
_SLOWER = 4.0

Report = Callable[[str, int, int], None]


def codecs(name: Reference, images: Images = None, json: Json = False) -> None:
    """Measure what each codec costs: bytes, and how many answers it changes. Written into the model's card."""
    bundle = library.resolve(name, Path.cwd())
    with _progress(json) as report:
        report("reading pictures", 0, 1)
        given = sending.gathered(images)
        measured = sending.codecs(bundle, given, report)
    saved = _saved(bundle, name, {"codecs": [each.codec for each in measured]}, None)
    if json:
        rows = [each.codec.model_dump() | {"changed": round(each.changed, 4)} for each in measured]
        print_json({"reference": saved.reference, "pictures": len(given), "codecs": rows})
        return
    allowed = {codec.name for codec in codecs_for(saved.card)}
    table = _show.table("codec", ">bytes", ">encoding", ">accuracy lost", ">answers changed", "may be chosen")
    for each in measured:
        codec = each.codec
        chosen = "yes" if codec.name in allowed else f"no, more than {saved.card.accuracy_budget:.1%}"
        table.add_row(
            codec.name, f"{codec.bytes:,}", f"{codec.encode_ms:.2f} ms", f"{codec.loss:.1%}",
            f"{each.changed:.1%}", chosen,
        )  # fmt: skip
    _show.console().print(table)
    print(
        f"on {len(given)} pictures; what changed none of them changes fewer than {_bound(len(given)):.1%} (95 % sure)"
    )
    if images is None:
        print("those show textures and details, which suffer most: measure on pictures like yours with --images FOLDER")
    _tell(saved, name)


def cut(
    name: Reference,
    at: Annotated[str | None, typer.Option("--at", help="Part it here: a cut that the list names.")] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="Which variant (default: the first in ONNX).")
    ] = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """List where a model can be parted and whether that ever pays; with --at, part it there and put it on the card."""
    bundle = library.resolve(name, Path.cwd())
    chosen = variant_of(bundle, variant)
    found = points(bundle.file(chosen))
    with _progress(json) as report, tempfile.TemporaryDirectory(prefix="marram-cut-") as temporary:
        study = _Study.of(bundle, chosen, images, report)
        if at is None:
            scanned = study.scan(found, Path(temporary), report)
        else:
            point = find(found, at)
            report(point.name, 0, 1)
            made = study.make(point, Path(temporary))
            # One of the same name is made anew.
            cuts = [*(each for each in bundle.card.cuts if each.name != made.name), made]
            saved = _saved(bundle, name, {"cuts": cuts}, Path(temporary))
    if at is None:
        _print_scan(study, found, scanned, json)
    else:
        _print_made(study, saved, made, name, json)


@dataclass(frozen=True, slots=True)
class _Study:
    """One variant, the pictures it is judged by, and what sending it whole costs."""

    bundle: Bundle
    variant: Variant
    images: list[Image]
    codecs: list[Codec]

    @classmethod
    def of(cls, bundle: Bundle, variant: Variant, images: Path | None, report: Report) -> _Study:
        if bundle.card.input.kind != "image":
            raise Invalid(
                "takes readings: they are few bytes, and this command measures with pictures", where=bundle.reference
            )
        report("reading pictures", 0, 1)
        given = sending.gathered(images)
        return cls(bundle, variant, given, bundle.card.codecs or _costs(bundle, given, report))

    def make(self, point: Point, folder: Path) -> Cut:
        """The two files in `folder`, and what goes onto the card. Raises as `Cutter.make`."""
        cutter = Cutter(self.bundle, self.variant, Inputs.of(self.images))
        try:
            return cutter.make(point, folder)
        finally:
            cutter.close()

    def scan(self, found: list[Point], folder: Path, report: Report) -> list[Cut]:
        """Every point that is smaller than the picture, made and measured."""
        pixels = 3 * self.bundle.card.input.size[0] * self.bundle.card.input.size[1]
        small = [point for point in found if point.size <= _NO_SMALLER * pixels]
        step = max(1, len(self.images) // _SCANNED)
        cutter = Cutter(self.bundle, self.variant, Inputs.of(self.images[::step]))
        try:
            cuts = []
            for number, point in enumerate(small):
                report(point.name, number, len(small))
                cuts.append(cutter.make(point, folder))
            return cuts
        finally:
            cutter.close()

    def gains(self, cuts: list[Cut]) -> list[Gain]:
        """Which of `cuts` pay, were they on the card, beside the cloud and the same model whole at the edge."""
        return Envelope(self._options(cuts, edge=True)).gains()

    def gains_beside_cloud(self, cuts: list[Cut]) -> list[Gain]:
        """The same beside the cloud alone, for a device `_SLOWER` times slower: it has another model, or no room."""
        return Envelope(self._options(cuts, edge=False), [_SLOWER]).gains()

    def _options(self, cuts: list[Cut], *, edge: bool) -> list[Option]:
        card = self.bundle.card.model_copy(update={"codecs": self.codecs, "cuts": cuts})
        return options_of(card, codecs_for(card), card.cuts_within(), edge=edge)


def _costs(bundle: Bundle, images: list[Image], report: Report) -> list[Codec]:
    step = max(1, len(images) // _SCANNED)
    return [each.codec for each in sending.codecs(bundle, images[::step], report)]


# ---------------------------------------------------------------- said


def _print_scan(study: _Study, found: list[Point], cuts: list[Cut], json: bool) -> None:
    beside_edge, beside_cloud = study.gains(cuts), study.gains_beside_cloud(cuts)
    if json:
        print_json(
            {
                "reference": study.bundle.reference,
                "variant": study.variant.name,
                "codecs": [codec.model_dump() for codec in study.codecs],
                "cuts": [each.model_dump(mode="json") for each in cuts],
                "larger": [point.name for point in found if point.name not in {each.name for each in cuts}],
                "gains": [_gain(gain) for gain in beside_edge],
                "gains_without_the_model_at_the_edge": [_gain(gain) for gain in beside_cloud],
            }
        )
        return
    budget = study.bundle.card.accuracy_budget
    shares = {gain.option.name.removeprefix("cut:"): gain for gain in beside_edge}
    table = _show.table("cut", "crosses", ">bytes", ">edge", ">cloud", ">accuracy lost", "pays")
    for each in cuts:
        gain = shares.get(each.name)
        pays = "–" if gain is None else f"up to {gain.share:.0%} at {_links(gain)}, edge × {gain.slowdown:.2g}"
        table.add_row(
            each.name, "×".join(map(str, each.shape)), f"{each.bytes:,}", f"{each.front_ms:.2f} ms",
            f"{each.back_ms:.2f} ms", f"{each.loss:.1%}", pays if each.loss <= budget else "– (over the budget)",
        )  # fmt: skip
    out = _show.console()
    out.print(table)
    _print_whole(study)
    if larger := len(found) - len(cuts):
        print(f"{larger} more are no smaller than the picture: sending that is always sooner")
    out.print(f"\n{verdict(study.bundle.card, beside_edge, beside_cloud)}", markup=False, soft_wrap=True)


def _print_whole(study: _Study) -> None:
    allowed = codecs_for(study.bundle.card.model_copy(update={"codecs": study.codecs}))
    sent = ", ".join(f"{codec.name} {codec.bytes:,} bytes" for codec in sorted(allowed, key=lambda each: each.bytes))
    print(f"\nthe picture itself: {sent} (within the accuracy budget of {study.bundle.card.accuracy_budget:.1%})")


def verdict(card: ModelCard, beside_edge: list[Gain], beside_cloud: list[Gain]) -> str:
    """In words whether parting the model pays: beside edge and cloud, and beside the cloud alone."""
    if beside_edge:
        best = beside_edge[0]
        return (
            f"Parting {card.reference} pays: {best.option.name} saves up to {best.share:.0%} beside the better of edge "
            f"and cloud, at {_links(best)}, where the edge is {best.slowdown:.2g} times slower than the cloud."
        )
    never = (
        f"No cut of {card.reference} ever pays beside this model whole at the edge and whole in the cloud: none makes "
        "what is sent smaller by more than the share of the work that it leaves to the cloud."
    )
    if not beside_cloud:
        return never
    best = max(beside_cloud, key=lambda gain: gain.share)
    return (
        f"{never} Where the device has another model of its own and only answers of this one will do (place: surest), "
        f"{best.option.name} is sooner than the picture at {_links(best)} on a device {_SLOWER:g} times slower than "
        "the cloud."
    )


def _print_made(study: _Study, saved: Bundle, made: Cut, name: str, json: bool) -> None:
    beside_edge, beside_cloud = study.gains([made]), study.gains_beside_cloud([made])
    if json:
        print_json({"reference": saved.reference, "cut": made.model_dump(mode="json"),
                    "gains": [_gain(gain) for gain in beside_edge],
                    "gains_without_the_model_at_the_edge": [_gain(gain) for gain in beside_cloud]})  # fmt: skip
        return
    sizes = [format_size((saved.folder / file).stat().st_size) for file in (made.front, made.back)]
    print(
        f"{made.name}: {'×'.join(map(str, made.shape))} cross, {made.bytes:,} bytes; edge {made.front_ms:.2f} ms "
        f"({sizes[0]}), cloud {made.back_ms:.2f} ms ({sizes[1]}); {made.loss:.1%} of accuracy lost"
    )
    _print_whole(study)
    if made.loss > saved.card.accuracy_budget:
        print(f"that is more than its accuracy budget of {saved.card.accuracy_budget:.1%}: no app will use it")
    _show.console().print(verdict(saved.card, beside_edge, beside_cloud), markup=False, soft_wrap=True)
    _tell(saved, name)


def _tell(saved: Bundle, name: str) -> None:
    print(f"{saved.reference}: written into {saved.folder / CARD}")
    where = saved.folder if _is_path(name) else saved.reference
    print(f"next: marram model add {where if _is_path(name) else saved.folder}, or name {saved.reference} in an app")


def _links(gain: Gain) -> str:
    """The links on which it saves a worthwhile share; a card's times are in milliseconds."""
    least, most = (8e3 / beta if beta > 0 else float("inf") for beta in (gain.most_per_byte_s, gain.least_per_byte_s))
    if most == float("inf"):
        return "any link" if least == 0 else f"more than {format_rate(least)}"
    return f"less than {format_rate(most)}" if least < 1 else f"{format_rate(least)} to {format_rate(most)}"


def _gain(gain: Gain) -> dict[str, Any]:
    def rate(per_byte_ms: float) -> float | None:
        return 8e3 / per_byte_ms if per_byte_ms > 0 else None

    return {
        "way": gain.option.name,
        "share": round(gain.share, 4),
        "slowdown": gain.slowdown,
        "least_bit_s": rate(gain.most_per_byte_s),
        "most_bit_s": rate(gain.least_per_byte_s),
    }


def _bound(tried: int) -> float:
    """The most that a share can be, 95 % sure, where it was not seen once in so many (the rule of three)."""
    return min(1.0, 3 / tried)


# ---------------------------------------------------------------- written


def _is_path(reference: str) -> bool:
    return "/" in reference or reference.startswith(".")


def _saved(bundle: Bundle, reference: str, update: dict[str, Any], files: Path | None) -> Bundle:
    """`bundle` with this on its card and the files of `files` in it: in place, or as the library's next version.

    Raises Permanent where the disk refuses, and what opening it again raises.
    """
    card = ModelCard.model_validate(
        bundle.card.model_dump() | {k: [e.model_dump() for e in v] for k, v in update.items()}
    )
    made = sorted(files.iterdir()) if files is not None else []
    try:
        if _is_path(reference):
            for file in made:
                shutil.copyfile(file, bundle.folder / file.name)
            fresh = bundle.folder / f".{CARD}.new"
            fresh.write_text(dump_card(card), encoding="utf-8")
            fresh.replace(bundle.folder / CARD)
            return Bundle.open(bundle.folder)
        card = card.model_copy(update={"version": library.versions(card.model)[-1] + 1})
        with tempfile.TemporaryDirectory(dir=paths.models(), prefix=".building-") as temporary:
            folder = Path(temporary)
            for name in bundle.files():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.folder / name, folder / name)
            for file in made:
                shutil.copyfile(file, folder / file.name)
            (folder / CARD).write_text(dump_card(card), encoding="utf-8")
            return library.add(folder)
    except OSError as error:
        raise Permanent(f"cannot write the model: {error.strerror}", where=str(bundle.folder)) from error


@contextmanager
def _progress(quiet: bool) -> Iterator[Report]:
    console = _show.console(stderr=quiet)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def report(what: str, done: int, of: int) -> None:
            bars.update(task, description=what, completed=done, total=of if of > 1 else None)

        yield report
