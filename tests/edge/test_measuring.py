"""`marram device bench` and `marram edge bench`, with a real agent: measured anew, told, and the best one runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.edge.test_choices import bring, card, model, slow_onnx, variant
from tests.edge.world import DEVICE, Cloud
from tests.edge.world import Device as Agent

from marram.bus import subjects
from marram.bus.codec import BenchNudge
from marram.edge import measuring
from marram.edge.bundles import Bundles
from marram.edge.choices import FILE
from marram.edge.deploy import AppRecord
from marram.edge.measuring import bench, measure_here
from marram.edge.state import Folder
from marram.edge.variants import part
from marram.runtime import probe
from marram.runtime.bundle import CARD, dump_card
from marram.schema.device import AppState, DesiredApp, Measured
from marram.schema.errors import Invalid, Missing
from marram.schema.model import Manifest

APP = (
    b"app: ticking\nsource: {series: rows.csv, every: 20 ms, repeat: true}\n"
    b"steps: [{classify: net}]\nfiles: [rows.csv]\n"
)
ROWS = b"a,b,c,d\n" + b"2,-1,0,1\n" * 50


async def test_a_person_asks_for_figures(cloud: Cloud, device: Agent) -> None:
    files = {
        CARD: dump_card(card(variant("slow"), variant("quick"))).encode(),
        "slow.onnx": slow_onnx(20_000),
        "quick.onnx": probe.onnx(),
    }
    net = {"name": "net", "version": 1, "manifest": cloud.manifest(files)}
    await cloud.want(cloud.app("ticking", 1, {"app.yaml": APP, "rows.csv": ROWS}, models=[net]))
    await device.start()
    first = (await cloud.until_state("ticking", AppState.COMMITTED)).chosen[0]
    assert first.variant == "quick" and {m.variant for m in first.measured} == {"slow", "quick"}

    # At the device, beside the agent: what is here, which by now is the one that runs.
    (here,) = await measure_here(Folder(device.folder.path))
    assert here.variant == "quick" and here.measured_s != first.measured_s
    with pytest.raises(Missing, match='no app here runs a model "other"'):
        await measure_here(Folder(device.folder.path), "other")

    # From the cloud: all of them anew.
    (device.folder.path / FILE).unlink()
    await cloud.bus.publish(subjects.desired(DEVICE), BenchNudge("net").pack())
    anew = await cloud.until(
        lambda r: any(
            c.measured_s and c.measured_s > (here.measured_s or 0) and len(c.measured) == 2
            for a in r.apps
            for c in a.chosen
        )
    )
    (app,) = anew.apps
    assert app.chosen[0].variant == "quick" and app.state is AppState.COMMITTED and app.restarts == 0
    await device.stop()


async def test_what_the_agent_deletes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = card(variant("other"), variant("quick"))
    files = {CARD: dump_card(made).encode(), "other.onnx": slow_onnx(2), "quick.onnx": probe.onnx()}
    folder, net = Folder(tmp_path), model(files)
    folder.make()
    bundles = Bundles(folder.path)
    bundles.make()
    bring(bundles, files)
    app = DesiredApp(name="app", version=1, files=Manifest(files=[]), models=[net])
    folder.save_record(AppRecord(target=app, state=AppState.COMMITTED))
    asked = []

    async def swept(place: Path, variants: Sequence[str], *more: Any) -> list[Measured]:
        asked.append(list(variants))
        bundles.sweep([part(net, bundles, [made.variants[1]])])
        return await bench(place, variants, *more)

    monkeypatch.setattr(measuring, "bench", swept)
    (here,) = await measure_here(folder)
    assert asked == [["other", "quick"], ["quick"]]
    assert here.variant == "quick" and [(m.variant, m.fault) for m in here.measured] == [("quick", "")]


@pytest.mark.parametrize("payload", [b"\xc1", b"x", BenchNudge("n").pack()[:-1]])
def test_a_nudge_of_nonsense_is_one(payload: bytes) -> None:
    with pytest.raises(Invalid):
        BenchNudge.unpack(payload)
    assert BenchNudge.unpack(BenchNudge(None).pack()) == BenchNudge(None)


def test_nothing_deployed_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Folder(tmp_path_factory.mktemp("empty"))
    folder.make()
    with pytest.raises(Missing, match="no app here runs a model"):
        asyncio.run(measure_here(folder))
