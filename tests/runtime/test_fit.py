"""The geometry of fits: what goes into the input comes back to where it was in the frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.runtime.fit import plan
from marram.schema.errors import Invalid
from marram.schema.model import Input

FITS = st.sampled_from(["stretch", "crop", "letterbox"])
LENGTH = st.integers(1, 4000)


@given(FITS, LENGTH, LENGTH, st.integers(1, 640), st.integers(1, 640), st.floats(0.1, 1))
def test_parts_lie_inside_and_corners_come_back(
    how: str, h: int, w: int, rows: int, columns: int, share: float
) -> None:
    fit = plan(Input(size=[rows, columns], fit=how, crop_share=share), h, w)  # type: ignore[arg-type]
    sx, sy, sw, sh = fit.source
    tx, ty, tw, th = fit.target
    assert sx >= 0 and sy >= 0 and sw >= 1 and sh >= 1 and sx + sw <= w and sy + sh <= h
    assert tx >= 0 and ty >= 0 and tw >= 1 and th >= 1 and tx + tw <= columns and ty + th <= rows
    assert fit.to_frame(tx, ty) == pytest.approx((sx, sy))
    assert fit.to_frame(tx + tw, ty + th) == pytest.approx((sx + sw, sy + sh))
    assert fit.box_to_frame(-1e6, -1e6, 1e6, 1e6) == (0, 0, w, h)  # never outside the frame


def test_stretch_uses_all_of_both() -> None:
    fit = plan(Input(size=[224, 224]), 480, 640)
    assert (fit.source, fit.target) == ((0, 0, 640, 480), (0, 0, 224, 224))


def test_crop_is_centred_and_keeps_the_inputs_aspect() -> None:
    assert plan(Input(size=[224, 224], fit="crop"), 480, 640).source == (110, 30, 420, 420)
    assert plan(Input(size=[100, 200], fit="crop", crop_share=1), 480, 640).source == (0, 80, 640, 320)


def test_letterbox_is_centred_and_keeps_the_frames_aspect() -> None:
    assert plan(Input(size=[320, 320], fit="letterbox"), 480, 640).target == (0, 40, 320, 240)
    assert plan(Input(size=[320, 320], fit="letterbox"), 640, 480).target == (40, 0, 240, 320)


def test_an_empty_frame_is_invalid() -> None:
    with pytest.raises(Invalid, match="nothing in it"):
        plan(Input(size=[2, 2]), 0, 5)
