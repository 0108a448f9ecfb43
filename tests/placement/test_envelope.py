"""The envelope of ways against looking at every way: what is soonest, what never is, and where a cut pays."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.placement.envelope import SLOWDOWNS, Envelope, Option, options_of
from marram.schema.model import Codec, Cut, Input, ModelCard, Output, Task, Variant
from marram.schema.result import Place

amounts = st.floats(0, 100, allow_nan=False).map(lambda x: round(x, 3))
options = st.lists(
    st.builds(
        lambda place, front, encode, size, back: Option(
            "", place, front, encode, 0.0 if place is Place.EDGE else size, 0.0 if place is Place.EDGE else back
        ),
        st.sampled_from([Place.EDGE, Place.CLOUD, Place.SPLIT]),
        amounts,
        amounts,
        amounts,
        amounts,
    ),
    min_size=1,
    max_size=12,
)
links = st.floats(0, 1000, allow_nan=False)


def soonest(given: list[Option], per_byte_s: float, slowdown: float) -> float:
    return min(option.at(per_byte_s, slowdown) for option in given)


@given(options, links, st.sampled_from(SLOWDOWNS))
def test_the_best_way_is_the_soonest_of_all(given: list[Option], per_byte_s: float, slowdown: float) -> None:
    envelope = Envelope(given)
    best = envelope.best(per_byte_s, slowdown)
    assert best.at(per_byte_s, slowdown) == pytest.approx(soonest(given, per_byte_s, slowdown), rel=1e-9, abs=1e-9)
    assert best in envelope.winners()


@given(options, links, st.floats(SLOWDOWNS[0], SLOWDOWNS[-1], allow_nan=False))
def test_between_the_steps_nothing_much_is_missed(given: list[Option], per_byte_s: float, slowdown: float) -> None:
    best = Envelope(given).best(per_byte_s, slowdown).at(per_byte_s, slowdown)
    assert best <= soonest(given, per_byte_s, slowdown) * 1.024 + 1e-9


@given(options)
def test_whoever_is_no_winner_is_never_sooner_than_all_winners(given: list[Option]) -> None:
    winners = Envelope(given).winners()
    for slowdown in SLOWDOWNS[::8]:
        for per_byte_s in (0.0, 0.01, 0.3, 1.0, 7.0, 500.0):
            least = soonest(given, per_byte_s, slowdown)
            assert soonest(winners, per_byte_s, slowdown) <= least * (1 + 1e-9) + 1e-9


@given(options, st.floats(0.01, 0.5))
def test_where_a_cut_is_said_to_gain_it_does_and_nowhere_more(given: list[Option], worth: float) -> None:
    whole = [option for option in given if option.place is not Place.SPLIT]
    gains = {id(gain.option): gain for gain in Envelope(given).gains(worth)}

    def saved(split: Option, per_byte_s: float, slowdown: float) -> float:
        least = soonest(whole, per_byte_s, slowdown)
        return 1 - split.at(per_byte_s, slowdown) / least if least > 1e-6 else -math.inf

    for split in (option for option in given if option.place is Place.SPLIT and whole):
        gain = gains.get(id(split))
        found = max(saved(split, 2.0**n, slowdown) for n in range(-20, 21, 2) for slowdown in SLOWDOWNS[::4])
        assert found <= (gain.share if gain is not None else worth) + 1e-6
        if gain is not None and gain.per_byte_s != math.inf:
            assert saved(split, gain.per_byte_s, gain.slowdown) == pytest.approx(gain.share, abs=1e-6)
            assert saved(split, gain.least_per_byte_s, gain.slowdown) >= worth - 1e-6


def test_a_cut_wins_only_where_it_shrinks_more_than_it_leaves() -> None:
    """The rule in the module's words: B / J < b / W."""
    edge, cloud = Option("edge", Place.EDGE, 10), Option("jpeg", Place.CLOUD, bytes=10_000, back_s=10)
    for crossing, back in ((900, 0.1), (6200, 2.3), (9900, 5.4), (500, 0.4), (4000, 3.9)):
        cut = Option("cut", Place.SPLIT, 10 - back, bytes=crossing, back_s=back)
        assert Envelope([edge, cloud, cut]).gains(0.001) == []
    (gain,) = Envelope([edge, cloud, Option("cut", Place.SPLIT, 5, bytes=1000, back_s=5)]).gains()
    assert gain.share > 0.2
    assert gain.slowdown > 1  # on an edge as fast as the cloud nothing is gained by sending


def test_without_the_model_at_the_edge_the_smallest_wins_on_the_slowest_link() -> None:
    cloud = Option("jpeg", Place.CLOUD, bytes=10_000, back_s=10)
    (gain,) = Envelope([cloud, Option("cut", Place.SPLIT, 9.9, bytes=900, back_s=0.1)]).gains()
    assert gain.per_byte_s == gain.most_per_byte_s == math.inf
    assert gain.share == pytest.approx(0.91)


def test_a_model_without_whole_ways_gains_nothing() -> None:
    assert Envelope([Option("cut", Place.SPLIT, 1, bytes=5, back_s=1)]).gains() == []
    with pytest.raises(ValueError, match="needs a way"):
        Envelope([])


def card(**more: object) -> ModelCard:
    return ModelCard(
        model="m", task=Task.CLASSIFICATION, input=Input(size=[8, 8]), output=Output(form="logits"),
        variants=[Variant(name="fp32", engine="onnx", file="m.onnx")], licence="x", source="x", **more,
    )  # fmt: skip


def test_the_ways_of_a_card() -> None:
    codecs = [Codec(name="jpeg-85", bytes=900, loss=0, encode_ms=1), Codec(name="raw-zstd", bytes=9000, loss=0)]
    cut = Cut(name="mid", variant="fp32", tensor="t", front="f", back="b", shape=[4], scale=1, bytes=50, loss=0,
              front_ms=3, back_ms=7)  # fmt: skip
    made = options_of(card(codecs=codecs, cuts=[cut]), codecs, [cut], edge=True)
    assert [(o.name, o.place, o.at(0, 2)) for o in made] == [
        ("edge", Place.EDGE, 20),
        ("jpeg-85", Place.CLOUD, 12),
        ("raw-zstd", Place.CLOUD, 10),
        ("cut:mid", Place.SPLIT, 13),
    ]
    assert [o.name for o in options_of(card(codecs=codecs), codecs, [], edge=True)] == ["jpeg-85", "raw-zstd"]


def test_of_many_lines_the_lowest_is_found_everywhere() -> None:
    random = Random(3)
    given = [
        Option(str(n), Place.SPLIT, random.uniform(0, 9), bytes=random.uniform(1, 90), back_s=random.uniform(0, 9))
        for n in range(60)
    ]
    envelope = Envelope(given, [2.0])
    for per_byte_s in [n / 200 for n in range(400)]:
        assert envelope.best(per_byte_s, 2.0).at(per_byte_s, 2.0) == soonest(given, per_byte_s, 2.0)


def test_between_two_steps_the_next_ones_winner_is_looked_at_too() -> None:
    edge, cloud = Option("edge", Place.EDGE, 1.0), Option("cloud", Place.CLOUD, back_s=1.045)
    assert SLOWDOWNS[16] == 1 and SLOWDOWNS[17] > 1.05
    assert Envelope([edge, cloud]).best(0, 1.05) is cloud
    assert Envelope([edge, cloud]).best(0, 1.04) is edge
