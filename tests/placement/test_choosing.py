"""Which of the ways is the surest where accuracies were measured for some, or for none."""

from __future__ import annotations

import pytest

from marram.placement.choosing import choose
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
        (None, None, "jpeg-85"),  # the same model answers both: the soonest
    ],
)
def test_the_cloud_model_is_as_sure_in_two_parts_as_whole(
    picture: float | None, crossing: float | None, surest: str
) -> None:
    ways = (EDGE, far(Place.CLOUD, "jpeg-85", picture), far(Place.SPLIT, "cut:a", crossing))
    forecasts = [Forecast(way, 0.1, loss_s=loss) for way, loss in zip(ways, (0.01, 0.1, 0.2), strict=True)]
    chosen = choose(Ask(0.0, ways, objective="surest"), forecasts, 4, 0.9).forecast
    assert chosen is not None and chosen.way.codec == surest
    # Sooner in two parts, with the same answers: in two parts.
    sooner = [Forecast(way, 0.1, loss_s=loss) for way, loss in zip(ways, (0.01, 0.2, 0.1), strict=True)]
    same = choose(Ask(0.0, ways, objective="surest"), sooner, 4, 0.9).forecast
    assert same is not None and (picture is not None or same.way.codec == "cut:a")
