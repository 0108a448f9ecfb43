"""What a cascade learnt lies in the app's working folder, where the next life of its worker finds it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import onnx
from PIL import Image as Pillow
from tests.edge.world import LONG_S

from marram.bus.client import Bus
from marram.edge.relay import Relay
from marram.edge.supervisor import Patience, Worker, WorkerSpec
from marram.runtime.bundle import CARD, Bundle

_CARD = """
model: shades
task: classification
input: {size: [8, 8], layout: NCHW, mean: [127.5], std: [127.5]}
output: {form: logits}
variants: [{name: onnx, engine: onnx, file: model.onnx}]
labels: [red, green, blue]
licence: Apache-2.0
source: made by the tests
"""
_APP = """
app: looking
source: {images: photos}
steps: [{classify: ./shades, cloud: shades, cascade: {accuracy: 95 %}}]
raw: allowed
"""


def _app(folder: Path) -> Bundle:
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["y"])],
        "shades",
        [helper.make_tensor_value_info("x", real, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", real, [1, 3])],
    )
    (folder / "shades").mkdir(parents=True)
    (folder / "photos").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "shades" / "model.onnx"))
    (folder / "shades" / CARD).write_text(_CARD)
    Pillow.fromarray(np.full((8, 8, 3), (250, 5, 5), np.uint8)).save(folder / "photos" / "red.png")
    (folder / "app.yaml").write_text(_APP)
    return Bundle.open(folder / "shades")


async def test_a_worker_leaves_what_it_learnt_and_takes_up_what_it_finds(tmp_path: Path) -> None:
    card = _app(tmp_path / "app").card
    bus = await Bus.connect("nats://127.0.0.1:9", "nobody", "nothing")
    learnt = tmp_path / "work" / ".marram-learnt.json"

    async def life() -> dict[str, object]:
        spec = WorkerSpec(
            device="pi-1", app="looking", version=1, folder=tmp_path / "app", models={},
            cloud=[{"name": "shades", "version": 1, "card": card.model_dump(mode="json")}],
            outbox=tmp_path / "outbox.db", work=tmp_path / "work", log=tmp_path / "app.log",
        )  # fmt: skip
        worker = await Worker.start(spec, lambda channel: Relay(bus, channel, ()), Patience())
        ended = await asyncio.wait_for(asyncio.shield(worker.exited), LONG_S)
        assert ended.finished, ended
        return worker.stats

    stats = await life()
    assert stats["cascade"] == "learning: 0 of 200 answers compared, all are sent to the cloud"
    assert stats["unverified"] == 1  # the cloud is away
    document = json.loads(learnt.read_text())
    (part,) = document.values()
    part["tally"].update(asked=150)
    learnt.write_text(json.dumps(document))
    stats = await life()
    assert str(stats["cascade"]).startswith("learning: 150 of 200")
    await bus.close()
