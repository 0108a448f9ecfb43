"""Where frames are answered, with a real model standing as the cloud: replies, silence, refusals, privacy, audits."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.pipeline import audit
from marram.pipeline import build as build_module
from marram.pipeline.build import Pipeline
from marram.pipeline.contract import CloudInput, Frame, Reply
from marram.pipeline.edge_pool import slowdown
from marram.placement.contract import Ask, CloudOutcome, CloudSent, Costs, Decision, EdgeOutcome, LinkEstimate
from marram.placement.policy import LatencyPolicy
from marram.runtime import image as pictures
from marram.runtime.model import Model
from marram.schema.errors import Invalid, NotReady
from marram.schema.result import Place


def key(ask: Ask, place: Place) -> str | None:
    """Of the way that leads to `place`."""
    return next((way.key for way in ask.ways if way.place is place), None)


class Cloud:
    """A replica in this process: the same kind of model, asked with what would have travelled.

    `hold`: requests wait until `gate` opens; `refuse`: they fail at once.
    """

    def __init__(self, bundle: Path) -> None:
        self.model = Model.load(bundle)
        self.asked: list[CloudInput] = []
        self.probes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.refuse = False
        self.inside = self.most = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(4)
        self._turn = threading.Lock()

    def infer(self, request: CloudInput, timeout_s: float) -> Future[Reply]:
        if self.refuse:
            raise NotReady("no replica")
        self.asked.append(request)
        return self._threads.submit(self._answer, request)

    def probe(self, size_bytes: int, timeout_s: float, about: tuple[str, int] | None = None) -> Future[Reply]:
        self.probes += 1
        if self.refuse:
            raise NotReady("no replica")
        return self._threads.submit(Reply, None, 0.0, 0.0)

    def close(self) -> None:
        self.gate.set()
        self._threads.shutdown()
        self.model.close()

    def _answer(self, request: CloudInput) -> Reply:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.arrived.release()
        self.gate.wait(30)
        with self._turn:
            begun_s = time.monotonic()
            result = self.model.predict(pictures.decode(request.payload.body), request.payload.frame_size)
        with self._lock:
            self.inside -= 1
        return Reply(replace(result, model="the-cloud"), 0.0, time.monotonic() - begun_s)


@pytest.fixture
def cloud(colours: Path) -> Iterator[Cloud]:
    served = Cloud(colours)
    yield served
    served.close()


class Fixed:
    """A policy that always decides the same, and remembers what it was told."""

    def __init__(self, place: Place, timeout_s: float = 30.0) -> None:
        self._decision = Decision(place, None, 0.012, "as the test says", timeout_s if place is Place.CLOUD else None)
        self.asks: list[Ask] = []
        self.learnt: list[Any] = []
        self.up = True
        self.renews = False
        self._inside = threading.Lock()

    def decide(self, ask: Ask) -> Decision:
        assert self._inside.acquire(blocking=False), "two threads in the policy at once"
        self.asks.append(ask)
        self._inside.release()
        if not key(ask, Place.CLOUD):
            return replace(self._decision, place=Place.EDGE)
        return replace(self._decision, renew=self.renews)

    def learn(self, outcome: Any) -> None:
        assert self._inside.acquire(blocking=False), "two threads in the policy at once"
        self.learnt.append(outcome)
        self._inside.release()

    def probe_due(self, now_s: float) -> int | None:
        return None

    def link(self) -> LinkEstimate:
        return LinkEstimate(8e6, 0.004, self.up)

    def of(self, kind: type) -> list[Any]:
        return [outcome for outcome in self.learnt if isinstance(outcome, kind)]


APP = "source: {{images: {photos}{more}}}\nsteps: [{{classify: MODEL, cloud: big, {options}}}]\nraw: {raw}\n"


@pytest.fixture
def placed(build: Any, photos: Path, cloud: Cloud, colours: Path) -> Callable[..., Any]:
    """Build an app whose `cloud: big` is answered by `cloud`."""

    def make(policy: Any, *, options: str = "top: 3", more: str = "", raw: str = "allowed") -> Any:
        card = cloud.model.card
        return build(
            APP.format(photos=photos, more=more, options=options, raw=raw),
            remote=cloud,
            cloud_cards={"big": card},
            policy=policy,
        )

    return make


NAMES = ["red", "green", "blue"] * 3


def test_the_cloud_answers_what_is_sent_to_it(placed: Any, cloud: Cloud) -> None:
    policy = Fixed(Place.CLOUD)
    pipeline, seen = placed(policy)
    pipeline.run()
    assert seen.labels == NAMES
    assert {frame.result.model for frame in seen.frames} == {"the-cloud"}
    assert {frame.placed.place for frame in seen.frames} == {Place.CLOUD}
    request = cloud.asked[0]
    assert (request.model, request.version, request.payload.media) == ("colours", 7, "image/jpeg")
    assert request.payload.frame_size == (48, 64)
    # Fitted to the cloud model's input before it travels.
    assert pictures.decode(request.payload.body).shape == (16, 16, 3)
    stats = pipeline.stats()
    assert (stats["cloud"], stats["edge"], stats["timeouts"]) == (9, 0, 0)
    assert (stats["link_rate_bit_s"], stats["link_rtt_ms"], stats["link_up"]) == (8e6, 4.0, True)
    sent, outcomes = policy.of(CloudSent), policy.of(CloudOutcome)
    assert [s.bytes for s in sent] == [len(r.payload.body) for r in cloud.asked]
    assert {o.id for o in outcomes} == {s.id for s in sent}
    assert all(o.ok and o.service_s > 0 for o in outcomes)
    event = seen.events[0].data
    assert (event["place"], event["predicted_ms"], event["reason"]) == ("cloud", 12.0, "as the test says")
    assert event["sent_bytes"] == len(request.payload.body)


def test_a_silent_cloud_is_answered_for_by_the_edge(placed: Any, cloud: Cloud) -> None:
    cloud.gate.clear()
    policy = Fixed(Place.CLOUD, timeout_s=0.02)
    pipeline, seen = placed(policy)
    pipeline.run()
    assert seen.labels == NAMES
    assert all(frame.placed.fallback and frame.placed.place is Place.EDGE for frame in seen.frames)
    stats = pipeline.stats()
    assert (stats["timeouts"], stats["edge"], stats["cloud"]) == (9, 9, 0)
    assert [o.timed_out for o in policy.of(CloudOutcome)] == [True] * 9
    assert len(policy.of(EdgeOutcome)) == 9


def test_a_late_reply_changes_no_answer_but_is_learnt(
    placed: Any, cloud: Cloud, running: Callable[[Pipeline], threading.Thread]
) -> None:
    cloud.gate.clear()
    policy = Fixed(Place.CLOUD, timeout_s=0.02)
    pipeline, seen = placed(policy, more=", repeat: true")
    thread = running(pipeline)
    assert seen.arrived(4)
    cloud.gate.set()
    deadline_s = time.monotonic() + 30
    while not any(o.ok for o in policy.of(CloudOutcome)) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    pipeline.stop()
    thread.join(30)
    late = {o.id for o in policy.of(CloudOutcome) if o.timed_out} & {o.id for o in policy.of(CloudOutcome) if o.ok}
    assert late
    order = [frame.index for frame in seen.frames]
    assert order == sorted(set(order))
    assert all(frame.result.model != "the-cloud" for frame in seen.frames if frame.placed.fallback)


def test_a_cloud_that_refuses_costs_no_wait(placed: Any, cloud: Cloud) -> None:
    cloud.refuse = True
    policy = Fixed(Place.CLOUD, timeout_s=30)
    pipeline, seen = placed(policy)
    pipeline.run()  # with one wait of the 30 s the test would time out
    assert seen.labels == NAMES
    assert all(frame.placed.fallback for frame in seen.frames)
    outcomes = policy.of(CloudOutcome)
    assert len(outcomes) == 9
    assert not any(o.ok or o.timed_out for o in outcomes)
    assert pipeline.stats()["timeouts"] == 0


def test_a_way_to_the_cloud_that_breaks_costs_no_answer(
    placed: Any, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "marram.pipeline")

    def broken(request: CloudInput, timeout_s: float) -> Future[Reply]:
        if len(cloud.asked) % 2:
            cloud.asked.append(request)
            raise RuntimeError("a bug")
        cloud.asked.append(request)
        failed: Future[Reply] = Future()
        failed.set_exception(ValueError("another"))
        return failed

    cloud.infer = broken  # type: ignore[method-assign]
    pipeline, seen = placed(Fixed(Place.CLOUD))
    pipeline.run()
    assert seen.labels == NAMES
    assert all(frame.placed.fallback for frame in seen.frames)
    # A bug is no cloud that is away: it is counted, and the log names it once, with its place and without a traceback.
    stats = pipeline.stats()
    assert stats["errors"] == 9
    assert "asking the cloud failed: " in stats["last_error"]
    told = [record for record in caplog.records if record.name == "marram.pipeline.offload"]
    warned = [record.getMessage() for record in told if record.levelname == "WARNING"]
    assert sorted(line.partition(" (")[0] for line in warned) == [
        "asking the cloud: RuntimeError: a bug",
        "the cloud's answer: ValueError: another",
    ]
    assert not any(record.exc_info for record in told if record.levelname == "WARNING")
    assert sum(bool(record.exc_info) for record in told if record.levelname == "DEBUG") == 9


def test_a_cloud_that_is_away_is_no_bug(placed: Any, cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.refuse = True
    pipeline, seen = placed(Fixed(Place.CLOUD))
    pipeline.run()
    assert seen.labels == NAMES
    assert pipeline.stats()["errors"] == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_built_and_not_run_leaves_nothing(placed: Any) -> None:
    pipeline, seen = placed(Fixed(Place.CLOUD))
    pipeline.close()
    assert seen.frames == [] and seen.closed == 1


def test_stop_gives_up_what_is_under_way(
    placed: Any, cloud: Cloud, running: Callable[[Pipeline], threading.Thread]
) -> None:
    cloud.gate.clear()
    pipeline, seen = placed(Fixed(Place.CLOUD, timeout_s=600))
    taken = counting(pipeline)
    thread = running(pipeline)
    assert cloud.arrived.acquire(timeout=30)
    pipeline.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert seen.frames == []
    stats = pipeline.stats()
    assert (stats["frames"], stats["errors"]) == (0, 0)
    assert stats["dropped"] == len(taken) > 0


def counting(pipeline: Pipeline) -> list[int]:
    """The frames that a pipeline takes from its source from now on."""
    taken: list[int] = []
    real = pipeline._source.frames

    def frames() -> Iterator[Frame]:
        for frame in real():
            taken.append(frame.index)
            yield frame

    pipeline._source.frames = frames  # type: ignore[method-assign]
    return taken


@pytest.mark.parametrize("where", [Place.EDGE, Place.CLOUD])
def test_stop_leaves_no_frame_unaccounted_for(
    placed: Any, where: Place, running: Callable[[Pipeline], threading.Thread]
) -> None:
    for enough in (1, 5, 20):
        pipeline, seen = placed(Fixed(where), options="parallel: 2", more=", repeat: true")
        taken = counting(pipeline)
        thread = running(pipeline)
        assert seen.arrived(enough)
        pipeline.stop()
        thread.join(30)
        stats = pipeline.stats()
        assert stats["frames"] == len(seen.frames)
        assert stats["frames"] + stats["dropped"] == len(taken)
        assert stats["errors"] == 0


def test_what_may_not_leave_is_never_sent(placed: Any, cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    policy = Fixed(Place.CLOUD)
    pipeline, seen = placed(policy, raw="never")
    pipeline.run()
    assert seen.labels == NAMES
    assert pipeline.stats()["edge"] == 9
    assert cloud.asked == []
    assert policy.asks and not any(key(ask, Place.CLOUD) for ask in policy.asks)
    assert "steps[0].cloud: is never asked" in caplog.text
    with pytest.raises(Invalid, match="the cloud may not answer"):
        placed(policy, raw="never", options="place: cloud")


def test_an_audit_sends_nothing_that_may_not_leave(placed: Any, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit.Audit, "block", lambda self, now_s: Place.CLOUD)
    pipeline, seen = placed(Fixed(Place.CLOUD), raw="never", options="audit: 100 %")
    pipeline.run()
    assert seen.labels == NAMES
    assert cloud.asked == []


@pytest.mark.parametrize(("marks", "sent"), [("frame.index % 3 == 0", 3), ("False", 0)])
@pytest.mark.parametrize("block", [None, Place.CLOUD])
def test_only_what_is_marked_as_redacted_is_sent(
    build: Any,
    photos: Path,
    cloud: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: Place | None,
    marks: str,
    sent: int,
) -> None:
    monkeypatch.setattr(audit.Audit, "block", lambda self, now_s: block)
    (tmp_path / "mine.py").write_text(f"def hide(frame, result):\n    frame.redacted = {marks}\n    return frame\n")
    steps = "[{function: mine.py:hide}, {classify: MODEL, cloud: big}]"
    text = f"source: {{images: {photos}}}\nraw: redacted\nsteps: {steps}"
    card = cloud.model.card
    cards = {"big": card}
    pipeline, seen = build(text, remote=cloud, cloud_cards=cards, policy=Fixed(Place.CLOUD))
    pipeline.run()
    assert seen.labels == NAMES
    assert len(cloud.asked) == sent
    assert pipeline.stats()["audit_cloud_frames" if block else "cloud"] == sent


def test_the_policy_hears_what_it_asks_for(placed: Any) -> None:
    policy = Fixed(Place.EDGE)
    pipeline, _ = placed(policy, options="parallel: 2, deadline: 200 ms, place: surest")
    pipeline.run()
    ask = policy.asks[-1]
    assert (key(ask, Place.EDGE), key(ask, Place.CLOUD)) == ("colours@7/onnx 4^6px", "colours@7")
    assert (ask.edge_parallel, ask.objective) == (2, "surest")
    assert ask.deadline_s is not None and 0.1 < ask.deadline_s <= 0.2  # what is left of it
    assert ask.ways[1].payload_bytes > 0
    assert 0 <= ask.edge_waiting <= 4
    assert all(o.key == "colours@7/onnx 4^6px" and o.service_s > 0 for o in policy.of(EdgeOutcome))


def test_the_edge_runs_what_another_place_answers_where_the_policy_wants_its_time(placed: Any, cloud: Cloud) -> None:
    policy = Fixed(Place.CLOUD)
    policy.renews = True
    pipeline, _ = placed(policy)
    pipeline.run()
    stats = pipeline.stats()
    assert stats["cloud"] == stats["frames"] == len(cloud.asked) and not stats["edge"]
    assert 1 <= len(policy.of(EdgeOutcome)) <= stats["frames"]
    assert {outcome.key for outcome in policy.of(EdgeOutcome)} == {key(policy.asks[0], Place.EDGE)}


def test_what_the_policy_drops_is_counted(placed: Any) -> None:
    pipeline, seen = placed(Fixed(Place.DROP))
    pipeline.run()
    assert seen.frames == []
    assert pipeline.stats()["dropped"] == 9


def test_answers_while_the_link_is_away_are_counted(placed: Any) -> None:
    policy = Fixed(Place.EDGE)
    policy.up = False
    pipeline, _ = placed(policy)
    pipeline.run()
    stats = pipeline.stats()
    assert (stats["answered_while_away"], stats["link_up"]) == (9, False)


def test_the_real_policy_probes_finds_the_cloud_and_uses_it(
    placed: Any, cloud: Cloud, running: Callable[[Pipeline], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An edge two hundred times slower: whoever measures sends most to the cloud.
    monkeypatch.setenv("MARRAM_SLOWDOWN", "200")
    pipeline, seen = placed(LatencyPolicy(), more=", every: 5 ms, repeat: true")
    running(pipeline)
    deadline_s = time.monotonic() + 60
    while pipeline.stats()["cloud"] < 5 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert pipeline.stats()["cloud"] >= 5
    assert cloud.probes > 0
    # And when it goes away, answers keep coming.
    cloud.refuse = True
    before = len(seen.frames)
    assert seen.arrived(before + 5)
    cloud.refuse = False


def test_one_policy_keeps_what_all_steps_may_spend(
    build: Any, photos: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Told(LatencyPolicy):
        def __init__(self, **given: Any) -> None:
            made.append(given)
            super().__init__(**given)

    monkeypatch.setattr(build_module, "LatencyPolicy", Told)
    costs = "costs: {edge: 4 W, send: 1.2 W, cloud: 0.0004}"
    steps = (
        f"[{{classify: MODEL, cloud: big, hedge: 3 %, {costs}, budget: {{power: 1 W, money: 2/day}}}}, "
        f"{{classify: MODEL, cloud: big, hedge: no, {costs}, budget: {{power: 500 mW}}}}, {{classify: MODEL}}]"
    )
    text = f"source: {{images: {photos}}}\nraw: allowed\nsteps: {steps}\n"
    for device in ("pi-1", "pi-2"):
        pipeline, _ = build(text, remote=cloud, cloud_cards={"big": cloud.model.card}, device=device)
        pipeline.close()
    assert made[0]["budget"].watts == 1.5 and made[0]["budget"].money_s == pytest.approx(2 / 86400)
    assert made[0]["hedge_share"] == 0.03
    assert made[0]["seed"] != made[1]["seed"]  # or all devices would choose the same replica


def test_the_policy_hears_what_an_inference_costs(placed: Any) -> None:
    policy = Fixed(Place.EDGE)
    placed(policy, options="costs: {edge: 4 W, send: 1.2 W, cloud: 0.0004}")[0].run()
    assert policy.asks[-1].costs == Costs(4.0, 1.2, 0.0004)


def test_slow_down_stretches_what_the_policy_learns(placed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def typical_s(factor: str) -> float:
        monkeypatch.setenv("MARRAM_SLOWDOWN", factor)
        policy = Fixed(Place.EDGE)
        pipeline, _ = placed(policy)
        pipeline.run()
        return float(np.median([o.service_s for o in policy.of(EdgeOutcome)]))

    assert typical_s("200") > 10 * typical_s("1")


@pytest.mark.parametrize("text", ["fast", "0", "-3", "1e9", "nan"])
def test_a_wrong_slow_down_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MARRAM_SLOWDOWN", text)
    with pytest.raises(Invalid, match="MARRAM_SLOWDOWN"):
        slowdown()


def test_one_failing_frame_is_counted(build: Any, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Model.predict, 0

    def sometimes(model: Model, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Invalid("the model answered NaN")
        return real(model, *given)

    monkeypatch.setattr(Model, "predict", sometimes)
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    assert [frame.index for frame in seen.frames] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert pipeline.stats()["errors"] == 1
    assert pipeline.stats()["last_error"] == "the model answered NaN"


# ---------------------------------------------------------------- audits


def test_audit_blocks_take_their_share_and_alternate() -> None:
    plan = audit.Audit(0.1, started_s=100.0)
    instants = [100 + n / 100 for n in range(20000)]  # 200 s
    blocks = [plan.block(now_s) for now_s in instants]
    assert blocks.count(Place.EDGE) == pytest.approx(0.05 * len(blocks), rel=0.1)
    assert blocks.count(Place.CLOUD) == pytest.approx(0.05 * len(blocks), rel=0.1)
    changes = [b for a, b in itertools.pairwise(blocks) if b is not a and b is not None]
    assert changes[:4] == [Place.EDGE, Place.CLOUD, Place.EDGE, Place.CLOUD]
    assert blocks[0] is None


def test_no_audit_without_a_share_and_all_the_time_with_all_of_it() -> None:
    assert {audit.Audit(0.0, 0.0).block(now_s) for now_s in range(100)} == {None}
    always = audit.Audit(1.0, 0.0)
    assert [always.block(now_s + 0.5) for now_s in range(4)] == [Place.EDGE, Place.CLOUD] * 2


def test_a_block_that_is_given_up_ends_and_the_next_one_comes() -> None:
    plan = audit.Audit(1.0, 0.0)
    plan.give_up(1.2)
    assert [plan.block(t) for t in (1.3, 2.3, 3.3)] == [None, Place.EDGE, Place.CLOUD]


def test_audited_frames_are_measured_apart(
    placed: Any, cloud: Cloud, running: Callable[[Pipeline], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BLOCK_S", 0.05)
    policy = Fixed(Place.EDGE)
    pipeline, seen = placed(policy, options="audit: 100 %, parallel: 2", more=", repeat: true")
    thread = running(pipeline)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        stats = pipeline.stats()
        if stats["audit_edge_frames"] >= 5 and stats["audit_cloud_frames"] >= 5:
            break
        time.sleep(0.01)
    pipeline.stop()
    thread.join(30)
    stats = pipeline.stats()
    assert stats["audit_edge_frames"] >= 5 and stats["audit_cloud_frames"] >= 5
    assert stats["always_edge_p50_ms"] > 0 and stats["always_cloud_p50_ms"] > 0
    assert stats["edge"] == stats["cloud"] == 0
    assert stats["p50_ms"] is None
    assert policy.asks == []  # in a block the policy is not asked
    assert cloud.most == 1  # and in the cloud's block one request travels at a time
    assert all(frame.placed.audit for frame in seen.frames)
    # What a block measured is true of link and edge, so it is learnt.
    assert policy.of(EdgeOutcome) and policy.of(CloudOutcome)


def test_no_audit_while_the_cloud_is_away(placed: Any, monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    policy = Fixed(Place.EDGE)
    policy.up = False
    pipeline, seen = placed(policy, options="audit: 100 %")
    pipeline.run()
    assert not any(frame.placed.audit for frame in seen.frames)
    assert cloud.asked == []
