"""A new version on a device: the one it replaces is asked beside it, by the worker, within its sandbox."""

from __future__ import annotations

from tests.edge.test_choices import card, variant
from tests.edge.world import Cloud
from tests.edge.world import Device as Agent

from marram.runtime import probe
from marram.runtime.bundle import CARD, dump_card
from marram.schema.device import AppState

APP = (
    b"app: ticking\nsource: {series: rows.csv, every: 10 ms, repeat: true}\n"
    b"steps: [{classify: net}]\nfiles: [rows.csv]\n"
)
ROWS = b"a,b,c,d\n" + b"2,-1,0,1\n" * 50


def bundle(*labels: str) -> dict[str, bytes]:
    made = card(variant("quick", "fp32")).model_copy(update={"labels": list(labels)})
    return {CARD: dump_card(made).encode(), "quick.onnx": probe.onnx()}


async def test_the_version_before_answers_a_sample_of_the_same_inputs(cloud: Cloud, device: Agent) -> None:
    first = {"name": "net", "version": 1, "manifest": cloud.manifest(bundle("a", "b", "c"))}
    await cloud.want(cloud.app("ticking", 1, {"app.yaml": APP, "rows.csv": ROWS}, models=[first]))
    await device.start()
    alone = await cloud.until_state("ticking", AppState.COMMITTED, 1)
    assert alone.stats["shadow_frames"] == 0
    # The next one calls what the first called "a" by another name: it disagrees on every input.
    second = {"name": "net", "version": 2, "manifest": cloud.manifest(bundle("x", "b", "c"))}
    await cloud.want(cloud.app("ticking", 2, {"app.yaml": APP, "rows.csv": ROWS}, models=[second]))
    told = await cloud.until(lambda r: any(a.version == 2 and a.stats.get("shadow_frames", 0) >= 3 for a in r.apps))
    (app,) = told.apps
    assert app.state in (AppState.PROVISIONAL, AppState.COMMITTED) and app.stats["shadow_skipped"] == ""
    assert app.stats["shadow_disagreements"] == app.stats["shadow_frames"] <= 1 + app.stats["frames"] / 10
    assert app.stats["confidence_frames"] >= app.stats["shadow_frames"] and app.stats["confidence_mean"] > 0
    await device.stop()
