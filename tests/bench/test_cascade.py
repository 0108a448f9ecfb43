"""The judge of `bench/cascade` is right: a stream small enough to work out by hand, and corruptions that repeat."""

from __future__ import annotations

import random

import numpy as np
import pytest
from bench.cascade import Curve, Item, play

from bench import _pictures
from marram.placement.cascade import Cascade

# Least sure first: wrong, right, wrong, right, right.
STREAM = [
    Item(10 + n, n / 10, loss, not loss, True) for n, loss in enumerate((1.0, 0.0, 1.0, 0.0, 0.0))
]  # fmt: skip


def test_fixed_thresholds_in_hindsight() -> None:
    curve = Curve.of(STREAM)
    assert [round(sent, 3) for sent, _ in curve.points] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [round(agreement, 3) for _, agreement in curve.points] == [0.6, 0.8, 0.8, 1.0, 1.0, 1.0]
    assert curve.sent_for(0.6) == 0.0 and curve.sent_for(0.7) == 0.2 and curve.sent_for(0.9) == pytest.approx(0.6)
    assert curve.agreement_for(0.5) == pytest.approx(0.8) and curve.agreement_for(1.0) == 1.0
    assert curve.least_cost(0.1) == pytest.approx(0.06) and curve.least_cost(0.9) == pytest.approx(0.38)
    assert curve.oracle_sends(1.0) == pytest.approx(0.4) and curve.oracle_sends(0.8) == pytest.approx(0.2)


def test_equally_sure_answers_go_together() -> None:
    curve = Curve.of([Item(10, 0.5, loss, True, True) for loss in (1.0, 0.0, 1.0)])
    assert len(curve.points) == 2


def test_a_played_stream_is_counted_whole() -> None:
    """While it learns everything is sent: all agree, each costs its price."""
    played = play(Cascade(accuracy=0.99), STREAM, random.Random(1), lambda number: 0.25)
    assert (played.sent, played.agreement, played.accuracy, played.cost) == (1.0, 1.0, 1.0, 0.25)
    # A budget that is not earned yet: nothing is sent, and two of five are wrong.
    played = play(Cascade(offload=0.1, checks=0.0), STREAM, random.Random(1), lambda number: 0.25)
    assert (played.sent, played.agreement, played.accuracy, played.cost) == (0.0, 0.6, 0.6, 0.4)


@pytest.mark.parametrize("kind", list(_pictures.CORRUPTIONS))
def test_corruptions_repeat_and_grow(kind: str) -> None:
    corrupt, strengths = _pictures.CORRUPTIONS[kind]
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    far = []
    for strength in strengths:
        once, again = (corrupt(picture, strength, np.random.default_rng(1)) for _ in range(2))
        assert once.shape == picture.shape and once.dtype == np.uint8 and np.array_equal(once, again)
        far.append(np.abs(once.astype(float) - picture).mean())
    assert far == sorted(far) and far[0] > 1
