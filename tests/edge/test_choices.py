"""Which variant is the best: by what was measured here, within floor and limit; and what measuring may cost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.edge.test_variants import bring, model

from marram.edge import choices as choosing
from marram.edge import measuring
from marram.edge.bundles import Bundles
from marram.edge.choices import Choices, keeps_floor
from marram.edge.engines import Engines
from marram.edge.measuring import ASKED, DEPLOYING, Ways, bench, measure_app
from marram.edge.variants import Taste, candidates, chosen, needed
from marram.lab.attacks import models as attacks
from marram.runtime import probe
from marram.runtime.bundle import CARD, dump_card
from marram.schema.device import DesiredApp, Measured, ModelRef
from marram.schema.errors import Missing
from marram.schema.model import Engine, File, Input, Manifest, ModelCard, Output, Task, Variant


def variant(name: str, precision: Any = "int8", accuracy: float | None = None, engine: Engine = Engine.ONNX) -> Variant:
    return Variant(name=name, engine=engine, file=f"{name}.onnx", precision=precision, accuracy=accuracy)


def card(*variants: Variant, floor: float | None = None) -> ModelCard:
    return ModelCard(
        model="net", task=Task.CLASSIFICATION, input=Input(kind="tensor", size=[4]), output=Output(form="logits"),
        variants=list(variants), accuracy_floor=floor, labels=["a", "b", "c"], licence="MIT", source="a test",
    )  # fmt: skip


def parts(*names: str) -> dict[str, list[File]]:
    return {name: [File(path=f"{name}.onnx", sha256=f"{n:064x}", size_bytes=n)] for n, name in enumerate(names, 1)}


def measured(name: str, p50_ms: float | None, memory_bytes: int = 50_000_000, fault: str = "") -> Measured:
    return Measured(variant=name, p50_ms=p50_ms, memory_bytes=memory_bytes, fault=fault)


@pytest.mark.parametrize(
    ("floor", "variants", "kept"),
    [
        (None, [("a", "int8", None), ("b", "fp32", 0.1)], ["a", "b"]),
        (0.7, [("a", "int8", 0.69), ("b", "int8", 0.7), ("c", "fp32", 0.72)], ["b", "c"]),
        # Unmeasured it does not keep it, but for the one in full precision: the others are measured against that.
        (0.7, [("a", "int8", None), ("b", "fp32", None)], ["b"]),
        (0.7, [("a", "fp32", None), ("b", "fp32", None), ("c", "int8", 0.8)], ["c"]),
        (0.7, [("a", "fp32", 0.6), ("b", "int8", None)], []),
    ],
)
def test_the_accuracy_floor(floor: float | None, variants: list[Any], kept: list[str]) -> None:
    assert [v.name for v in keeps_floor(card(*(variant(*each) for each in variants), floor=floor))] == kept


def ranked(tmp_path: Path, figures: list[Measured], limit: int | None = None) -> tuple[list[str], str]:
    made = card(variant("a"), variant("b"), variant("c"))
    files, kept = parts("a", "b", "c"), Choices(tmp_path)
    kept.keep(made, [(next(v for v in made.variants if v.name == m.variant), files[m.variant], m) for m in figures])
    # Another process, or this one after a restart, reads the same.
    order, why = Choices(tmp_path).ranked(made, made.variants, files, limit, "net@1")
    return [v.name for v in order], why


def test_the_fastest_comes_first_and_says_why(tmp_path: Path) -> None:
    order, why = ranked(tmp_path, [measured("a", 9.0), measured("b", 3.0), measured("c", 5.0)])
    assert (order, why) == (["b", "c", "a"], "fastest here: b 3 ms, c 5 ms, a 9 ms")


def test_what_is_as_fast_as_another_leaves_it_to_the_card(tmp_path: Path) -> None:
    assert ranked(tmp_path, [measured("a", 3.1), measured("b", 3.0), measured("c", 9.0)])[0] == ["a", "b", "c"]


def test_nothing_over_the_memory_limit_is_taken(tmp_path: Path) -> None:
    figures = [measured("a", 9.0), measured("b", 3.0, 400_000_000), measured("c", 5.0)]
    order, why = ranked(tmp_path, figures, 300_000_000)
    assert order == ["c", "a", "b"] and why.endswith("b takes 400 MB, the limit is 300 MB")
    assert ranked(tmp_path, figures)[0][0] == "b"


def test_what_does_not_run_comes_last_and_what_is_not_known_leaves_the_cards_order(tmp_path: Path) -> None:
    assert ranked(tmp_path, [measured("a", None, fault="no"), measured("b", 3.0), measured("c", 2.0)])[0] == [
        "c",
        "b",
        "a",
    ]
    order, why = ranked(tmp_path / "other", [measured("b", 3.0)])
    assert order == ["a", "b", "c"] and "not measured" in why


def test_a_figure_is_for_a_file_an_engine_and_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, files, kept = card(variant("a"), variant("b")), parts("a", "b"), Choices(tmp_path)
    kept.keep(made, [(made.variants[0], files["a"], measured("a", 1.0))])
    # Another version of the model, another name, the same file: known.
    next_one = made.model_copy(update={"version": 2, "labels": ["x", "y", "z"]})
    assert kept.figures(next_one, variant("renamed"), files["a"]) == measured("renamed", 1.0)
    assert kept.figures(made, made.variants[1], files["b"]) is None
    assert (
        kept.figures(made.model_copy(update={"input": Input(kind="tensor", size=[2, 2])}), made.variants[0], files["a"])
        is None
    )
    other_output = made.model_copy(update={"output": Output(form="softmax")})
    assert kept.figures(other_output, made.variants[0], files["a"]) is None
    monkeypatch.setattr(choosing, "_engine", lambda engine: (2, 2))
    assert kept.figures(made, made.variants[0], files["a"]) is None
    monkeypatch.undo()
    monkeypatch.setattr(choosing, "_machine", lambda: ["another"])
    assert kept.figures(made, made.variants[0], files["a"]) is None


def test_what_another_process_measured_counts_from_the_next_look_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing.time, "time", lambda: 1e9)  # each content is as long as the one before
    made, files, here, bench = card(variant("a"), variant("b")), parts("a", "b"), Choices(tmp_path), Choices(tmp_path)
    here.keep(made, [(made.variants[0], files["a"], measured("a", 1.0))])
    bench.keep(made, [(made.variants[1], files["b"], measured("b", 2.0))])
    assert here.figures(made, made.variants[1], files["b"]) == measured("b", 2.0)
    # What this one keeps next takes nothing of the other's away.
    before = (tmp_path / choosing.FILE).stat()
    bench.keep(made, [(made.variants[0], files["a"], measured("a", 3.0))])
    os.utime(tmp_path / choosing.FILE, ns=(before.st_atime_ns, before.st_mtime_ns))  # within one tick of the clock
    here.keep(made, [(made.variants[1], files["b"], measured("b", 4.0))])
    assert Choices(tmp_path).figures(made, made.variants[0], files["a"]) == measured("a", 3.0)
    (tmp_path / choosing.FILE).unlink()
    assert here.figures(made, made.variants[0], files["a"]) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": 1}', b'{"x": {"measured": {"p50_ms": "fast"}}}'])
def test_a_damaged_file_only_means_measuring_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / choosing.FILE).write_bytes(content)
    made, files, kept = card(variant("a"), variant("b")), parts("a", "b"), Choices(tmp_path)
    assert kept.figures(made, made.variants[0], files["a"]) is None
    kept.keep(made, [(made.variants[0], files["a"], measured("a", 1.0))])
    assert Choices(tmp_path).figures(made, made.variants[0], files["a"]) == measured("a", 1.0)


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_MOST", 3)
    kept, made = Choices(tmp_path), card(variant("a"))
    for number in range(6):
        kept.keep(
            made, [(made.variants[0], [File(path="a", sha256=f"{number:064x}", size_bytes=1)], measured("a", 1.0))]
        )
    assert len(json.loads((tmp_path / choosing.FILE).read_bytes())) == 3


# ---------------------------------------------------------------- measuring for real


def slow_onnx(turns: int) -> bytes:
    """The probe's work, after a loop that only takes time."""
    body = attacks._field(1, attacks._node(b"Identity", [b"go"], [b"on"]))
    body += attacks._field(1, attacks._node(b"Abs", [b"sum"], [b"more"])) + attacks._field(2, b"body")
    for each in (attacks._scalar(b"i", 7), attacks._scalar(b"go", 9), attacks._value(b"sum", 1, 3)):
        body += attacks._field(11, each)
    body += attacks._field(12, attacks._scalar(b"on", 9)) + attacks._field(12, attacks._value(b"more", 1, 3))
    attribute = attacks._field(1, b"body") + attacks._field(6, body) + attacks._field(20, 5)
    starts = attacks._numbers(b"starts", 0), attacks._numbers(b"ends", 3), attacks._numbers(b"axes", 1)
    count = attacks._field(2, 7) + attacks._field(8, b"turns") + attacks._field(9, turns.to_bytes(8, "little"))
    first = attacks._node(b"Slice", [b"x", b"starts", b"ends", b"axes"], [b"cut"])
    loop = attacks._node(b"Loop", [b"turns", b"", b"cut"], [b"y"], attribute)
    return attacks._onnx(first, loop, initializers=(*starts, count))


def folder_of(tmp_path: Path, **files: bytes) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / CARD).write_text(dump_card(card(*(variant(name) for name in files))))
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    return folder


async def test_variants_are_timed_and_one_that_falls_takes_no_other_along(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, slow=slow_onnx(20_000), damaged=b"no model", quick=probe.onnx())
    found = {m.variant: m for m in await bench(folder, ["slow", "damaged", "quick"], None, DEPLOYING)}
    assert "damaged.onnx" in found["damaged"].fault and found["damaged"].p50_ms is None
    quick, slow = found["quick"], found["slow"]
    assert quick.p50_ms and slow.p50_ms and quick.p50_ms < slow.p50_ms
    assert quick.p95_ms and quick.p95_ms >= quick.p50_ms and quick.load_ms
    assert quick.memory_bytes and 20_000_000 < quick.memory_bytes < 2_000_000_000


async def test_what_a_variant_takes_is_what_it_takes_alone(tmp_path: Path) -> None:
    """An engine loaded for one variant is none of the memory of the next."""
    folder = folder_of(tmp_path, first=probe.tflite(), quick=probe.onnx())
    first = variant("first", engine=Engine.LITERT)
    (folder / CARD).write_text(dump_card(card(first, variant("quick"))))
    (alone,) = await bench(folder, ["quick"], None, ASKED)
    other, after = await bench(folder, ["first", "quick"], None, ASKED)
    assert other.p50_ms and alone.memory_bytes and after.memory_bytes
    assert after.memory_bytes < 1.05 * alone.memory_bytes


def test_what_a_variant_does_to_its_process_is_told(tmp_path: Path) -> None:
    tried = (
        "import os, sys; from marram.edge.bench import _apart\n"
        "print(_apart(lambda: None), _apart(lambda: os.kill(os.getpid(), 9)), _apart(lambda: sys.exit('no')))"
    )
    said = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.split() == ["0", "-9", "1"]


async def test_one_that_never_ends_costs_the_budget_and_no_more(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, quick=probe.onnx(), endless=slow_onnx(1 << 62), last=probe.onnx())
    found = await bench(folder, ["quick", "endless", "last"], None, replace(DEPLOYING, measure_s=0.3))
    assert [m.variant for m in found] == ["quick"]


async def test_a_process_that_dies_is_said_of_the_variant_it_died_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([([measured("a", 1.0)], -11), ([measured("c", 2.0)], 0)])
    asked: list[list[str]] = []

    async def one(document: dict[str, Any], limit_s: float, confined: object) -> tuple[list[Measured], int | None]:
        asked.append(list(document["variants"]))
        return next(said)

    monkeypatch.setattr(measuring, "_one_process", one)
    found = await bench(tmp_path, ["a", "b", "c"], None, DEPLOYING)
    assert asked == [["a", "b", "c"], ["c"]]
    assert [(m.variant, m.fault) for m in found] == [
        ("a", ""), ("b", "the process that measured it ended: killed by SIGSEGV"), ("c", "")
    ]  # fmt: skip


class Device:
    """Blobs, choices, and a link that a test makes as slow as it likes."""

    def __init__(
        self, tmp_path: Path, bundles: Bundles, files: dict[str, bytes], clock: list[float], rate: float
    ) -> None:
        self.bundles, self.files, self.clock, self.rate = bundles, files, clock, rate
        self.fetched: list[str] = []
        self.choices = Choices(tmp_path)
        bring(bundles, {CARD: files[CARD]})
        self.ways = Ways(bundles, self.choices, Engines(), self.fetch, lambda folder: None)
        self.model: ModelRef = model(files)
        self.app = DesiredApp(name="app", version=1, files=Manifest(files=[]), models=[self.model])
        self.taste = Taste(choices=self.choices)

    async def fetch(self, manifests: list[Manifest]) -> None:
        for file in self.bundles.missing(manifests):
            self.fetched.append(file.path)
            self.clock[0] += file.size_bytes / self.rate
            bring(self.bundles, {file.path: self.files[file.path]})

    def taken(self) -> list[str]:
        (one,) = chosen(self.model, self.bundles, self.taste, proven=False)
        return [one.variant, one.why]


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    made = Bundles(tmp_path / "device")
    made.make()
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def three(tmp_path: Path, bundles: Bundles) -> dict[str, bytes]:
    slow, quick = slow_onnx(20_000), probe.onnx()
    padded = slow + attacks._field(6, bytes(200_000))  # doc_string: bytes to fetch, nothing to compute
    made = card(variant("slow"), variant("quick"))
    return {CARD: dump_card(made).encode(), "slow.onnx": padded, "quick.onnx": quick}


async def test_a_first_deployment_measures_and_takes_the_fastest(
    tmp_path: Path,
    bundles: Bundles,
    three: dict[str, bytes],
) -> None:
    device = Device(tmp_path, bundles, three, [0.0], 1e9)
    assert device.taken()[0] == "slow"
    await measure_app(device.app, device.ways, device.taste)
    assert device.taken()[0] == "quick" and "fastest here: quick" in device.taken()[1]
    assert {f.path for f in needed(device.model, bundles, device.taste, proven=False).files} == {CARD, "quick.onnx"}
    # Known now: neither another app nor a restart fetches or measures anything.
    device.fetched.clear()
    bundles.sweep([needed(device.model, bundles, device.taste, proven=False)])
    again = replace(device.ways, choices=Choices(tmp_path))
    await measure_app(device.app, again, Taste(choices=again.choices))
    assert device.fetched == []


async def test_over_a_slow_link_nothing_is_fetched_only_to_be_measured(
    tmp_path: Path,
    bundles: Bundles,
    three: dict[str, bytes],
    clock: list[float],
) -> None:
    files = {**three, "quick.onnx": three["quick.onnx"] + attacks._field(6, bytes(2_000_000))}
    device = Device(tmp_path, bundles, files, clock, 50_000.0)
    await measure_app(device.app, device.ways, device.taste)
    assert device.fetched == ["slow.onnx"]
    name, why = device.taken()
    assert name == "slow" and why == "first on the card: measuring the others would fetch 2 MB more at 400 kbit/s"


async def test_with_nothing_to_choose_nothing_is_measured(
    tmp_path: Path,
    bundles: Bundles,
    three: dict[str, bytes],
) -> None:
    one = {CARD: dump_card(card(variant("quick"))).encode(), "quick.onnx": three["quick.onnx"]}
    device = Device(tmp_path, bundles, one, [0.0], 1e9)
    await measure_app(device.app, device.ways, device.taste)
    assert device.fetched == [] and device.taken() == ["quick", "the only one that this device can run"]
    named = device.model.model_copy(update={"variants": ["quick"]})
    assert candidates(named, bundles, device.taste) == []


async def test_a_device_whose_variants_all_fall_below_the_floor_says_so(
    tmp_path: Path,
    bundles: Bundles,
    three: dict[str, bytes],
) -> None:
    made = card(variant("slow", accuracy=0.5), variant("quick"), floor=0.9)
    device = Device(tmp_path, bundles, {**three, CARD: dump_card(made).encode()}, [0.0], 1e9)
    with pytest.raises(Missing, match=r"accuracy floor of 0\.9 \(slow 0\.5, quick unmeasured\)"):
        await measure_app(device.app, device.ways, device.taste)


def children() -> list[str]:
    """Processes of this one that are not gone."""
    return [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]


async def test_cancelled_it_leaves_no_process(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, endless=slow_onnx(1 << 62))
    before = children()
    task = asyncio.create_task(bench(folder, ["endless"], None, DEPLOYING))
    while children() == before:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == before
