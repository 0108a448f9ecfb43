"""What goes wrong elsewhere costs no frame its answer: the edge gives it in time, or it is counted as dropped."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.conftest import picture
from tests.pipeline.scripted import GOOD, Behaviour, Chooser, LiveSource, Scripted, fails, raises, reply, says, silent

from marram.pipeline import plugins, ways
from marram.pipeline.build import Pipeline
from marram.pipeline.contract import CloudInput, Frame
from marram.pipeline.offload import Ended, Errand, Offload
from marram.pipeline.pace import Pace
from marram.pipeline.plausible import check_answer
from marram.placement.policy import LatencyPolicy
from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.errors import Busy, Invalid, NotReady, Retryable
from marram.schema.model import Task
from marram.schema.payload import Payload
from marram.schema.result import Detection, Place, Result

NAN = math.nan
NAMES = ["red", "green", "blue"] * 3


@pytest.fixture
def run(build: Any, photos: Path, colours: Path) -> Callable[..., Any]:
    """Nine pictures through an app whose cloud is scripted: (pipeline, seen), when all is over."""

    def go(behave: Behaviour, policy: Any, options: str = "top: 3") -> Any:
        pipeline, seen = build(
            f"source: {{images: {photos}}}\nraw: allowed\nsteps: [{{classify: MODEL, cloud: big, {options}}}]\n",
            remote=Scripted(behave), cloud_cards={"big": Bundle.open(colours).card}, policy=policy,
        )  # fmt: skip
        pipeline.run()
        return pipeline, seen

    return go


def classification(**change: Any) -> Result:
    return replace(GOOD, **change)


NONSENSE = [
    says(reply(None)),
    says(reply(classification(label=None))),
    says(reply(classification(label=7))),
    says(reply(classification(confidence=NAN))),
    says(reply(classification(confidence=17.0))),
    says(reply(classification(confidence="sure"))),
    says(reply(classification(top=(("green", math.inf),)))),
    says(reply(classification(model=""))),
    says(reply(Result(Task.DETECTION, "the-cloud"))),
    says(reply(Result(Task.REGRESSION, "the-cloud", value=1.0))),
]
GONE = [
    raises(NotReady("the link to the cloud is down")),
    fails(Retryable("the replica ended meanwhile")),  # killed mid-request
    fails(Invalid("a reply that is no result")),  # what `edge/remote.py` makes of a malformed one
    fails(Busy("32 wait here already", queue_s=0.4, waiting=32)),
    fails(RuntimeError("a bug on the way")),
    raises(ValueError("a bug on the way")),
]


@pytest.mark.parametrize("policy", [lambda: Chooser([Place.CLOUD]), LatencyPolicy], ids=["always", "real"])
@pytest.mark.parametrize("behave", [*NONSENSE, *GONE])
def test_the_edge_answers_at_once_where_the_cloud_gives_no_answer(
    run: Any, behave: Behaviour, policy: Callable[[], Any]
) -> None:
    pipeline, seen = run(behave, policy(), "place: cloud")  # with one wait for a time limit the test would time out
    assert seen.labels == NAMES
    assert {frame.result.model for frame in seen.frames} == {"colours@7"}
    assert {frame.placed.place for frame in seen.frames} == {Place.EDGE}
    assert pipeline.stats()["edge"] == 9 and pipeline.stats()["timeouts"] == 0


@pytest.mark.parametrize("behave", NONSENSE)
def test_what_is_no_answer_is_counted_told_and_held_against_the_replica(run: Any, behave: Behaviour) -> None:
    policy = Chooser([Place.CLOUD], replica=None)
    pipeline, _ = run(behave, policy)
    stats = pipeline.stats()
    assert stats["unusable"] == 9 == stats["errors"]
    assert stats["last_error"].startswith("asking the cloud failed: an answer ")
    assert [(o.ok, o.timed_out, o.replica) for o in policy.outcomes] == [(False, False, "replica-a")] * 9


def test_a_refusal_for_the_queue_is_learnt_with_its_queue(run: Any) -> None:
    policy = Chooser([Place.CLOUD])
    run(fails(Busy("32 wait here already", queue_s=0.4, waiting=32)), policy)
    assert all((o.busy, o.ok, o.queue_s, o.waiting, o.replica) == (True, False, 0.4, 32, "replica-a") for o in
               policy.outcomes)  # fmt: skip
    assert len(policy.outcomes) == 9


def test_a_request_names_its_replica_and_what_is_left(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remotes: list[Scripted] = []
    made = Scripted.__init__

    def kept(self: Scripted, behave: Behaviour) -> None:
        made(self, behave)
        remotes.append(self)

    monkeypatch.setattr(Scripted, "__init__", kept)
    policy = Chooser([Place.CLOUD])
    _, seen = run(says(reply()), policy, "deadline: 30 s")
    (remote,) = remotes
    assert {request.replica for request in remote.asked} == {"replica-a"} == {each.replica for each in policy.sent}
    assert all(request.left_s is not None and 0 < request.left_s <= 30 for request in remote.asked)
    assert {(o.replica, o.waiting) for o in policy.outcomes} == {("replica-a", 2)}
    assert {frame.result.model for frame in seen.frames} == {"the-cloud"}


def test_a_link_that_swallows_everything_is_waited_for_until_the_deadline_and_no_longer(run: Any) -> None:
    policy = Chooser([Place.CLOUD], timeout_s=600)  # as the policy would have it; the deadline is what counts
    pipeline, seen = run(silent, policy, "deadline: 30 ms")
    assert seen.labels == NAMES
    assert all(frame.placed.fallback and frame.placed.place is Place.EDGE for frame in seen.frames)
    # Where its turn came only past its deadline, a frame is not sent at all.
    timeouts = pipeline.stats()["timeouts"]
    assert timeouts == len(policy.outcomes) >= 1 and all(o.timed_out for o in policy.outcomes)


def test_the_real_policy_outlives_a_link_that_swallows_everything(run: Any) -> None:
    pipeline, seen = run(silent, LatencyPolicy(), "place: cloud, deadline: 100 ms")
    assert seen.labels == NAMES and pipeline.stats()["dropped"] == 0


def test_a_reply_after_the_deadline_answers_nothing_and_is_learnt() -> None:
    """Also where it comes before whoever watches the time has noticed."""
    now = [100.0]
    policy, remote = Chooser([Place.CLOUD]), Scripted(silent)
    offload = Offload(remote, policy, clock=lambda: now[0])
    answered: list[Ended] = []
    over = threading.Event()

    def note(ended: Ended) -> None:
        answered.append(ended)
        over.set()

    late: list[Any] = []
    try:
        request = CloudInput("big", 1, Payload("image/jpeg", b"x"))
        offload.ask(Errand(request, "big@1", 0.2, note, lambda came: None, late=late.append))
        now[0] += 0.3
        remote.futures[0].set_result(reply())
        assert over.wait(30)
    finally:
        offload.close()
    assert answered == [Ended(timed_out=True)]
    assert any(o.ok for o in policy.outcomes)  # a true measurement
    assert late == [reply()]


def test_what_cannot_be_encoded_is_answered_here(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise Invalid("no JPEG of that")

    monkeypatch.setattr(ways, "encode", broken)
    pipeline, seen = run(says(reply()), Chooser([Place.CLOUD]))
    assert seen.labels == NAMES and pipeline.stats()["last_error"] == "no JPEG of that"
    assert {frame.placed.place for frame in seen.frames} == {Place.EDGE}


def test_the_cloud_s_answer_holds_no_more_than_the_app_asks_for(run: Any) -> None:
    many = classification(top=tuple((f"label {number}", 0.1) for number in range(5)))
    _, seen = run(says(reply(many)), Chooser([Place.CLOUD]), "top: 2")
    assert {len(frame.result.top) for frame in seen.frames} == {2}


def test_boxes_that_are_less_sure_than_the_app_wants_are_left_out(build: Any, photos: Path, seer: Path) -> None:
    boxes = tuple(Detection(name, sure, (0.0, 0.0, 4.0, 4.0)) for name, sure in (("a", 0.3), ("b", 0.7), ("c", 0.6)))
    told = Result(Task.DETECTION, "the-cloud", "b", 0.7, detections=boxes)
    for least, kept in (("0.5", ["b", "c"]), ("0.9", [])):
        pipeline, seen = build(
            f"source: {{images: {photos}}}\nraw: allowed\n"
            f"steps: [{{detect: {seer}, cloud: big, min_confidence: {least}}}]\n",
            remote=Scripted(says(reply(told))), cloud_cards={"big": Bundle.open(seer).card},
            policy=Chooser([Place.CLOUD]),
        )  # fmt: skip
        pipeline.run()
        result = seen.frames[0].result
        assert [found.label for found in result.detections] == kept
        assert (result.label, result.confidence) == (("b", 0.7) if kept else (None, None))


# ---------------------------------------------------------------- clocks that lie


def test_a_clock_that_is_set_back_prolongs_no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    offload = Offload(Scripted(silent), Chooser([Place.CLOUD]))
    over = threading.Event()
    try:
        request = CloudInput("big", 1, Payload("image/jpeg", b"x"))
        offload.ask(Errand(request, "big@1", 0.2, lambda ended: over.set(), lambda came: None))
        now[0] = 100.0
        assert offload.now_s() == 5000.0
        now[0] = 100.3
        assert over.wait(30)
    finally:
        offload.close()


def test_a_clock_that_is_set_back_holds_no_paced_frame_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(0.001)
    assert pace.wait()
    now[0] = 100.0
    waited = threading.Thread(target=pace.wait, daemon=True)
    waited.start()
    waited.join(30)
    assert not waited.is_alive()


@pytest.fixture
def leaping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fiftieth look at the monotonic clock is an hour before, or after, what it should be from then on."""
    real, looks, leaps = time.monotonic, itertools.count(1), itertools.cycle([-3600.0, 3600.0, -7200.0, 3600.0])
    ahead = [0.0]
    lock = threading.Lock()

    def lie() -> float:
        with lock:
            if next(looks) % 50 == 0:
                ahead[0] += next(leaps)
            return real() + ahead[0]

    monkeypatch.setattr(time, "monotonic", lie)


@pytest.mark.usefixtures("leaping")
@pytest.mark.parametrize("policy", [lambda: Chooser([Place.CLOUD], timeout_s=0.05), LatencyPolicy])
@pytest.mark.parametrize("options", ["top: 3", "deadline: 100 ms", "place: cloud"])
def test_a_clock_that_leaps_stalls_nothing(run: Any, policy: Callable[[], Any], options: str) -> None:
    pipeline, seen = run(silent, policy(), options)
    assert seen.labels == NAMES
    assert all(frame.placed.latency_s >= 0 for frame in seen.frames)
    stats = pipeline.stats()
    assert (stats["frames"], stats["errors"], stats["dropped"]) == (9, 0, 0)


@pytest.mark.parametrize("queue_s", [-5.0, 1e12, NAN, math.inf])
@pytest.mark.parametrize("service_s", [-1e9, 0.001, NAN, -math.inf])
@pytest.mark.parametrize("policy", [lambda: Chooser([Place.CLOUD]), LatencyPolicy], ids=["always", "real"])
def test_a_replica_that_lies_about_its_time_is_not_believed(
    run: Any, queue_s: float, service_s: float, policy: Callable[[], Any]
) -> None:
    told = policy()
    pipeline, seen = run(says(reply(queue_s=queue_s, service_s=service_s)), told, "place: cloud")
    assert len(seen.frames) == 9 and pipeline.stats()["errors"] == 0
    for outcome in told.outcomes if isinstance(told, Chooser) else ():
        assert 0 <= outcome.queue_s <= 3600 and 0 <= outcome.service_s <= 3600


# ---------------------------------------------------------------- live sources


@pytest.fixture
def live(build: Any, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A live source of these frames through an app whose cloud is scripted, when all is over."""

    def go(frames: Callable[[], Iterator[Frame]], remote: Scripted, policy: Any, options: str) -> Any:
        monkeypatch.setattr(plugins, "open_source", lambda spec, base: LiveSource(frames))
        pipeline, seen = build(
            f"source: {{camera: 0}}\nraw: allowed\nsteps: [{{classify: MODEL, cloud: big, {options}}}]\n",
            remote=remote, cloud_cards={"big": Bundle.open(colours).card}, policy=policy,
        )  # fmt: skip
        pipeline.run()
        return pipeline, seen

    return go


def frames(count: int, age_s: Callable[[int], float] = lambda number: 0.0) -> Callable[[], Iterator[Frame]]:
    def made() -> Iterator[Frame]:
        for number in range(count):
            yield Frame(number, time.time(), time.monotonic() - age_s(number), image=picture(NAMES[number % 9]))

    return made


@pytest.mark.parametrize("behave", [silent, *GONE, NONSENSE[0]])
@pytest.mark.parametrize("policy", [lambda: Chooser([Place.CLOUD]), LatencyPolicy], ids=["always", "real"])
def test_every_live_frame_is_answered_or_counted(live: Any, behave: Behaviour, policy: Callable[[], Any]) -> None:
    pipeline, seen = live(frames(20), Scripted(behave), policy(), "deadline: 50 ms")
    stats = pipeline.stats()
    assert stats["frames"] + stats["dropped"] == 20 and len(seen.frames) == stats["frames"]
    assert stats["late"] <= stats["dropped"]


def test_a_live_frame_that_is_past_its_deadline_is_dropped_before_anything_is_done(live: Any) -> None:
    policy, remote = Chooser([Place.CLOUD]), Scripted(says(reply()))
    pipeline, seen = live(frames(6, lambda number: 60.0 * (number % 2)), remote, policy, "deadline: 30 s")
    assert [frame.index for frame in seen.frames] == [0, 2, 4]
    stats = pipeline.stats()
    assert (stats["dropped"], stats["late"], len(remote.asked)) == (3, 3, 3)


def test_the_policy_hears_that_live_frames_may_be_dropped(live: Any) -> None:
    policy = Chooser([Place.EDGE])
    live(frames(3), Scripted(silent), policy, "deadline: 30 s")
    assert any(ask.may_drop for ask in policy.asks)
    assert all(0 < (ask.deadline_s or 0) <= 30 for ask in policy.asks)


def test_the_policy_hears_that_a_file_s_frames_are_never_dropped(run: Any) -> None:
    policy = Chooser([Place.EDGE])
    run(silent, policy, "deadline: 30 s")
    assert policy.asks and not any(ask.may_drop for ask in policy.asks)


def test_paced_files_say_when_the_next_frame_comes(build: Any, photos: Path, colours: Path) -> None:
    policy = Chooser([Place.EDGE])
    pipeline, _ = build(
        f"source: {{images: {photos}, every: 1 ms}}\nraw: allowed\nsteps: [{{classify: MODEL, cloud: big}}]\n",
        remote=Scripted(silent), cloud_cards={"big": Bundle.open(colours).card}, policy=policy,
    )  # fmt: skip
    pipeline.run()
    assert {ask.every_s for ask in policy.asks} == {0.001} and not any(ask.may_drop for ask in policy.asks)


# ---------------------------------------------------------------- hedging


def test_a_reply_that_threatens_to_be_late_is_hedged_and_the_edge_answers(run: Any) -> None:
    policy = Chooser([Place.CLOUD], timeout_s=600, hedge_s=0.01)
    pipeline, seen = run(silent, policy)  # waiting for one time limit, the test would time out
    assert seen.labels == NAMES
    assert all(frame.placed.hedged and not frame.placed.fallback for frame in seen.frames)
    assert policy.hedges == 9 == pipeline.stats()["hedged"]
    assert seen.events[0].data["hedged"] is True


def test_a_hedge_that_has_not_begun_is_not_run_once_the_cloud_answered(
    build: Any,
    photos: Path,
    colours: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: Callable[[Pipeline], threading.Thread],
) -> None:
    real, busy, free, predicted = Model.predict, threading.Event(), threading.Event(), []

    def held(model: Model, *given: Any) -> Any:
        predicted.append(given)
        busy.set()
        free.wait(30)
        return real(model, *given)

    monkeypatch.setattr(Model, "predict", held)
    for photo in sorted(photos.iterdir())[2:]:
        photo.unlink()
    policy, remote = Chooser([Place.EDGE, Place.CLOUD], hedge_s=0.0), Scripted(silent)
    pipeline, seen = build(
        f"source: {{images: {photos}}}\nraw: allowed\nsteps: [{{classify: MODEL, cloud: big}}]\n",
        remote=remote, cloud_cards={"big": Bundle.open(colours).card}, policy=policy,
    )  # fmt: skip
    thread = running(pipeline)
    assert busy.wait(30) and remote.arrived.acquire(timeout=30)
    until_s = time.monotonic() + 30
    while not policy.hedges and time.monotonic() < until_s:
        time.sleep(0.001)
    remote.futures[0].set_result(reply())
    free.set()
    thread.join(30)
    assert [frame.placed.place for frame in seen.frames] == [Place.EDGE, Place.CLOUD]
    assert len(predicted) == 1 and policy.hedges == 1
    assert seen.frames[1].placed.hedged


# ---------------------------------------------------------------- what is an answer

BOX = (0.0, 0.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("result", "task"),
    [
        (Result(Task.DETECTION, "m", detections=(Detection("face", 0.9, (0.0, NAN, 1.0, 1.0)),)), Task.DETECTION),
        (Result(Task.DETECTION, "m", detections=(Detection("", 0.9, BOX),)), Task.DETECTION),
        (Result(Task.DETECTION, "m", detections=(Detection("face", -0.1, BOX),)), Task.DETECTION),
        (Result(Task.DETECTION, "m", detections=(Detection("face", 1.0, BOX, ((math.inf, 0.0),)),)), Task.DETECTION),
        (Result(Task.DETECTION, "m", detections=(Detection("face", 0.9, BOX),) * 10_001), Task.DETECTION),
        (Result(Task.REGRESSION, "m"), Task.REGRESSION),
        (Result(Task.REGRESSION, "m", value=NAN), Task.REGRESSION),
        (Result(Task.REGRESSION, "m", value=True), Task.REGRESSION),
        (Result(Task.ANOMALY, "m", score=math.inf), Task.ANOMALY),
        (Result(Task.ANOMALY, "m", score=1.0, threshold=NAN), Task.ANOMALY),
    ],
)
def test_numbers_that_are_none_are_no_answer(result: Result, task: Task) -> None:
    with pytest.raises(Invalid, match="an answer"):
        check_answer(result, task)


def test_answers_of_every_task_are_taken() -> None:
    check_answer(GOOD, Task.CLASSIFICATION)
    check_answer(Result(Task.DETECTION, "m"), Task.DETECTION)  # nothing was found
    check_answer(Result(Task.DETECTION, "m", detections=(Detection("face", 1.0, BOX),)), Task.DETECTION)
    check_answer(Result(Task.REGRESSION, "m", value=-2.5), Task.REGRESSION)
    check_answer(Result(Task.ANOMALY, "m", score=3.0), Task.ANOMALY)
