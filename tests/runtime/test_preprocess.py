"""Preprocessing: the table path is bit-equal to the arithmetic it replaces; layouts and colours land right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.runtime.contract import TensorInfo
from marram.runtime.preprocess import Preprocessor
from marram.runtime.session import dequantise, quantise
from marram.schema.errors import Invalid
from marram.schema.model import Input

rng = np.random.default_rng(11)


def make(info_dtype: str = "float32", scale: float | None = None, zero: int = 0, **card: Any) -> Preprocessor:
    entry = Input(**{"size": [5, 7], **card})
    channels = 1 if entry.colour == "gray" else 3
    shape = (1, *entry.size, channels) if entry.layout == "NHWC" else (1, channels, *entry.size)
    if entry.kind == "tensor":
        shape = (1, *entry.size)
    return Preprocessor(entry, TensorInfo("x", shape, info_dtype, scale, zero), "m.tflite")


@settings(deadline=None, max_examples=200)
@given(
    dtype=st.sampled_from(["int8", "uint8"]),
    scale=st.sampled_from([1 / 128, 1 / 127.5, 1 / 255, 1.0, 0.0186, 0.5]),
    zero=st.integers(-128, 255),
    mean=st.lists(st.sampled_from([0.0, 127.0, 127.5, 128.0, 123.675]), min_size=1, max_size=1)
    | st.lists(st.floats(0, 255, width=32), min_size=3, max_size=3),
    std=st.sampled_from([[1.0], [127.5], [128.0], [255.0], [58.395, 57.12, 57.375]]),
    layout=st.sampled_from(["NHWC", "NCHW"]),
    colour=st.sampled_from(["RGB", "BGR"]),
)
def test_quantised_inputs_are_bit_equal_to_going_through_float(
    dtype: str, scale: float, zero: int, mean: list[float], std: list[float], layout: str, colour: str
) -> None:
    zero = int(np.clip(zero, np.iinfo(dtype).min, np.iinfo(dtype).max))
    card = {"mean": mean, "std": std, "layout": layout, "colour": colour}
    quick = make(dtype, scale, zero, **card)
    slow = make(**card)
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    info = TensorInfo("x", (1, 5, 7, 3), dtype, scale, zero)
    np.testing.assert_array_equal(quick.image(pixels), quantise(slow.image(pixels), info))
    assert quick.image(pixels).dtype == dtype


def test_pixels_that_already_are_the_input_are_not_copied() -> None:
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    exact = make("uint8", 1 / 128, 127, mean=[127.0], std=[128.0])
    assert np.shares_memory(exact.image(pixels), pixels)
    raw = make("uint8")  # a file that takes raw pixels and says no scale
    np.testing.assert_array_equal(raw.image(pixels)[0], pixels)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "card", "says"),
    [
        ("uint8", None, 0, {"std": [255.0]}, "takes pixels as they are, in uint8.*Leave mean and std out"),
        ("uint8", None, 0, {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "Leave mean and std out"),
        ("int8", None, 0, {}, "129 of 256 pixel values become one.*Mend mean and std"),
        ("int8", 1 / 128, 0, {}, "takes int8 for -1 to 0.9922 after mean and std; .* Mend mean and std"),
        ("uint8", 1 / 255, 0, {"mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 1.0]}, "takes uint8 for 0 to 1 after"),
        ("int32", None, 0, {}, "cannot fill an input of int32. Export it with"),
    ],
)
def test_mean_and_std_that_leave_no_picture_are_refused(
    dtype: str, scale: float | None, zero: int, card: dict[str, Any], says: str
) -> None:
    """Else a file of 0 to 255 is fed 0 and 1, and answers something with no word of it."""
    with pytest.raises(Invalid, match=says):
        make(dtype, scale, zero, **card).check()


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "card"),
    [
        ("uint8", None, 0, {}),
        ("int8", None, 0, {"mean": [128.0]}),
        ("int8", 1 / 128, 0, {"mean": [127.5], "std": [127.5]}),
        ("int8", 0.0186, -14, {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}),
        ("uint8", 4.0, 0, {}),
        ("float16", None, 0, {"std": [255.0]}),
        ("int8", 1 / 128, 0, {"kind": "tensor", "size": [4]}),
    ],
)
def test_mean_and_std_that_fit_pass(dtype: str, scale: float | None, zero: int, card: dict[str, Any]) -> None:
    make(dtype, scale, zero, **card).check()


def test_a_file_with_a_batch_says_so() -> None:
    with pytest.raises(Invalid, match=r"the file \[4, 5, 7, 3\]. Export it with a batch of 1"):
        Preprocessor(Input(size=[5, 7]), TensorInfo("x", (4, 5, 7, 3), "float32"), "m.onnx")


def test_the_usual_int8_input_is_pixel_minus_128() -> None:
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    shifted = make("int8", 1 / 255, -128, std=[255.0]).image(pixels)
    np.testing.assert_array_equal(shifted[0], pixels.astype(np.int16) - 128)


def test_float_pixels_are_normalised_per_channel() -> None:
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    wanted = (pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)
    np.testing.assert_array_equal(make(mean=mean, std=std).image(pixels)[0], wanted)
    planes = make(mean=mean, std=std, layout="NCHW").image(pixels)
    assert planes.shape == (1, 3, 5, 7)
    assert planes.flags.c_contiguous
    np.testing.assert_array_equal(planes[0], wanted.transpose(2, 0, 1))


def test_colours() -> None:
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[:, :, 0] = 200
    assert make(colour="BGR").image(pixels)[0, 0, 0].tolist() == [0, 0, 200]
    grey = make(colour="gray").image(pixels)
    assert grey.shape == (1, 5, 7, 1)
    assert grey.max() == round(200 * 0.299)
    white = make(colour="gray").image(np.full((5, 7, 3), 255, np.uint8))
    assert white.min() == white.max() == 255


def test_readings_take_any_shape_of_as_many_numbers() -> None:
    entry = make(kind="tensor", size=[4, 2], mean=[1.0], std=[2.0])
    values = np.arange(8, dtype=np.float64)
    for shape in ((8,), (4, 2), (1, 8), (2, 4)):
        tensor = entry.tensor(values.reshape(shape))
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor[0].reshape(-1), (values - 1) / 2)
    for wrong in (np.zeros(7), np.zeros((4, 2), "U1"), [1, 2], np.zeros(8, object)):
        with pytest.raises(Invalid, match="takes"):
            entry.tensor(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "card"),
    [
        ((1, 3, 5, 7), {}),
        ((1, 5, 7, 3), {"layout": "NCHW"}),
        ((1, 5, 7, 3), {"colour": "gray"}),
        ((1, 6, 7, 3), {}),
        ((1, 35), {}),
        ((1, 35), {"kind": "tensor", "size": [36]}),
    ],
)
def test_a_card_that_contradicts_the_file_is_invalid(shape: tuple[int, ...], card: dict[str, Any]) -> None:
    entry = Input(**{"size": [5, 7], **card})
    with pytest.raises(Invalid, match=r"m\.tflite  input\.size: the card says .*, the file .*model\.yaml"):
        Preprocessor(entry, TensorInfo("x", shape, "float32"), "m.tflite")


def test_free_lengths_of_the_file_fit_any_card() -> None:
    free = TensorInfo("x", (-1, -1, -1, 3), "float32")
    assert Preprocessor(Input(size=[5, 7]), free, "m").image(np.zeros((5, 7, 3), np.uint8)).shape == (1, 5, 7, 3)


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.003, 1 / 128, 1.0]), st.integers(-128, 127))
def test_quantising_and_back_is_within_half_a_step(value: float, scale: float, zero: int) -> None:
    info = TensorInfo("x", (1,), "int8", scale, zero)
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    back = float(dequantise(quantise(np.float32([value]), info), info)[0])
    assert abs(back - np.clip(value, low, high)) <= scale * 0.5001 + abs(value) * 1e-6


def test_nan_becomes_the_zero_point() -> None:
    info = TensorInfo("x", (1,), "int8", 0.1, 3)
    assert quantise(np.float32([np.nan]), info).tolist() == [3]
