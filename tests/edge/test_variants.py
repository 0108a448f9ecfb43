from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.edge.test_bundles import bring, manifest
from tests.edge.world import Cloud, Device

from marram.edge.bundles import Bundles
from marram.edge.variants import card_alone, kept, needed
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.probe import onnx
from marram.schema.device import AppState, DesiredApp, ModelRef
from marram.schema.errors import Invalid, Missing, Permanent, Retryable
from marram.schema.model import Cut, Engine, Input, Manifest, ModelCard, Output, Task, Variant

LIST = (("torch", "net.pt2"), ("onnx", "net.onnx"), ("onnx-large", "large.onnx"))
BODIES = {
    "labels.txt": b"a\nb\nc\n",
    "net.pt2": b"1" * 9000,
    "net.onnx": onnx(),
    "large.onnx": b"3",
    "README": b"hello",
}


def card(**more: Any) -> ModelCard:
    described: dict[str, Any] = {
        "model": "net",
        "task": Task.CLASSIFICATION,
        "input": Input(kind="tensor", size=[4]),
        "output": Output(form="logits"),
        "variants": [Variant(name=name, engine=Engine(name.partition("-")[0]), file=file) for name, file in LIST],
        "labels": "labels.txt",
        "licence": "MIT",
        "source": "made for this test",
    }
    return ModelCard(**(described | more))


def bundle_files(**more: Any) -> dict[str, bytes]:
    return {CARD: dump_card(card(**more)).encode(), **BODIES, "large.onnx.data": b"4"}


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    made = Bundles(tmp_path, reserve_bytes=0)
    made.make()
    return made


def model(files: dict[str, bytes], *variants: str | None) -> ModelRef:
    return ModelRef(name="net", version=1, manifest=manifest(files), variants=list(variants or (None,)))


def paths(part: Manifest) -> set[str]:
    return {file.path for file in part.files}


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


ALWAYS = {CARD, "labels.txt", "README"}


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ((None,), {"net.onnx"}),  # the card's first is torch's, which is not installed in this test
        (("onnx",), {"net.onnx"}),
        (("onnx-large",), {"large.onnx", "large.onnx.data"}),
        ((None, "onnx-large"), {"net.onnx", "large.onnx", "large.onnx.data"}),
        (("torch",), {"net.pt2"}),  # who names one gets it, and is told by the worker that nothing runs it
    ],
)
def test_only_what_will_run_is_needed(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, variants: tuple[str | None, ...], expected: set[str]
) -> None:
    without(monkeypatch, "torch")
    files = bundle_files()
    bring(bundles, {CARD: files[CARD]})
    assert paths(needed(model(files, *variants), bundles, proven=False)) == ALWAYS | expected


PARTED = Cut(
    name="mid", variant="onnx", tensor="t", front="front.onnx", back="back.onnx", shape=[4], scale=1.0, bytes=4,
    loss=0.0, front_ms=1.0, back_ms=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "fronts", "expected"),
    [
        ([None], [], {"net.onnx"}),
        ([None], ["mid"], {"net.onnx", "front.onnx", "front.onnx.data"}),
        ([], ["mid"], {"front.onnx", "front.onnx.data"}),  # the cloud's model, parted
        ([], ["other"], set()),
    ],
)
def test_of_a_cut_a_device_needs_the_front_where_its_app_may_use_it(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, variants: list[str | None], fronts: list[str], expected: set[str]
) -> None:
    without(monkeypatch, "torch")
    parts = {"front.onnx": b"5", "front.onnx.data": b"6", "back.onnx": b"7", "back.onnx.data": b"8"}
    files = bundle_files(cuts=[PARTED]) | parts
    bring(bundles, {CARD: files[CARD]})
    wanted = ModelRef(name="net", version=1, manifest=manifest(files), variants=variants, fronts=fronts)
    assert paths(needed(wanted, bundles, proven=False)) == ALWAYS | expected
    if not variants:  # without an engine that works a front is of no use
        assert paths(needed(wanted, bundles, {Engine.ONNX: "broken"}, proven=False)) == ALWAYS


def test_the_card_comes_first_and_is_believed_only_when_it_is_the_one_announced(
    bundles: Bundles, tmp_path: Path
) -> None:
    wanted = model(bundle_files())
    assert paths(card_alone(wanted)) == {CARD}
    with pytest.raises(Retryable, match=r"model\.yaml is missing"):
        needed(wanted, bundles, proven=False)
    bring(bundles, {CARD: bundle_files()[CARD]})
    (blob,) = (tmp_path / "blobs").iterdir()
    blob.chmod(0o600)
    blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(Retryable, match=r"model\.yaml is missing or was damaged"):
        needed(wanted, bundles, proven=False)


def test_a_card_that_is_none_a_variant_and_an_engine_that_are_not_there_are_named(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = bundle_files() | {CARD: b"model: [net"}
    bring(bundles, files)
    with pytest.raises(Invalid, match=r"net@1/model\.yaml"):
        needed(model(files), bundles, proven=False)
    files = bundle_files()
    bring(bundles, {CARD: files[CARD]})
    with pytest.raises(Missing, match='no variant "int8"; it has torch, onnx, onnx-large'):
        needed(model(files, "int8"), bundles, proven=False)
    without(monkeypatch, "torch", "onnxruntime")
    with pytest.raises(Permanent, match="it takes onnxruntime or torch"):
        needed(model(files), bundles, proven=False)


def test_a_manifest_without_a_card_is_left_to_who_opens_it(bundles: Bundles) -> None:
    wanted = model({"net.onnx": b"1"})
    assert card_alone(wanted) == needed(wanted, bundles, proven=False) == wanted.manifest


def test_what_was_proven_keeps_its_variant_when_an_engine_is_installed_later(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = bundle_files()
    wanted = model(files)
    bring(bundles, {path: body for path, body in files.items() if path != "net.pt2"})
    assert "net.onnx" in paths(needed(wanted, bundles, proven=True))
    assert "net.pt2" in paths(needed(wanted, bundles, proven=False))
    assert "net.pt2" not in paths(needed(wanted, bundles, proven=True))
    # Both stay when files are swept; the variant that nobody chose goes.
    app = DesiredApp(name="gate", version=1, files=Manifest(files=[]), models=[wanted])
    bundles.sweep(kept([app], bundles))
    assert not bundles.missing([manifest({path: files[path] for path in (CARD, "labels.txt", "net.onnx")})])
    assert bundles.missing([manifest({"large.onnx": files["large.onnx"]})])


def test_the_installed_part_opens_and_only_as_a_part(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    files = bundle_files()
    bring(bundles, {CARD: files[CARD]})
    part = needed(model(files), bundles, proven=False)
    bring(bundles, {file.path: files[file.path] for file in part.files})
    folder = bundles.install(part)
    opened = Bundle.open(folder, partial=True)
    assert [variant.name for variant in opened.card.variants] == ["onnx"] and opened.labels == ("a", "b", "c")
    with pytest.raises(Missing, match=r'no such file "net\.pt2"'):
        Bundle.open(folder)


async def test_a_device_measures_what_it_can_run_and_takes_what_an_app_names(cloud: Cloud, device: Device) -> None:
    variants = [
        Variant(name="onnx-damaged", engine=Engine.ONNX, file="large.onnx"),
        Variant(name="onnx", engine=Engine.ONNX, file="net.onnx"),
    ]
    files = bundle_files(variants=variants)
    app = (
        b"app: ticking\nsource: {series: rows.csv, every: 20 ms, repeat: true}\n"
        b"steps: [{classify: net}]\nfiles: [rows.csv]\n"
    )
    rows = b"a,b,c,d\n" + b"2,-1,0,1\n" * 50
    net = {"name": "net", "version": 1, "manifest": cloud.manifest(files)}
    await cloud.want(cloud.app("ticking", 1, {"app.yaml": app, "rows.csv": rows}, models=[net]))
    await device.start()
    reported = await cloud.until_state("ticking", AppState.COMMITTED)
    await cloud.until_stored(5)
    (chosen,) = reported.chosen
    # The card's first is none, which only its loading could tell; a version on trial is not what finds it out.
    assert (chosen.model, chosen.variant) == ("net@1", "onnx")
    assert chosen.why.startswith("fastest here: onnx ") and chosen.why.endswith("onnx-damaged does not run here")
    fast, damaged = chosen.measured
    assert fast.variant == "onnx" and fast.p50_ms and fast.p95_ms and fast.load_ms and fast.memory_bytes
    assert damaged.variant == "onnx-damaged" and "large.onnx" in damaged.fault
    # A next version that names one has that one, and is not measured again after a restart.
    named = app.replace(b"classify: net", b"classify: net, variant: onnx-damaged")
    net |= {"variants": ["onnx-damaged"]}
    await cloud.want(cloud.app("ticking", 2, {"app.yaml": named, "rows.csv": rows}, models=[net]))
    back = await cloud.until_state("ticking", AppState.ROLLED_BACK, 2)
    assert "large.onnx" in back.reason
    await device.stop()
    await device.start()
    again = await cloud.until(lambda r: any(a.chosen and a.running == 1 for a in r.apps))
    assert next(a for a in again.apps).chosen[0].measured_s == chosen.measured_s
    await device.stop()
