"""What an event tells of why a frame went where it did: enough to explain it, little enough to travel with results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from marram.pipeline.contract import Frame, Placed
from marram.pipeline.events import MOST_WAYS, data_of, why_of
from marram.placement.contract import Considered, Costs, Decision, Way
from marram.schema.model import Task
from marram.schema.result import Place, Result

EDGE = Considered(Way(Place.EDGE, "m@1/int8 4^9px"), 0.13216, 0.121, 0.155, wait_s=0.0402, service_s=0.0919)
CLOUD = Considered(
    Way(Place.CLOUD, "big@2", 12_034, codec="jpeg-85", encode_s=0.0021), 0.0612, 0.0483, 0.0902,
    front_s=0.0021, transfer_s=0.0153, rtt_s=0.0312, queue_s=0.0021, service_s=0.0131,
)  # fmt: skip
SPLIT = Considered(
    Way(Place.SPLIT, "big@2/stem", 4_120, front="big@2/stem/front 4^9px", codec="cut:stem"), 0.0899, 0.07, 0.12,
    front_s=0.0333, transfer_s=0.0052, rtt_s=0.0312, queue_s=0.0021, service_s=0.0188,
)  # fmt: skip


def decided(considered: Sequence[Considered], chosen: Considered = CLOUD, replica: str | None = "r-7f3a9c") -> Decision:
    return Decision(
        chosen.way.place, chosen.way, chosen.total_s, "soonest", replica=replica,
        low_s=chosen.low_s, high_s=chosen.high_s, considered=tuple(considered),
    )  # fmt: skip


def event(placed: Placed) -> dict[str, object]:
    frame = Frame(10417, 0.0, 0.0, image=np.zeros((1, 1, 3), np.uint8))
    frame.result, frame.placed = Result(Task.CLASSIFICATION, "big@2", "gate", 0.9), placed
    return data_of(frame)


def test_the_chosen_way_stands_first_with_its_parts() -> None:
    why = why_of(decided([EDGE, CLOUD, SPLIT]))
    assert (why["low_ms"], why["high_ms"], why["replica"]) == (48, 90, "r-7f3a9c")
    first, *others = why["ways"]
    assert first == {
        "place": "cloud", "codec": "jpeg-85", "bytes": 12034, "total_ms": 61,
        "front_ms": 2.1, "transfer_ms": 15, "rtt_ms": 31, "queue_ms": 2.1, "service_ms": 13,
    }  # fmt: skip
    assert [way["place"] for way in others] == ["split", "edge"]
    assert others[1] == {"place": "edge", "total_ms": 132, "wait_ms": 40, "service_ms": 92}


def test_what_a_choice_went_by_besides_the_delay_is_told() -> None:
    decision = replace(decided([EDGE, replace(CLOUD, on_time=0.8312), SPLIT]), costs=Costs(4.0, 1.2, 0.0004))
    cloud, split, edge = why_of(decision)["ways"]
    assert (cloud["on_time"], cloud["money"]) == (0.83, 0.0004)
    assert cloud["energy_j"] == pytest.approx(4.0 * 0.0021 + 1.2 * 0.0153, rel=0.01)
    assert edge["energy_j"] == pytest.approx(4.0 * 0.0919, rel=0.01)
    assert "money" not in edge and "on_time" not in edge and split["money"] == 0.0004
    certain = why_of(decided([EDGE, replace(CLOUD, on_time=0.999)]))["ways"][0]
    assert not {"on_time", "money", "energy_j"} & set(certain)


def test_three_ways_take_less_than_400_bytes() -> None:
    assert len(msgpack.packb(why_of(decided([EDGE, CLOUD, SPLIT])))) < 400


def test_of_many_ways_the_chosen_the_best_to_each_place_and_the_next_best_are_told() -> None:
    codecs = [
        Considered(Way(Place.CLOUD, "big@2", 1000 * n, codec=f"jpeg-{n}"), 0.07 + n / 1000, 0.0, 0.0) for n in range(9)
    ]
    told = why_of(decided([*reversed(codecs), EDGE, CLOUD, SPLIT]))["ways"]
    assert [way.get("codec", way["place"]) for way in told] == ["jpeg-85", "cut:stem", "edge", "jpeg-0"]
    assert len(told) == MOST_WAYS


def test_a_way_that_was_no_choice_says_why_and_no_numbers() -> None:
    away = Considered(CLOUD.way, math.inf, math.inf, math.inf, excluded="the cloud is away")
    edge, cloud = why_of(decided([away, EDGE], EDGE, None))["ways"]
    assert cloud == {"place": "cloud", "codec": "jpeg-85", "bytes": 12034, "excluded": "the cloud is away"}
    assert edge["place"] == "edge"


def test_no_number_that_is_none_reaches_an_event() -> None:
    odd = Considered(CLOUD.way, math.inf, math.nan, math.inf, rtt_s=math.nan)
    text = json.dumps(event(Placed(Place.EDGE, 0.1, 0.1, decision=decided([odd, EDGE], odd))), allow_nan=False)
    assert "total_ms" in text


def test_an_event_says_what_was_out_of_the_ordinary_only_where_it_was() -> None:
    plain = event(Placed(Place.CLOUD, 0.057, 0.0612, decision=decided([EDGE, CLOUD])))
    assert not {"hedged", "escalated", "verified"} & plain.keys() and plain["why"]
    odd = event(Placed(Place.EDGE, 0.2, None, hedged=True, escalated=True, verified=False))
    assert (odd["hedged"], odd["escalated"], odd["verified"]) == (True, True, False)
    assert "why" not in odd  # nothing was weighed
