"""A cascade with real models: the edge tells colours apart, the cloud's model knows that what is muddy is blue."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image as Pillow

from marram.pipeline.build import Around, Pipeline
from marram.pipeline.contract import CloudInput, Reply
from marram.pipeline.escalation import Escalation
from marram.pipeline.memory import Memory
from marram.pipeline.stats import Stats
from marram.placement.cascade import Action
from marram.placement.contract import Ask, Considered, Decision, LinkEstimate
from marram.runtime import image as pictures
from marram.runtime.model import Model
from marram.schema.app import InferStep, parse_app
from marram.schema.errors import NotReady
from marram.schema.model import ModelCard, Task
from marram.schema.result import Detection, Place, Result

from .conftest import CARD, SIZE, Seen, make_bundle

MUDDY = (140, 120, 100)  # the edge: red, but hardly surer of it than of green
CLEAR = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}


@pytest.fixture(scope="session")
def wise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle: as `colours`, ten times as sure, and what is no clear colour is blue."""
    helper, weight = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Mul", ["flat", "ten"], ["larger"]),
        helper.make_node("Add", ["larger", "lift"], ["logits"]),
    ]
    weights = [
        weight(np.array(10.0, np.float32), "ten"),
        weight(np.array([[0.0, 0.0, 6.0]], np.float32), "lift"),
    ]
    card = CARD.replace("model: colours", "model: wise")
    return make_bundle(tmp_path_factory.mktemp("models") / "wise", nodes, weights, card)


class Cloud:
    """A replica in this process. `gate` holds replies back; `refuse`: asking fails at once."""

    def __init__(self, bundle: Path) -> None:
        self._model = Model.load(bundle)
        self._threads = ThreadPoolExecutor(1)
        self.card: ModelCard = self._model.card
        self.gate = threading.Event()
        self.gate.set()
        self.refuse = False
        self.asked = 0

    def infer(self, request: CloudInput, timeout_s: float) -> Future[Reply]:
        if self.refuse:
            raise NotReady("no replica")
        self.asked += 1
        return self._threads.submit(self._answer, request)

    def probe(self, size_bytes: int, timeout_s: float, about: tuple[str, int] | None = None) -> Future[Reply]:
        return self._threads.submit(Reply, None, 0.0, 0.0)

    def _answer(self, request: CloudInput) -> Reply:
        self.gate.wait(30)
        result = self._model.predict(pictures.decode(request.payload.body), request.payload.frame_size)
        return Reply(result, 0.0, 0.001)

    def close(self) -> None:
        self.gate.set()
        self._threads.shutdown()
        self._model.close()


@pytest.fixture
def cloud(wise: Path) -> Iterator[Cloud]:
    served = Cloud(wise)
    yield served
    served.close()


class Steady:
    """A policy that asks the cloud where it is asked about it, at 20 ms; the link is `up` or not."""

    def __init__(self, *, up: bool = True, timeout_s: float = 30.0) -> None:
        self._up, self._timeout_s = up, timeout_s

    def decide(self, ask: Ask) -> Decision:
        place = Place.CLOUD if ask.objective == "cloud" else Place.EDGE
        way = next(way for way in ask.ways if way.place is place)
        considered = (Considered(way, 0.02, 0.01, 0.03),)
        return Decision(place, way, 0.02, "as the test says", self._timeout_s, considered=considered)

    def learn(self, outcome: Any) -> None: ...

    def hedged(self) -> None: ...

    def probe_due(self, now_s: float) -> int | None:
        return None

    def link(self) -> LinkEstimate:
        return LinkEstimate(8e6, 0.004, self._up)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures, every fourth muddy."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20):
        colour = MUDDY if number % 4 == 3 else list(CLEAR.values())[number % 3]
        Pillow.fromarray(np.full((SIZE, SIZE, 3), colour, np.uint8)).save(photos / f"{number:02}.png")
    return photos


def muddy(index: int) -> bool:
    return index % 20 % 4 == 3


Cascading = Callable[..., tuple[Pipeline, Seen]]


@pytest.fixture
def cascading(tmp_path: Path, colours: Path, folder: Path, cloud: Cloud) -> Cascading:
    """Build an app with a cascade over the folder, again and again."""

    def make(cascade: str, policy: Any = None, *, more: str = "") -> tuple[Pipeline, Seen]:
        seen = Seen()
        app = parse_app(
            f"app: test\nsource: {{images: {folder}, repeat: true}}\nraw: allowed\n"
            f"steps: [{{classify: {colours}, cloud: wise, cascade: {cascade}{more}}}]\n"
        )
        around = Around(
            outlet=seen, sinks=(seen,), remote=cloud, cloud_cards={"wise": cloud.card},
            policy=policy or Steady(), memory=tmp_path / "memory.json",
        )  # fmt: skip
        return Pipeline.build(app, tmp_path, around), seen

    return make


Running = Callable[[Pipeline], threading.Thread]


def see(pipeline: Pipeline, seen: Seen, count: int, running: Running) -> None:
    thread = running(pipeline)
    assert seen.arrived(count)
    pipeline.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_only_the_unsure_escalate_once_the_target_is_learnt(cascading: Cascading, running: Running) -> None:
    pipeline, seen = cascading("{accuracy: 95 %, checks: 10 %}")
    see(pipeline, seen, 700, running)
    # While it learns everything is asked; what was in flight at the end of that too.
    assert all(frame.placed.escalated for frame in seen.frames[:150])
    # Those that are on their way when it is stopped are answered by the edge.
    frames, ending = seen.frames[:700], seen.frames[700:]
    for frame in frames[300:]:
        assert frame.placed.place is (Place.CLOUD if muddy(frame.index) else Place.EDGE)
        assert frame.placed.escalated is muddy(frame.index)
        assert frame.placed.verified
    # Every answer is what the cloud's model would have said.
    assert {frame.result.label for frame in frames if muddy(frame.index)} == {"blue"}
    stats = pipeline.stats()
    assert stats["escalated"] >= 300 and stats["unverified"] <= len(ending)
    assert 0 < stats["checked"] < 200
    assert stats["disagreed"] >= 0.2 * stats["escalated"] / 2
    assert "accepts answers surer than" in stats["cascade"] and "target 0.95" in stats["cascade"]
    event = next(event.data for event in seen.events[300:] if muddy(event.data["frame"]))
    assert event["escalated"] is True and event["label"] == "blue"


def test_a_restart_remembers_and_an_absence_changes_nothing(
    cascading: Cascading, running: Running, tmp_path: Path, cloud: Cloud
) -> None:
    see(*cascading("{accuracy: 95 %}"), 350, running)
    remembered = (tmp_path / "memory.json").read_text()
    assert json.loads(remembered)

    asked = cloud.asked
    pipeline, seen = cascading("{accuracy: 95 %}", Steady(up=False))
    see(pipeline, seen, 40, running)
    assert cloud.asked == asked
    assert all(frame.placed.place is Place.EDGE and not frame.placed.verified for frame in seen.frames)
    assert seen.events[0].data["verified"] is False
    assert pipeline.stats()["unverified"] >= 40 and pipeline.stats()["escalated"] == 0
    assert (tmp_path / "memory.json").read_text() == remembered

    pipeline, seen = cascading("{accuracy: 95 %}")
    see(pipeline, seen, 40, running)
    for frame in seen.frames:
        assert frame.placed.escalated is muddy(frame.index)


def test_what_the_cloud_does_not_answer_stands_unverified(cascading: Cascading, running: Running, cloud: Cloud) -> None:
    cloud.gate.clear()
    pipeline, seen = cascading("{accuracy: 95 %}", Steady(timeout_s=0.01))
    thread = running(pipeline)
    assert seen.arrived(12)
    assert all(frame.placed.fallback and not frame.placed.verified for frame in seen.frames[:12])
    assert {frame.result.label for frame in seen.frames[:12] if muddy(frame.index)} == {"red"}  # the edge's own
    assert pipeline.stats()["unverified"] >= 12
    # Replies that come after all tell whether it was right; no other is let through.
    cloud.refuse = True
    assert pipeline.stats()["disagreed"] == 0
    cloud.gate.set()
    more = 40
    while not pipeline.stats()["disagreed"]:
        assert more < 100_000 and seen.arrived(more)
        more += 40
    pipeline.stop()
    thread.join(30)


def test_a_refusal_costs_no_answer(cascading: Cascading, running: Running, cloud: Cloud) -> None:
    cloud.refuse = True
    pipeline, seen = cascading("{accuracy: 95 %}")
    see(pipeline, seen, 20, running)
    assert all(frame.placed.place is Place.EDGE and not frame.placed.verified for frame in seen.frames)


def test_a_budget_goes_to_the_muddy_ones(cascading: Cascading, running: Running) -> None:
    pipeline, seen = cascading("{offload: 10 %, checks: 0 %}")
    see(pipeline, seen, 600, running)
    escalated = [frame.index for frame in seen.frames if frame.placed.escalated]
    assert 20 <= len(escalated) <= 61
    assert all(muddy(index) for index in escalated[20:])


def test_a_price_beyond_the_worth_of_an_error_is_not_paid(cascading: Cascading, running: Running) -> None:
    """20 ms are asked for: next to nothing for a deadline of 10 s, twice an error for one of 10 ms."""
    pipeline, seen = cascading("learnt", more=", deadline: 10 s")
    see(pipeline, seen, 40, running)
    assert all(frame.placed.escalated for frame in seen.frames[:40])
    pipeline, seen = cascading("{checks: 0 %}", more=", deadline: 10 ms")
    see(pipeline, seen, 40, running)
    assert not any(frame.placed.escalated for frame in seen.frames)


# ------------------------------------------------ judging and comparing


def step(text: str = "{accuracy: 95 %}", verb: str = "detect", more: str = "") -> InferStep:
    return parse_app(
        f"app: a\nsource: {{camera: 0}}\nsteps: [{{{verb}: m, cloud: big, cascade: {text}{more}}}]\n"
    ).inferences[0]


def escalation(
    text: str = "{accuracy: 95 %}", verb: str = "detect", more: str = "", path: Path | None = None
) -> tuple[Escalation, Stats]:
    stats = Stats()
    return Escalation(step(text, verb, more), "m@1/int8 big@2", stats, Memory(path), random.Random(1)), stats


def boxes(*lefts: float, label: str = "car", confidence: float = 0.9) -> Result:
    found = tuple(Detection(label, confidence, (left, 0.0, left + 10, 10.0)) for left in lefts)
    return Result(Task.DETECTION, "m@1", detections=found)


def test_detections_agree_by_their_boxes() -> None:
    judge, stats = escalation()
    verdict = judge.judge(boxes(0), 0.0, reachable=True)
    assert verdict.action is Action.ESCALATE
    assert judge.compare(boxes(0), boxes(2), verdict)  # IoU 2/3
    assert not judge.compare(boxes(0), boxes(8), verdict)
    assert not judge.compare(boxes(0), boxes(0, label="bus"), verdict)
    assert not judge.compare(boxes(), boxes(0), verdict)
    assert judge.compare(boxes(0, 100, 200), boxes(0, 100), verdict)  # F1 0.8: right in most
    assert stats.read()["disagreed"] == 3


def test_values_agree_within_tolerance_and_scores_by_their_side() -> None:
    judge, _ = escalation(verb="estimate")
    value = Result(Task.REGRESSION, "m@1", value=100.0)
    verdict = judge.judge(value, 0.0, reachable=True)
    assert judge.compare(value, replace(value, value=104.0), verdict)
    assert not judge.compare(value, replace(value, value=110.0), verdict)
    score = Result(Task.ANOMALY, "m@1", score=0.9, threshold=1.0)
    assert judge.compare(score, replace(score, score=0.2), verdict)
    assert not judge.compare(score, replace(score, score=1.1), verdict)


def test_empty_answers_escalate_where_the_cloud_finds_what_they_miss() -> None:
    judge, stats = escalation()
    for number in range(400):
        for seen, cloud in ((boxes(0), boxes(1)), (boxes(), boxes(5) if number % 3 else boxes())):
            verdict = judge.judge(seen, 0.0, reachable=True)
            if verdict.action is not Action.ACCEPT:
                judge.compare(seen, cloud, verdict)
    assert judge.judge(boxes(), 0.0, reachable=True).action is Action.ESCALATE
    assert judge.judge(boxes(0), 0.0, reachable=True).action is not Action.ESCALATE
    assert "empty answers are sent (66% of them differ from the cloud's)" in stats.read()["cascade"]


def test_a_price_nobody_knows_is_found_out() -> None:
    judge, _ = escalation("learnt")
    assert judge.judge(boxes(0), None, reachable=True).action is Action.ESCALATE
    assert judge.judge(boxes(0), 5.0, reachable=True).action is not Action.ESCALATE


def test_what_stood_unanswered_counts_once() -> None:
    judge, stats = escalation()
    verdict = judge.judge(boxes(0), 0.0, reachable=True)
    judge.unanswered(verdict)
    assert not judge.judge(boxes(0), 0.0, reachable=False).verified
    figures = stats.read()
    assert (figures["escalated"], figures["unverified"], figures["checked"]) == (1, 2, 0)


def test_models_that_never_agree_are_asked_about() -> None:
    judge, _ = escalation()
    for _ in range(100):
        verdict = judge.judge(boxes(0), 0.0, reachable=True)
        judge.compare(boxes(0), boxes(0, label="Auto"), verdict)
    assert judge.explain()[-1] == "the two models never agree: do both have the same labels?"


# ------------------------------------------------ memory


def test_what_was_learnt_is_of_one_pair_of_models(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    memory = Memory(path)
    first = Escalation(step(), "m@1/int8 big@2", Stats(), memory, random.Random(1))
    for _ in range(300):
        verdict = first.judge(boxes(0), 0.0, reachable=True)
        first.compare(boxes(0), boxes(0), verdict)
    memory.write()
    for pair, learnt in (("m@1/int8 big@2", True), ("m@2/int8 big@2", False)):
        again = Escalation(step(), pair, Stats(), Memory(path), random.Random(1))
        assert ("learning" not in again.explain()[0]) is learnt


def test_a_file_that_cannot_be_read_or_written_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "memory.json"
    for content in (b"\xff no json", b"[1, 2]", b'{"part": 3}', b"[" * 200_000):
        path.write_bytes(content)
        assert Memory(path).hold("part", dict) is None
    missing = Memory(tmp_path / "no" / "folder" / "memory.json")
    missing.hold("part", lambda: {"a": 1})
    with caplog.at_level(logging.WARNING):
        missing.write()
        missing.write()
    assert caplog.text.count("cannot be written") == 1
    nothing = Memory(None)
    assert nothing.hold("part", dict) is None
    nothing.write()


def test_it_is_written_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    memory, counted, third = Memory(path), [0], threading.Event()

    def save() -> dict[str, Any]:
        counted[0] += 1
        if counted[0] == 3:
            third.set()
        return {"times": counted[0]}

    memory.hold("part", save)
    memory.start(every_s=0.001)
    assert third.wait(30)
    memory.close()
    assert Memory(path).hold("part", dict) == {"times": counted[0]}
    last = Memory(path)
    last.hold("part", lambda: {"times": "last"})
    last.start()
    last.close()
    assert Memory(path).hold("part", dict) == {"times": "last"}


def test_another_versions_part_is_kept_for_when_it_comes_back_and_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    for number in range(20):
        memory = Memory(path)
        memory.hold(f"pair {number}", lambda number=number: {"of": number})  # type: ignore[misc]
        memory.write()
    assert Memory(path).hold("pair 18", dict) == {"of": 18}
    assert Memory(path).hold("pair 5", dict) is None


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    memory = Memory(path)
    memory.write()
    assert not path.exists()  # nobody has anything to remember
    kept = {"a": 1}
    memory.hold("part", lambda: dict(kept))
    memory.write()
    written = path.stat().st_ino
    memory.write()
    assert path.stat().st_ino == written
    kept["a"] = 2
    memory.write()
    assert Memory(path).hold("part", dict) == {"a": 2}
