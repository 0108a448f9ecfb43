"""The version before, asked beside the new one: where they differ is counted, and it costs nobody an answer."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.pipeline.conftest import Seen, picture

from marram.pipeline import shadow as shadowing
from marram.pipeline.build import Around, Pipeline
from marram.pipeline.shadow import Before
from marram.pipeline.stats import Stats
from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.agreement import disagree
from marram.schema.app import parse_app
from marram.schema.model import Task
from marram.schema.result import Detection, Result


def answer(task: Task = Task.CLASSIFICATION, **more: Any) -> Result:
    return Result(task, "m@1", **more)


def boxes(*found: tuple[str, float, float, float, float]) -> Result:
    return answer(Task.DETECTION, detections=tuple(Detection(label, 0.9, box) for label, *box in found))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "differ"),
    [
        (answer(label="cat", confidence=0.9), answer(label="cat", confidence=0.1), False),
        (answer(label="cat"), answer(label="dog"), True),
        (boxes(), boxes(), False),
        (boxes(("a", 0, 0, 10, 10)), boxes(("a", 0, 0, 10, 8)), False),  # IoU 0.8
        (boxes(("a", 0, 0, 10, 10)), boxes(("a", 0, 0, 10, 4)), True),  # IoU 0.4
        (boxes(("a", 0, 0, 10, 10)), boxes(("b", 0, 0, 10, 10)), True),
        (boxes(("a", 0, 0, 10, 10)), boxes(), True),
        (boxes(("a", 0, 0, 10, 10), ("a", 50, 50, 60, 60)), boxes(("a", 50, 50, 60, 60), ("a", 0, 0, 10, 10)), False),
        # One box cannot stand for two.
        (boxes(("a", 0, 0, 10, 10), ("a", 0, 0, 10, 10)), boxes(("a", 0, 0, 10, 10), ("a", 50, 50, 60, 60)), True),
        (answer(Task.REGRESSION, value=100.0), answer(Task.REGRESSION, value=104.0), False),
        (answer(Task.REGRESSION, value=100.0), answer(Task.REGRESSION, value=-100.0), True),
        (answer(Task.REGRESSION, value=0.0), answer(Task.REGRESSION, value=0.0), False),
        (answer(Task.ANOMALY, score=0.49, threshold=0.5), answer(Task.ANOMALY, score=0.1, threshold=0.5), False),
        (answer(Task.ANOMALY, score=0.49, threshold=0.5), answer(Task.ANOMALY, score=0.51, threshold=0.5), True),
        (answer(Task.ANOMALY, score=1.0), answer(Task.ANOMALY, score=1.2), True),
    ],
)
def test_when_two_answers_differ(old: Result, new: Result, differ: bool) -> None:
    assert disagree(old, new) is differ and disagree(new, old) is differ


def test_confidence_is_of_what_has_one() -> None:
    stats = Stats()
    assert stats.read()["confidence_mean"] is None
    stats.sure(answer(label="a", confidence=0.9))
    found = Detection("a", 0.8, (0, 0, 1, 1)), Detection("b", 0.6, (0, 0, 1, 1))
    stats.sure(Result(Task.DETECTION, "m@1", detections=found))
    stats.sure(boxes())
    stats.sure(answer(Task.REGRESSION, value=3.0))
    stats.sure(answer(Task.ANOMALY, score=3.0))
    assert (stats.read()["confidence_frames"], stats.read()["confidence_mean"]) == (2, 0.8)


# ---------------------------------------------------------------- in a pipeline


@pytest.fixture
def earlier(colours: Path, tmp_path: Path) -> Path:
    """The version before: it takes green for blue, and blue for green."""
    folder = tmp_path / "earlier"
    shutil.copytree(colours, folder)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("[red, green, blue]", "[red, blue, green]"))
    return folder


APP = "app: colour\nsource: {images: photos}\nsteps:\n  - classify: colours\n"


def run(tmp_path: Path, colours: Path, before: Before | None, app: str = APP, frames: int = 90) -> dict[str, Any]:
    """Run to its end on so many pictures, red, green, blue in turn."""
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    for number in range(frames):
        Pillow.fromarray(picture(["red", "green", "blue"][number % 3])).save(folder / f"{number:03}.png")
    seen = Seen()
    around = Around(outlet=seen, sinks=(seen,), resolve=lambda reference, base: Bundle.open(colours), before=before)
    pipeline = Pipeline.build(parse_app(app), tmp_path, around)
    pipeline.run()
    assert [label for label in seen.labels if label] == ["red", "green", "blue"] * (frames // 3)
    return pipeline.stats()


def before(folder: Path, memory_bytes: int | None = None, app: str = APP) -> Before:
    return Before(parse_app(app), lambda reference: Bundle.open(folder), memory_bytes)


def test_a_sample_is_compared_and_the_new_version_answers(tmp_path: Path, colours: Path, earlier: Path) -> None:
    stats = run(tmp_path, colours, before(earlier))
    # At most one in ten, fewer where the edge was busy.
    assert 0 < stats["shadow_frames"] <= 9 and stats["shadow_disagreements"] <= stats["shadow_frames"]
    assert stats["shadow_skipped"] == "" and stats["errors"] == 0
    assert stats["confidence_frames"] == 90 and 0.5 < stats["confidence_mean"] <= 1


def test_another_answer_counts_and_the_same_does_not(tmp_path: Path, colours: Path, earlier: Path) -> None:
    stats = Stats()
    new = Model.load(Bundle.open(colours))
    shadow = shadowing.shadow_of(0, parse_app(APP).inferences[0], new, before(earlier), stats)
    assert shadow is not None
    for colour in ("red", "green", "blue", "red", "red"):
        result = new.predict(picture(colour))
        for _ in range(shadowing.SHARE):
            shadow.offer(picture(colour), result, idle=True)
        while shadow._busy:
            pass
    shadow.close()
    new.close()
    assert (stats.read()["shadow_frames"], stats.read()["shadow_disagreements"]) == (5, 2)


def test_a_busy_edge_and_a_shadow_at_work_are_left_alone(colours: Path, earlier: Path) -> None:
    stats = Stats()
    new = Model.load(Bundle.open(colours))
    result = new.predict(picture("red"))
    shadow = shadowing.Shadow(Bundle.open(earlier), parse_app(APP).inferences[0], stats, None)
    for _ in range(100):
        shadow.offer(picture("red"), result, idle=False)
    assert shadow._thread is None and stats.read()["shadow_frames"] == 0
    shadow._busy = True
    for _ in range(100):
        shadow.offer(picture("red"), result, idle=True)
    assert shadow._thread is None
    shadow.close()
    new.close()


@pytest.mark.parametrize(
    ("app", "folder", "why"),
    [
        (APP, "colours", "has the same model"),
        (APP.replace("  - classify: colours\n", "  - filter: frame.index > 0\n"), "earlier", "has no such step"),
        (APP.replace("classify", "detect"), "earlier", "has no such step"),
        (APP, "missing", "is not here whole"),
    ],
)
def test_where_there_is_nothing_to_compare_it_says_so(
    tmp_path: Path, colours: Path, earlier: Path, app: str, folder: str, why: str
) -> None:
    places = {"colours": colours, "earlier": earlier, "missing": tmp_path / "missing"}
    stats = run(tmp_path, colours, before(places[folder], app=app), frames=30)
    assert why in stats["shadow_skipped"] and stats["shadow_frames"] == 0 and stats["errors"] == 0


def test_both_models_stay_within_the_memory_limit_or_one_of_them_stays_away(
    tmp_path: Path, colours: Path, earlier: Path
) -> None:
    stats = run(tmp_path, colours, before(earlier, memory_bytes=shadowing.resident_bytes()))
    assert "both versions take" in stats["shadow_skipped"] and stats["shadow_frames"] == 0
    roomy = run(tmp_path, colours, before(earlier, memory_bytes=4_000_000_000))
    assert roomy["shadow_skipped"] == "" and roomy["shadow_frames"] > 0


def test_one_that_takes_another_kind_of_input_is_not_asked(tmp_path: Path, colours: Path, earlier: Path) -> None:
    text = (earlier / "model.yaml").read_text()
    other = "input: {kind: tensor, size: [1, 3, 16, 16]}\noutput"
    (earlier / "model.yaml").write_text(re.sub("input: .*\noutput", other, text))
    stats = run(tmp_path, colours, before(earlier), frames=30)
    assert stats["shadow_skipped"] == "the version before takes another kind of input"
    assert stats["shadow_frames"] == 0 and stats["errors"] == 0


class Loads:
    """Every model that is loaded, and those that were closed again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[Model] = []
        self.closed: list[Model] = []
        load, close = Model.load, Model.close

        def loading(*arguments: Any, **more: Any) -> Model:
            self.loaded.append(load(*arguments, **more))
            return self.loaded[-1]

        def closing(model: Model) -> None:
            self.closed.append(model)
            close(model)

        monkeypatch.setattr(Model, "load", loading)
        monkeypatch.setattr(Model, "close", closing)


def test_one_that_turns_out_too_large_is_given_back_and_not_asked_for_again(
    colours: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model takes is known only once it is there: more than its file says, and it goes again."""
    new = Model.load(Bundle.open(colours))
    result, stats, loads = new.predict(picture("red")), Stats(), Loads(monkeypatch)
    shadow = shadowing.Shadow(Bundle.open(earlier), parse_app(APP).inferences[0], stats, 1_000_000_000)
    monkeypatch.setattr(shadowing, "resident_bytes", lambda: 900_000_000 if loads.loaded else 100_000_000)
    for _ in range(shadowing.SHARE):
        shadow.offer(picture("red"), result, idle=True)
    shadow.close()
    assert "both versions take 900 MB" in stats.read()["shadow_skipped"]
    assert len(loads.loaded) == 1 and loads.closed == loads.loaded
    new.close()


def test_one_that_did_not_load_is_offered_nothing_more(colours: Path, earlier: Path) -> None:
    (earlier / "model.onnx").write_bytes(b"no model")
    new = Model.load(Bundle.open(colours))
    result, stats = new.predict(picture("red")), Stats()
    shadow = shadowing.Shadow(Bundle.open(earlier), parse_app(APP).inferences[0], stats, None)
    for _ in range(shadowing.SHARE):
        shadow.offer(picture("red"), result, idle=True)
    while shadow._busy:
        pass
    assert "does not load" in stats.read()["shadow_skipped"]
    for _ in range(10 * shadowing.SHARE):
        shadow.offer(picture("red"), result, idle=True)
    assert shadow._taken == 1
    shadow.close()
    new.close()


def test_a_version_before_that_does_not_load_is_no_fault_of_the_new_one(
    tmp_path: Path, colours: Path, earlier: Path
) -> None:
    (earlier / "model.onnx").write_bytes(b"no model")
    stats = run(tmp_path, colours, before(earlier))
    assert "does not load" in stats["shadow_skipped"] and stats["frames"] == 90 and stats["errors"] == 0


def test_it_ends_by_itself(colours: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "MOST_FRAMES", 2)
    stats, new = Stats(), Model.load(Bundle.open(colours))
    result = new.predict(np.zeros((16, 16, 3), np.uint8))
    shadow = shadowing.Shadow(Bundle.open(earlier), parse_app(APP).inferences[0], stats, None)
    for _ in range(10 * shadowing.SHARE):
        shadow.offer(picture("red"), result, idle=True)
        while shadow._busy and not shadow._over:
            pass
    assert shadow._thread is not None
    shadow._thread.join(10)
    assert not shadow._thread.is_alive() and stats.read()["shadow_frames"] == 2
    shadow.close()
    new.close()


def test_it_ends_after_its_hour(colours: Path, earlier: Path) -> None:
    stats, new = Stats(), Model.load(Bundle.open(colours))
    shadow = shadowing.Shadow(Bundle.open(earlier), parse_app(APP).inferences[0], stats, None)
    shadow._ends_s = float("-inf")
    for _ in range(3 * shadowing.SHARE):
        shadow.offer(picture("red"), new.predict(picture("red")), idle=True)
    assert shadow._over and shadow._thread is None
    shadow.close()
    new.close()
