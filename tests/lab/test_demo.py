"""The demo for real, only smaller: cloud, devices and links are the real ones; its models are tiny, and it is short."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from marram.cli import execute
from marram.lab.demo import CLOUD_MODEL, DEVICES, EDGE_MODEL, Demo, Options
from marram.lab.demo_device import Reading, Spec
from marram.lab.demo_ground import free_port
from marram.lab.demo_report import account, nothing_lost, silent, verdict
from marram.lab.demo_view import Still, View, devices
from marram.lab.ledger import Ledger
from marram.lab.photos import SIZE, write_photos
from marram.lab.traces import parse_trace
from marram.runtime import library
from marram.runtime.bundle import dump_card
from marram.schema.api import EventView
from marram.schema.errors import Conflict, Invalid
from marram.schema.event import EventKind
from marram.schema.model import Engine, Input, ModelCard, Output, Task, Variant

onnx = pytest.importorskip("onnx")


def add_tiny_model(name: str, precision: Any, folder: Path) -> None:
    """A classifier in the library whose three classes are how red, green and blue the picture is."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["logits"], axes=[1, 2], keepdims=0)],
        name,
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 32, 32, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    card = ModelCard(
        model=name,
        task=Task.CLASSIFICATION,
        input=Input(size=[32, 32], mean=[127.0], std=[128.0]),
        output=Output(form="logits"),
        variants=[Variant(name="only", engine=Engine.ONNX, file="model.onnx", precision=precision)],
        labels=["red", "green", "blue"],
        licence="Apache-2.0",
        source="made by this test",
    )
    (folder / "model.yaml").write_text(dump_card(card))
    library.add(folder)


def any_port() -> int:
    """Not 8080, which every demo likes best: tests run side by side."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_short_demo_loses_nothing_and_leaves_nothing(
    tmp_path: Path, marram_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tiny_model(EDGE_MODEL, "int8", tmp_path / "edge")
    add_tiny_model(CLOUD_MODEL, "int8", tmp_path / "cloud")
    folder, file = tmp_path / "demo", tmp_path / "out.json"
    options = Options(
        duration_s=7.5,
        json_file=file,
        folder=folder,
        port=any_port(),
        devices=(Spec("gate-wifi", "wifi:1", 30.0), Spec("gate-lte", "lte:1", 2.0)),
    )
    figures = Demo(options, View(no_color=True)).run()
    assert json.loads(file.read_text()) == figures
    assert figures["events_lost"] == figures["events_duplicated"] == figures["events_given_up"] == 0
    assert figures["events_recorded"] == figures["events_stored"] > 50
    assert 2 < figures["outage_s"] < 10
    assert figures["waiting_at_heal"] > 0
    assert figures["setup_s"] > 0
    for device in figures["devices"]:
        assert device["results_during_outage"] > 0, device
        assert device["frames"] >= device["edge"] + device["cloud"] > 0
        assert device["p50_ms"] <= device["p95_ms"]
    written = capsys.readouterr().out
    assert "lost 0 · twice 0" in written
    assert "✂ links cut" in written
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []
    # The folder is a demo's: the next one may empty it. Another's it leaves alone.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(Conflict, match="not a demo's"):
        Demo(Options(folder=tmp_path / "mine"), View(no_color=True)).run()
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_taken_port_and_a_wrong_duration_are_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Conflict, match="is taken"):
            free_port(taken.getsockname()[1])
    with pytest.raises(Invalid, match="--duration"):
        Demo(Options(duration_s=1), View())


def test_photos_are_natural_and_of_one_size(tmp_path: Path) -> None:
    assert write_photos(tmp_path / "photos") >= 10
    for file in (tmp_path / "photos").iterdir():
        with Image.open(file) as picture:
            assert picture.size == SIZE
            assert picture.mode == "RGB"
            assert np.asarray(picture).std() > 5


def event(place: str, latency_ms: float, time_s: float, *, audit: bool = False, fallback: bool = False) -> EventView:
    data = {"place": place, "latency_ms": latency_ms, "audit": audit, "fallback": fallback}
    return EventView(id=1, device="gate", app="a", kind=EventKind.RESULT, time_s=time_s, data=data)


class Span:
    setup_s, outage_s, drain_s, waiting_at_heal = 20.0, 10.0, 0.5, 7
    cut_unix_s, heal_unix_s = 100.0, 110.0


def test_the_figures_are_those_of_the_events() -> None:
    events = [event("cloud", 20 + n, 90 + n) for n in range(5)]
    events += [event("edge", 140.0, 100.0 + n) for n in range(3)]
    events += [event("edge", 130.0, 120, audit=True), event("cloud", 25.0, 121, audit=True)]
    events += [event("edge", 3140.0, 122, audit=True, fallback=True)]
    ledger = Ledger(recorded=11, stored=11, events={"gate": events})
    figures = account(ledger, [Reading("gate", {}, {"dropped": 2})], Span())
    (gate,) = figures["devices"]
    assert (gate["frames"], gate["edge"], gate["cloud"], gate["dropped"]) == (11, 3, 5, 2)
    assert (gate["p50_ms"], gate["p95_ms"]) == (24.0, 140.0)
    assert gate["always_edge_p50_ms"] == 130.0
    assert gate["always_cloud_p50_ms"] == 3140.0  # one of two fell back: what always-cloud would have cost
    assert gate["results_during_outage"] == 3
    assert gate["p50_ratio"] == pytest.approx(24 / 130, abs=1e-3)
    assert [style for _, style in verdict(figures)] == ["green", "green"]
    bad = account(Ledger(recorded=11, stored=10, lost=1, events={"gate": []}), [Reading("gate", {}, {})], Span())
    assert [style for _, style in verdict(bad)] == ["red", "red"]
    assert (nothing_lost(figures), nothing_lost(bad)) == (True, False)
    assert (silent(figures), silent(bad)) == ([], ["gate"])
    assert "but none of gate" in verdict(bad)[0][0]
    assert bad["devices"][0]["p50_ms"] is None


def test_the_table_shows_what_is_known_and_nothing_else() -> None:
    cut = Reading(
        "gate-lte", {"cut": True, "up_bit_s": 1e6, "rtt_s": 0.05}, {"fps": 9.6, "edge": 1, "cloud": 3, "p50_ms": 88.2}
    )
    view = View(no_color=True)
    with view.out.capture() as written:
        view.out.print(devices([cut, Reading("gate-3g", {}, {})]))
    assert "✂ cut" in written.get()
    assert "88 ms" in written.get()
    assert "75%" in written.get()


def test_without_a_terminal_a_long_wait_is_no_silence() -> None:
    said: list[str] = []
    often = threading.Semaphore(0)

    def say(line: str) -> None:
        said.append(line)
        often.release()

    still = Still(say, every_s=0.01)
    still.waits("models", "fetching weights")
    still.waits("models", "calibrating")
    for _ in range(4):
        assert often.acquire(timeout=30)
    still.stop()
    heard = len(said)
    assert said[0] == "models    fetching weights …" and said[-1].startswith("models    calibrating … (")
    still.waits("cloud", "starting")
    assert said[heard] == "cloud     starting …"
    still.stop()
    still.stop()


@pytest.mark.parametrize(
    ("lost", "twice", "answers", "status"), [(0, 0, 3, 0), (1, 0, 3, 1), (0, 1, 3, 1), (0, 0, 0, 1)]
)
def test_the_exit_status_is_whether_the_promises_held(
    lost: int, twice: int, answers: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {
        "events_lost": lost,
        "events_duplicated": twice,
        "devices": [{"name": "a", "results_during_outage": 5}, {"name": "b", "results_during_outage": answers}],
    }
    monkeypatch.setattr("marram.lab.demo.Demo.run", lambda self: figures)
    assert execute(["demo"]) == status


def test_the_cast_has_the_links_it_names() -> None:
    for spec in DEVICES:
        assert spec.name.removeprefix("gate-") == spec.trace.partition(":")[0]
        assert parse_trace(spec.trace).length_s > 60
