"""An engine that is installed and does not load: the next variant runs, and it is said which failed and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.edge.test_variants import bundle_files
from tests.edge.world import Cloud, Device

from marram.edge.engines import Engines
from marram.runtime.probe import tflite
from marram.schema.device import AppState, DesiredApp, ReportedApp
from marram.schema.model import Engine, Variant

ONNX = Variant(name="onnx", engine=Engine.ONNX, file="net.onnx")
LITERT = Variant(name="litert", engine=Engine.LITERT, file="net.tflite")
RAISES = "raise ImportError('libonnx.so.1: cannot open shared object file')"
DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"


def app(cloud: Cloud, version: int, *variants: Variant, named: str | None = None) -> DesiredApp:
    files = {**bundle_files(variants=list(variants or (ONNX, LITERT))), "net.tflite": tflite()}
    step = "{classify: net}" if named is None else f"{{classify: net, variant: {named}}}"
    text = (
        f"app: ticking\nsource: {{series: rows.csv, every: 20 ms, repeat: true}}\nsteps: [{step}]\nfiles: [rows.csv]\n"
    )
    net = {"name": "net", "version": 1, "manifest": cloud.manifest(files), "variants": [named]}
    rows = b"a,b,c,d\n" + b"2,-1,0,1\n" * 50
    return cloud.app("ticking", version, {"app.yaml": text.encode(), "rows.csv": rows}, models=[net])


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A folder whose packages are found before those installed."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    return folder


def spoil(folder: Path, package: str, code: str) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)


@pytest.mark.parametrize(
    ("code", "why"), [(RAISES, "libonnx.so.1: cannot open"), (DIES, "killed by SIGILL")], ids=["raises", "dies"]
)
async def test_why_an_engine_does_not_load_is_said(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    spoil(spoilt, "onnxruntime", code)
    monkeypatch.setenv("PYTHONPATH", str(spoilt))
    engines = Engines()
    assert await engines.examine([Engine.ONNX])
    assert why in engines.broken[Engine.ONNX]


async def test_the_next_variant_runs_until_the_engine_is_mended(cloud: Cloud, device: Device, spoilt: Path) -> None:
    spoil(spoilt, "onnxruntime", DIES)
    await cloud.want(app(cloud, 1))
    await device.start(PYTHONPATH=str(spoilt))
    reported = await cloud.until_state("ticking", AppState.COMMITTED)
    assert reported.reason.startswith("onnxruntime does not load here: killed by SIGILL")
    (chosen,) = reported.chosen
    assert chosen.variant == "litert" and [each.variant for each in chosen.measured] == ["litert"]
    await cloud.until_stored(5)
    # Mended it is measured as if it had never been broken.
    shutil.rmtree(spoilt / "onnxruntime")
    await cloud.want(app(cloud, 2))
    reported = await cloud.until_state("ticking", AppState.COMMITTED, 2)
    (chosen,) = reported.chosen
    assert reported.reason == "" and {each.variant for each in chosen.measured} == {"onnx", "litert"}
    assert "2 started" in device.words() and "failed its trial" not in device.words()
    await device.stop()
    assert "Traceback" not in device.words()


@pytest.mark.parametrize("named", [None, "onnx"])
async def test_where_no_other_will_do_it_is_rolled_back_at_once(
    cloud: Cloud, device: Device, spoilt: Path, named: str | None
) -> None:
    spoil(spoilt, "onnxruntime", DIES)
    variants = (ONNX,) if named is None else (ONNX, LITERT)
    await cloud.want(app(cloud, 1, *variants, named=named))
    await device.start(PYTHONPATH=str(spoilt))
    reported = await cloud.until_state("ticking", AppState.ROLLED_BACK)
    assert "onnxruntime does not load here: killed by SIGILL" in reported.reason and "marram runtime" in reported.reason
    assert device.words().count("version 1 started") == 1
    await device.stop()


async def test_an_engine_that_breaks_under_a_proven_app_is_passed_over(
    cloud: Cloud, device: Device, spoilt: Path
) -> None:
    await cloud.want(app(cloud, 1))
    await device.start()
    reported = await cloud.until_state("ticking", AppState.COMMITTED)
    await device.stop()
    # Which of the two is faster is the machine's business: the one that it chose breaks.
    (chosen,) = reported.chosen
    spoil(spoilt, {"onnx": "onnxruntime", "litert": "ai_edge_litert"}[chosen.variant], RAISES)
    await device.start(PYTHONPATH=str(spoilt))

    def on_the_other(app: ReportedApp) -> bool:
        # The card's first is passed over with a word; the second was only the faster one, and there is nothing to say.
        told = "does not load here" in app.reason or chosen.variant == "litert"
        return bool(app.stats.get("frames")) and told and [each.variant for each in app.chosen] != [chosen.variant]

    await cloud.until(lambda r: any(map(on_the_other, r.apps)))
    await device.stop()


async def test_an_engine_that_loads_is_not_accused() -> None:
    engines = Engines()
    assert not await engines.examine([Engine.ONNX])
    assert engines.broken == {}
