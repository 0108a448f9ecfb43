"""Which way is the surest, measured or not; what is dropped where not everything can be answered."""

from __future__ import annotations

import pytest

from marram.placement.choosing import _surest, choose
from marram.placement.constants import SHIPPED
from marram.placement.contract import Ask, Way
from marram.placement.forecast import Forecast
from marram.schema.result import Place

EDGE = Way(Place.EDGE, "m")


def far(place: Place, codec: str, accuracy: float | None) -> Way:
    return Way(place, "big", 10_000, codec=codec, accuracy=accuracy)


@pytest.mark.parametrize(
    ("picture", "crossing", "surest"),
    [
        (0.98, 1.0, "cut:a"),  # the more accurate, though later
        (1.0, 0.98, "jpeg-85"),
        (0.9997, 1.0, "jpeg-85"),  # nobody can tell them apart: the soonest
        (None, None, "jpeg-85"),  # the same model answers both: the soonest
    ],
)
def test_the_cloud_model_is_as_sure_in_two_parts_as_whole(
    picture: float | None, crossing: float | None, surest: str
) -> None:
    ways = (EDGE, far(Place.CLOUD, "jpeg-85", picture), far(Place.SPLIT, "cut:a", crossing))
    ask = Ask(0.0, ways, objective="surest")
    forecasts = [Forecast(way, 0.1, loss_s=loss) for way, loss in zip(ways, (0.01, 0.1, 0.2), strict=True)]
    assert _surest(ask, forecasts).way.codec == surest
    # Sooner in two parts, with the same answers: in two parts.
    sooner = [Forecast(way, 0.1, loss_s=loss) for way, loss in zip(ways, (0.01, 0.2, 0.1), strict=True)]
    assert picture is not None or _surest(ask, sooner).way.codec == "cut:a"


@pytest.mark.parametrize(("whole_s", "parted_s", "soonest"), [(0.2, 0.1, "cut:a"), (0.1, 0.2, "jpeg-85")])
def test_always_the_cloud_is_its_model_by_the_soonest_way(whole_s: float, parted_s: float, soonest: str) -> None:
    ways = (EDGE, far(Place.CLOUD, "jpeg-85", None), far(Place.SPLIT, "cut:a", None))
    ask = Ask(0.0, ways, objective="cloud")
    losses = (0.01, whole_s, parted_s)
    forecasts = [Forecast(way, 0.1, loss_s=loss) for way, loss in zip(ways, losses, strict=True)]
    chosen = choose(ask, forecasts, SHIPPED).forecast
    assert chosen is not None and chosen.way.codec == soonest
