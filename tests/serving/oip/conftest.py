"""A server of the protocol over two models that answer for real, and tritonclient for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.oip.scene import Plain, Running, colours_onnx, write_bundle

from marram.runtime import probe
from marram.runtime.model import Model
from marram.serving.oip.server import Place, Server


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of both models."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "tiny": write_bundle(
            folder / "tiny",
            "tiny",
            probe.tflite(),
            "model.tflite",
            input={"kind": "tensor", "size": [4]},
            labels=["ant", "bee", "cat"],
        ),
        "colours": write_bundle(
            folder / "colours",
            "colours",
            colours_onnx(),
            "model.onnx",
            version=3,
            input={"kind": "image", "layout": "NCHW", "size": [8, 8], "std": [255.0]},
            labels=["red", "green", "blue"],
        ),
    }


@pytest.fixture(scope="module")
def plain(bundles: dict[str, Path]) -> Iterator[Plain]:
    models = [Model.load(folder) for folder in bundles.values()]
    yield Plain(models)
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def server(plain: Plain) -> Iterator[Server]:
    """Both ways, on free ports of this machine, for everybody on it."""
    with Running(lambda: Server(plain, Place(http=0, grpc=0))) as running:
        yield running


@pytest.fixture
def clients(server: Server) -> Iterator[Callable[[str], Any]]:
    """tritonclient's blocking client of either way: `clients("http")`."""
    import tritonclient.grpc
    import tritonclient.http

    with contextlib.ExitStack() as closing:

        def make(way: str) -> Any:
            if way == "grpc":
                return closing.enter_context(
                    contextlib.closing(tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}"))
                )
            return closing.enter_context(
                contextlib.closing(tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http}"))
            )

        yield make
