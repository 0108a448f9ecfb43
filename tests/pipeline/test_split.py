"""The cloud's model parted: its front at the edge, its back at the replica, real files; and where that is no way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from tests.pipeline.scripted import Chooser, Scripted, fails, silent
from tests.runtime.cutting import bundle, picture, with_cut

from marram.pipeline.contract import CloudInput, Reply
from marram.placement.contract import Ask, Considered, Decision
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.codecs import decode
from marram.runtime.cut import Back, Front
from marram.runtime.model import Model
from marram.schema.errors import Permanent, Retryable
from marram.schema.result import Place

FRAMES = 6


class Parter(Chooser):
    """Sends frames to the edge, and what the cloud is asked about by way of the cut."""

    def decide(self, ask: Ask) -> Decision:
        decision = super().decide(ask)
        if ask.objective != "cloud":
            return decision
        way = next(way for way in ask.ways if way.place is Place.SPLIT)
        told = Considered(way, 0.03, 0.02, 0.04, front_s=0.01)
        return replace(decision, place=Place.SPLIT, way=way, predicted_s=0.03, considered=(told,))


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small model whose card says that parting it at `pooled` can win."""
    made, _ = with_cut(bundle(tmp_path_factory.mktemp("models") / "small"), "pooled")
    return told(made, front_ms=1.0, back_ms=9.0, bytes=10)


def told(made: Bundle, **figures: Any) -> Bundle:
    cut = made.card.cuts[0].model_copy(update={"loss": 0.0, **figures})
    (made.folder / CARD).write_text(dump_card(made.card.model_copy(update={"cuts": [cut]})))
    return Bundle.open(made.folder)


@pytest.fixture
def views(tmp_path: Path) -> Path:
    folder = tmp_path / "views"
    folder.mkdir()
    for number in range(FRAMES):
        Pillow.fromarray(picture(number, 24, 32)).save(folder / f"{number}.png")
    return folder


class Replica:
    """Answers with the back of the cut that the payload names."""

    def __init__(self, made: Bundle) -> None:
        self.back = Back.load(made, made.card.cuts[0].name)
        self.sizes: list[int] = []

    def __call__(self, request: CloudInput, future: Future[Reply]) -> None:
        payload = request.payload
        assert payload.media == "application/x-cut+zstd" and payload.frame_size == (24, 32)
        self.sizes.append(len(payload.body))
        result = self.back.predict(decode(payload, self.back.card), payload.frame_size)
        future.set_result(Reply(replace(result, model="the-back"), 0.0, 0.001))


@pytest.fixture
def replica(parted: Bundle) -> Iterator[Replica]:
    made = Replica(parted)
    yield made
    made.back.close()


@pytest.fixture
def run(build: Any, views: Path, parted: Bundle) -> Callable[..., Any]:
    def go(behave: Any, policy: Chooser, options: str = "top: 3", fronts: bool = True) -> Any:
        pipeline, seen = build(
            f"source: {{images: {views}}}\nraw: allowed\n"
            f"steps: [{{classify: {parted.folder}, cloud: big, parallel: 2, {options}}}]\n",
            remote=Scripted(behave), cloud_cards={"big": parted.card}, policy=policy,
            fronts={"big": parted} if fronts else {},
        )  # fmt: skip
        pipeline.run()
        return pipeline, seen

    return go


def test_the_front_runs_here_and_the_back_answers(run: Any, replica: Replica, parted: Bundle, views: Path) -> None:
    policy = Chooser([Place.SPLIT])
    pipeline, seen = run(replica, policy)
    whole = Model.load(parted)
    labels = [whole.predict(frame.image).label for frame in seen.frames]
    whole.close()
    assert seen.labels == labels and len(labels) == FRAMES
    assert {frame.placed.place for frame in seen.frames} == {Place.SPLIT}
    assert {frame.result.model for frame in seen.frames} == {"the-back"}
    stats = pipeline.stats()
    assert (stats["split"], stats["cloud"], stats["edge"], stats["errors"]) == (FRAMES, FRAMES, 0, 0)
    name = parted.card.cuts[0].name
    # Both parts are learnt apart, and what crossed is what counts on the link.
    assert {each.key for each in policy.edge} == {f"small@1/{name}/front 4^5px"}
    assert {each.key for each in policy.sent} == {f"small@1/{name}"}
    assert [each.bytes for each in policy.sent] == replica.sizes
    assert stats["cuts"] == f"small@1 is parted at {name} where that is soonest"
    (split,) = [way for way in policy.ways if way.place is Place.SPLIT]
    assert (split.codec, split.front) == (f"cut:{name}", f"small@1/{name}/front 4^5px")
    assert abs(split.payload_bytes - sum(replica.sizes) / FRAMES) < 20  # learnt from what was really sent


@pytest.mark.parametrize("behave", [silent, fails(Retryable("the replica ended meanwhile"))])
def test_the_whole_model_at_the_edge_answers_where_the_back_does_not(run: Any, behave: Any) -> None:
    pipeline, seen = run(behave, Chooser([Place.SPLIT], timeout_s=0.02))
    assert len(seen.frames) == FRAMES and {frame.result.model for frame in seen.frames} == {"small@1"}
    assert all(frame.placed.fallback and frame.placed.place is Place.EDGE for frame in seen.frames)
    assert pipeline.stats()["errors"] == 0


def test_a_front_that_fails_is_counted_and_the_whole_model_answers(
    run: Any, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise Permanent("the front answered NaN")

    monkeypatch.setattr(Front, "run", broken)
    pipeline, seen = run(replica, Chooser([Place.SPLIT]))
    assert len(seen.frames) == FRAMES and {frame.result.model for frame in seen.frames} == {"small@1"}
    stats = pipeline.stats()
    assert stats["errors"] == FRAMES and "the front answered NaN" in stats["last_error"]
    assert replica.sizes == []


@pytest.mark.parametrize(("options", "fronts"), [("split: no", True), ("top: 3", False)])
def test_a_cut_is_no_way_where_the_app_or_the_device_has_none(run: Any, options: str, fronts: bool) -> None:
    policy = Chooser([Place.EDGE])
    pipeline, _ = run(silent, policy, options, fronts)
    assert policy.asks and not any(way.place is Place.SPLIT for ask in policy.asks for way in ask.ways)
    assert "no front of that is here" in pipeline.stats().get("cuts", "") or not fronts or "split" in options


def test_a_cut_that_never_wins_is_no_way_and_is_said(build: Any, views: Path, tmp_path: Path) -> None:
    made, _ = with_cut(bundle(tmp_path / "small"), "stem")
    never = told(made, front_ms=9.0, back_ms=9.0, bytes=100_000)
    policy = Chooser([Place.EDGE])
    pipeline, _ = build(
        f"source: {{images: {views}}}\nraw: allowed\nsteps: [{{classify: {never.folder}, cloud: big}}]\n",
        remote=Scripted(silent), cloud_cards={"big": never.card}, policy=policy, fronts={"big": never},
    )  # fmt: skip
    pipeline.run()
    assert not any(way.place is Place.SPLIT for ask in policy.asks for way in ask.ways)
    assert pipeline.stats()["cuts"].startswith("no cut of small@1 ever wins")


def test_more_loss_than_the_app_allows_is_no_way(build: Any, views: Path, tmp_path: Path) -> None:
    made, _ = with_cut(bundle(tmp_path / "small"), "pooled")
    lossy = told(made, front_ms=1.0, back_ms=9.0, bytes=10)
    card = lossy.card.model_copy(update={"cuts": [lossy.card.cuts[0].model_copy(update={"loss": 0.015})]})
    (lossy.folder / CARD).write_text(dump_card(card))
    for options, ways in (("top: 3", 1), ("encoding_loss: 1 %", 0)):
        policy = Chooser([Place.EDGE])
        pipeline, _ = build(
            f"source: {{images: {views}}}\nraw: allowed\n"
            f"steps: [{{classify: {lossy.folder}, cloud: big, {options}}}]\n",
            remote=Scripted(silent), cloud_cards={"big": card}, policy=policy,
            fronts={"big": Bundle.open(lossy.folder)},
        )  # fmt: skip
        pipeline.run()
        assert sum(way.place is Place.SPLIT for way in policy.ways) == ways


# ---------------------------------------------------------------- a cascade


def test_what_is_unsure_goes_by_the_cut_where_that_is_soonest(run: Any, replica: Replica, parted: Bundle) -> None:
    policy = Parter([Place.EDGE])
    pipeline, seen = run(replica, policy, "cascade: {accuracy: 99 %}, top: 3")  # at first everything is unsure
    assert {frame.placed.place for frame in seen.frames} == {Place.SPLIT} and len(seen.frames) == FRAMES
    assert {frame.result.model for frame in seen.frames} == {"the-back"}
    name = parted.card.cuts[0].name
    event = seen.events[0].data
    assert (event["place"], event["escalated"], event["why"]["ways"][0]["codec"]) == ("split", True, f"cut:{name}")
    # What was sent, and what that took here, are told and learnt as with any other frame.
    assert [event.data["sent_bytes"] for event in seen.events] == replica.sizes == [each.bytes for each in policy.sent]
    assert {f"small@1/{name}/front 4^5px", "small@1/fp32 4^5px"} == {each.key for each in policy.edge}
    stats = pipeline.stats()
    assert (stats["escalated"], stats["split"], stats["disagreed"], stats["errors"]) == (FRAMES, FRAMES, 0, 0)


@pytest.mark.parametrize("broken", [False, True])
def test_an_unsure_answer_stands_where_the_front_or_the_back_fails(
    run: Any, replica: Replica, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    def nothing(*given: Any) -> Any:
        raise Permanent("the front answered NaN")

    if broken:
        monkeypatch.setattr(Front, "run", nothing)
    policy = Parter([Place.EDGE], timeout_s=0.02)
    pipeline, seen = run(replica if broken else silent, policy, "cascade: {accuracy: 99 %}, top: 3")
    assert len(seen.frames) == FRAMES and {frame.result.model for frame in seen.frames} == {"small@1"}
    assert not any(frame.placed.verified or frame.placed.escalated for frame in seen.frames)
    stats = pipeline.stats()
    assert stats["unverified"] == FRAMES and stats["errors"] == (FRAMES if broken else 0)
    assert ("NaN" in stats["last_error"]) is broken and replica.sizes == []
