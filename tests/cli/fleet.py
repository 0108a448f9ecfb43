"""What the fleet's commands are tried with: a served API, its context file, and a command line that is read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.cloud.api.serving import Served, serving

import marram.cli
from marram.cloud.access import write_context

CARD = """
model: {name}
version: {version}
task: classification
input: {{size: [8, 8], layout: NCHW}}
output: {{form: logits}}
variants: [{{name: onnx, engine: onnx, file: model.onnx}}]
labels: [red, green, blue]
licence: Apache-2.0
source: made by the tests
"""


class Terminal:
    """Runs commands as `marram …` would, and keeps what they said."""

    def __init__(self, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
        self.served = served
        self._capsys = capsys

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What the command printed on stdout; its exit status must be `status`. Faults are in `said`."""
        self._capsys.readouterr()
        found = marram.cli.execute([str(part) for part in arguments])
        shown = self._capsys.readouterr()
        assert found == status, f"status {found}: {shown.out}{shown.err}"
        self.said = " ".join(shown.err.split())
        assert "Traceback" not in shown.err + shown.out
        return shown.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def fault(self, *arguments: str) -> str:
        """The one line of a command that must fail."""
        self(*arguments, status=2)
        return self.said


@pytest.fixture
def marram_(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.delenv("MARRAM_URL", raising=False)
    monkeypatch.delenv("MARRAM_TOKEN", raising=False)
    with serving(tmp_path / "cloud") as served:
        write_context(served.url, served.token)
        yield Terminal(served, capsys)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a tiny ONNX classifier: `bundle("name", version=1, beside=folder)`."""

    def make(name: str, version: int = 1, beside: Path = tmp_path) -> Path:
        folder = beside / name
        folder.mkdir(parents=True, exist_ok=True)
        helper, real = onnx.helper, onnx.TensorProto.FLOAT
        nodes = [helper.make_node("GlobalAveragePool", ["p"], ["m"]), helper.make_node("Flatten", ["m"], ["l"])]
        ends = (("p", [1, 3, 8, 8]), ("l", [1, 3]))
        values = [helper.make_tensor_value_info(end, real, shape) for end, shape in ends]
        graph = helper.make_graph(nodes, "colours", values[:1], values[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            str(folder / "model.onnx"),
        )
        (folder / "model.yaml").write_text(CARD.format(name=name, version=version))
        return folder

    return make
