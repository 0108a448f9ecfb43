"""The yardstick itself: the schedule in hindsight against every schedule there is, and streams as they say."""

from __future__ import annotations

import itertools
import math

import pytest

from marram.lab.oracle.baselines import AlwaysCloud, AlwaysEdge, KnowsThePresent, Profile
from marram.lab.oracle.compare import contenders, made_links, mean_of_links, over
from marram.lab.oracle.contention import crowd, sharing
from marram.lab.oracle.play import play, play_sharing, play_together
from marram.lab.oracle.schedule import best_loss_s
from marram.lab.oracle.stream import Setting, Stream, make_stream
from marram.lab.traces import constant, synthetic
from marram.placement.policy import LatencyPolicy
from marram.schema.result import Place

TINY = Setting("tiny", 15_000, 0.12, 8.0, frames=7, noise=0.3)


def every_schedule_s(stream: Stream) -> float:
    """The best of all 3^n schedules, each lived through on its own: frames served in order, late ones counted late."""
    setting, best_s = stream.setting, math.inf
    for places in itertools.product("ecd", repeat=setting.frames):
        link_s = edge_s = total_s = 0.0
        for frame, place in enumerate(places):
            now_s, latency_s = stream.captured_s(frame), math.inf
            if place == "e":
                edge_s = max(edge_s, now_s) + stream.edge_s[frame]
                latency_s = edge_s - now_s
            elif place == "c":
                link_s = stream.up.finish(max(link_s, now_s), setting.payload_bytes)
                latency_s = link_s + setting.rtt_s + stream.cloud_s[frame] - now_s
            total_s += setting.loss_s(latency_s)
        best_s = min(best_s, total_s)
    return best_s


@pytest.mark.parametrize("kind", ["lte", "3g"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_schedule_is_better_than_the_best(kind: str, seed: int) -> None:
    outages = ((0.2, 0.5),) if seed == 2 else ()
    stream = make_stream(f"{kind}:{seed}", TINY, synthetic(kind, seed).up, from_s=3.0 * seed, outages=outages)
    exact_s = every_schedule_s(stream)
    assert best_loss_s(stream, 1e-7) == pytest.approx(exact_s, rel=1e-6)
    # On its grid it is one that can be kept, and little worse.
    assert exact_s - 1e-9 <= best_loss_s(stream) <= 1.05 * exact_s


def test_who_knows_the_present_and_has_no_queue_is_the_best() -> None:
    setting = Setting("apart", 5000, 0.15, 2.0, frames=40)
    stream = make_stream("lte", setting, synthetic("lte", 4).up)
    assert play(stream, KnowsThePresent(stream)).loss_s == pytest.approx(best_loss_s(stream), rel=1e-9)


def test_nothing_leaves_during_an_outage_and_rates_are_scaled() -> None:
    setting = Setting("outage", 10_000, 0.1, 5.0, scale=2.0, frames=50)
    up = make_stream("c", setting, constant(8e5, 0.04).up, outages=((2.0, 5.0),)).up
    assert up.finish(0.0, 100_000) == pytest.approx(0.5)
    assert up.finish(1.75, 100_000) == pytest.approx(5.25)


def test_streams_on_one_link_wait_for_each_other() -> None:
    setting = Setting("shared", 15_000, 0.15, 5.0, frames=150)
    stream = make_stream("c", setting, constant(3e6, 0.04).up)
    alone = play(stream, LatencyPolicy())
    four = play_together([stream] * 4, [LatencyPolicy() for _ in range(4)])
    assert alone.placed[Place.CLOUD] > 0.9 * setting.frames
    # Together they would need 2.4 of the 3 Mbit/s, in bursts: nobody starves, nobody is late for long.
    assert all(score.miss_share < 0.05 for score in four)
    # Nor is anybody worse off than by itself: the edge alone loses half as much again as one with the link to itself.
    assert max(score.loss_s for score in four) < 1.05 * setting.frames * setting.edge_s


def test_streams_that_share_a_replica_wait_there_and_are_refused_what_would_be_late() -> None:
    setting = Setting("pool", 1000, 0.2, 10.0, cloud_s=0.08, noise=0.0, frames=40)
    stream = make_stream("c", setting, constant(1e9, 0.04).up)
    alone = play_sharing([stream], [AlwaysCloud(Profile.of(stream))], 1)[0]
    assert alone.latencies_s == pytest.approx(play(stream, AlwaysCloud(Profile.of(stream))).latencies_s)
    # Two replicas answer 25 a second, three streams ask 30 times: who sets no limit waits longer and longer.
    crowd_of = [AlwaysCloud(Profile.of(stream)) for _ in range(3)]
    scores = play_sharing([stream] * 3, crowd_of, 2)
    assert max(score.latencies_s[-1] for score in scores) > 0.5
    ours = play_sharing([stream] * 3, [LatencyPolicy() for _ in range(3)], 2)
    assert sum(score.loss_s for score in ours) < 0.7 * sum(score.loss_s for score in scores)
    assert all(score.placed[Place.CLOUD] > 0 for score in ours)


def test_a_crowd_is_many_different_streams_and_each_policy_plays_them_all() -> None:
    setting = Setting("crowd", 15_000, 0.15, 5.0, frames=30)
    streams = crowd(made_links()[:2], setting, 7)
    assert len({stream.name for stream in streams}) == 7 and len({stream.edge_s for stream in streams}) == 7
    makes = {name: contenders()[name] for name in ("marram", "always-edge", "always-cloud")}
    ours, edge, cloud = sharing(streams, 1, makes)
    assert (edge.streams, edge.replicas, edge.sent_bytes, edge.miss_share) == (7, 1, 0, 0.0)
    assert cloud.sent_bytes >= 7 * 30 * 15_000 and ours.loss_s < edge.loss_s
    assert ours == sharing(streams, 1, makes)[0]


def test_a_link_that_is_cut_costs_everybody_and_the_policy_least() -> None:
    link = made_links()[0]
    makes = {name: contenders()[name] for name in ("marram", "always-cloud", "EWMA + probes")}
    setting = Setting("A", 15_000, 0.15, 5.0, frames=300)
    fared = {each.policy: each for each in over(link, makes, [setting], [5.0], outages=((0.25, 0.35),))}
    assert fared["always-cloud"].miss_share > 0.09
    assert fared["marram"].regret < min(fared["always-cloud"].regret, fared["EWMA + probes"].regret)


def test_a_policy_is_told_what_happened_and_nothing_else() -> None:
    setting = Setting("edge", 15_000, 0.1, 5.0, frames=50)
    stream = make_stream("c", setting, constant(8e6, 0.04).up)
    score = play(stream, AlwaysEdge(Profile.of(stream)))
    assert score.latencies_s == pytest.approx(list(stream.edge_s))
    assert score.sent_bytes == score.probes == 0


def test_over_made_links_the_policy_is_nearer_than_every_baseline() -> None:
    """A tenth of what `bench.oracle` runs: one link of each kind."""
    links = [link for link in made_links() if link.name.endswith(":3")]
    makes = {name: make for name, make in contenders().items() if name != "LinUCB, discounted"}
    by_link = [over(link, makes) for link in links]
    for setting, goal in (("A", 0.07), ("B", 0.05), ("C", 0.08)):
        regret = {name: mean_of_links(by_link, setting, name)[0] for name in makes}
        assert regret["marram"] <= goal
        others = [value for name, value in regret.items() if name not in ("marram", "knows the present")]
        assert regret["marram"] <= min(others) + 0.005, regret
