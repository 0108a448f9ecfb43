"""Two small models that answer for real: `tiny` takes four numbers, `colours` pictures of any size; and a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from marram.runtime import codecs, probe
from marram.runtime.image import encode_jpeg
from marram.runtime.model import Model
from marram.schema.errors import Missing
from marram.serving.contract import Answer, Question, ServedModel
from marram.serving.oip.server import Server


def layer(x: np.ndarray) -> np.ndarray:
    """What `tiny` computes. x: float32 (N, 4) -> (N, 3)."""
    return np.maximum(x @ probe.WEIGHTS.T + probe.BIAS, 0)


def picture(colour: str, height: int = 30, width: int = 40) -> bytes:
    """A JPEG all of one colour."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., ["red", "green", "blue"].index(colour)] = 250
    return encode_jpeg(image)


def write_bundle(folder: Path, name: str, content: bytes, file: str, **card: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    engine = "onnx" if file.endswith(".onnx") else "litert"
    document = {
        "model": name,
        "task": "classification",
        "output": {"form": "logits"},
        "variants": [{"name": "fp32", "engine": engine, "file": file}],
        "licence": "Apache-2.0",
        "source": "a test",
        **card,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(document))
    return folder


def colours_onnx() -> bytes:
    """The mean of each colour of an 8 × 8 picture, ten times over."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Mul", ["flat", "ten"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor("ten", TensorProto.FLOAT, [1], [10.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


class Plain:
    """`Answering` in its plainest form: one thread, one item after the other."""

    def __init__(self, models: list[Model]) -> None:
        self._models = {model.card.model: model for model in models}
        self._thread = ThreadPoolExecutor(1)
        self.asked: list[Question] = []
        self.failing: Exception | None = None

    def models(self) -> list[ServedModel]:
        return [
            ServedModel(m.card, True, m.session.inputs, m.session.outputs, m.variant.engine.value)
            for m in self._models.values()
        ]

    async def infer(self, question: Question) -> Answer:
        self.asked.append(question)
        if self.failing is not None:
            raise self.failing
        model = self._models.get(question.model)
        if model is None:
            raise Missing("gone")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._infer, model, question)

    def _infer(self, model: Model, question: Question) -> Answer:
        if question.payload is not None:
            data = codecs.decode(question.payload, model.card)
            result = model.predict(data, question.payload.frame_size, question.options)
            return Answer(model.card.model, model.card.version, result, service_s=0.001)
        columns = [question.tensors[info.name] for info in model.session.inputs]
        rows = [model.session.run([np.asarray(c[i : i + 1]) for c in columns]) for i in range(columns[0].shape[0])]
        outputs = {
            info.name: np.concatenate([row[at] for row in rows]) for at, info in enumerate(model.session.outputs)
        }
        return Answer(model.card.model, model.card.version, None, outputs, service_s=0.001)


class Running:
    """A server of the protocol on a loop and thread of its own, so that blocking clients can be used."""

    def __init__(self, make: Callable[[], Server]) -> None:
        self._make = make
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()

        async def begin() -> tuple[Server, Any]:
            server = self._make()
            running = server.running()
            await running.__aenter__()
            return server, running

        server, self._running = asyncio.run_coroutine_threadsafe(begin(), self.loop).result(20)
        return server

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._running.__aexit__(None, None, None), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()
