"""What is sent comes back as it went, in every medium; whatever a stranger sends instead is Invalid, at no cost."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from marram.runtime import image as pictures
from marram.runtime.codecs import (
    AS_THEY_ARE,
    CROSSING,
    PICTURE_CODECS,
    PIXELS,
    READINGS,
    codecs_for,
    decode,
    encode,
    encode_cut,
)
from marram.runtime.model import fit_for
from marram.schema.errors import Invalid, MarramError, Missing
from marram.schema.model import Codec, Cut, Engine, Input, ModelCard, Output, Task, Variant
from marram.schema.payload import Payload

CUT = Cut(name="mid", variant="v", tensor="t", front="f", back="b", shape=[4, 6], scale=0.5, zero_point=3, bytes=9,
          loss=0.0, front_ms=1, back_ms=1)  # fmt: skip


def card(**more: object) -> ModelCard:
    given: dict[str, object] = {"task": Task.CLASSIFICATION, "input": Input(size=[24, 32]), "cuts": [CUT]}
    return ModelCard(
        model="m", output=Output(form="logits"), variants=[Variant(name="v", engine=Engine.ONNX, file="m.onnx")],
        licence="x", source="x", **(given | more),
    )  # fmt: skip


PICTURES = card()
NUMBERS = card(input=Input(kind="tensor", size=[4, 3]), cuts=[])


def scene(height: int = 90, width: int = 120) -> np.ndarray:
    ramp = np.add.outer(np.arange(height), np.arange(width))[:, :, None] % 256
    return np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("codec", PICTURE_CODECS)
def test_a_picture_comes_back_fitted(codec: str) -> None:
    frame = scene()
    payload = encode(codec, PICTURES, frame)
    assert payload.frame_size == (90, 120)
    back = decode(payload, PICTURES)
    wanted = fit_for(PICTURES, frame)
    assert back.shape == (24, 32, 3) and back.dtype == np.uint8
    apart = np.abs(back.astype(int) - wanted).mean()
    assert apart == 0 if codec == "raw-zstd" else apart < 12


def test_better_quality_is_larger_and_truer() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    sizes = [len(encode(codec, PICTURES, noisy).body) for codec in PICTURE_CODECS[:4]]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=12, max_size=12))
def test_readings_come_back_to_the_bit(values: list[float]) -> None:
    sent = np.array(values, np.float32).reshape(4, 3)
    payload = encode(AS_THEY_ARE, NUMBERS, sent)
    assert payload.media == READINGS and len(payload.body) == 48
    np.testing.assert_array_equal(decode(payload, NUMBERS), sent)
    np.testing.assert_array_equal(decode(encode(AS_THEY_ARE, NUMBERS, sent.tolist()), NUMBERS), sent)  # type: ignore[arg-type]


@given(st.binary(min_size=24, max_size=24))
def test_what_crosses_comes_back_to_the_bit(values: bytes) -> None:
    crossing = np.frombuffer(values, np.uint8).reshape(4, 6)
    payload = encode_cut(CUT, crossing, (90, 120))
    assert (payload.cut, payload.shape, payload.frame_size) == ("mid", (4, 6), (90, 120))
    np.testing.assert_array_equal(decode(payload, PICTURES), crossing)


def test_a_picture_that_was_not_fitted_comes_as_it_is() -> None:
    body = pictures.encode_jpeg(scene())
    assert decode(Payload("image/jpeg", body), PICTURES).shape == (90, 120, 3)
    raw = zstandard.ZstdCompressor().compress(scene().tobytes())
    np.testing.assert_array_equal(decode(Payload(PIXELS, raw, (90, 120, 3)), PICTURES), scene())


def test_a_codec_that_there_is_not_is_named() -> None:
    with pytest.raises(Missing, match=r'no codec "jpeg-1".*There are jpeg-60'):
        encode("jpeg-1", PICTURES, scene())
    with pytest.raises(Missing, match='readings have no codec "jpeg-85"'):
        encode("jpeg-85", NUMBERS, np.zeros((4, 3)))
    with pytest.raises(Invalid, match="readings are numbers"):
        encode(AS_THEY_ARE, NUMBERS, np.array([["a"]]))  # type: ignore[arg-type]


# ---------------------------------------------------------------- strangers


def squeezed(values: bytes, **more: bool) -> bytes:
    return zstandard.ZstdCompressor(**more).compress(values)  # type: ignore[arg-type]


FITTED = Payload(PIXELS, squeezed(bytes(24 * 32 * 3)), (24, 32, 3), (90, 120))
CROSSED = Payload(CROSSING, squeezed(bytes(24)), (4, 6), None, "mid", 0.5, 3)
NUMBERED = Payload(READINGS, bytes(48), (4, 3))


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (replace(FITTED, shape=(24, 32)), "no shape of a picture"),
        (replace(FITTED, shape=(24, 32, 4)), "no shape of a picture"),
        (replace(FITTED, shape=(-24, -32, 3)), "no shape of a picture"),
        (replace(FITTED, shape=(2**40, 2**40, 3), frame_size=None), "no shape of a picture"),
        (replace(FITTED, shape=(32, 24, 3)), "a fitted picture is 32×24 here, got 24×32"),
        (replace(FITTED, shape=(23, 32, 3), frame_size=None), "does not hold the 2,208 bytes"),
        (replace(FITTED, body=FITTED.body[:-1]), "is not whole"),
        (replace(FITTED, body=FITTED.body + b"more"), "is not whole"),
        (replace(FITTED, body=b""), "is not whole"),
        (replace(FITTED, body=b"nothing of the kind"), "is not whole"),
        (replace(FITTED, body=squeezed(bytes(24 * 32 * 3), write_content_size=False)), "does not hold"),
        (replace(FITTED, frame_size=(0, 5)), "is no size of a frame"),
        (replace(FITTED, frame_size=(5, 2**40)), "is no size of a frame"),
        (replace(FITTED, cut="mid"), "does not come from a cut"),
        (replace(CROSSED, shape=(6, 4)), r'cut "mid" has shape \[4, 6\], got \[6, 4\]'),
        (replace(CROSSED, scale=0.25), "another scale"),
        (replace(CROSSED, scale=float("nan")), "another scale"),
        (replace(CROSSED, zero_point=4), "another scale"),
        (replace(CROSSED, body=squeezed(bytes(25))), "does not hold the 24 bytes"),
        (replace(CROSSED, cut="other"), 'no cut "other"; it has mid'),
        (replace(CROSSED, cut=""), 'no cut ""'),
        (NUMBERED, "takes a picture, and readings were sent"),
        (Payload("image/jpeg", pictures.encode_jpeg(scene(1100, 1100)), frame_size=(9, 9)), "pixels are more than"),
        (Payload("image/png", b"\x89PNG no"), "not a picture"),
        (Payload("text/plain", b"a"), '"text/plain" is nothing that a model takes'),
        (Payload("application/json", b"[[1, 2]]"), "nothing that a model takes"),
    ],
)
def test_what_does_not_fit_is_invalid(payload: Payload, fault: str) -> None:
    with pytest.raises((Invalid, Missing), match=fault):
        decode(payload, PICTURES)


@pytest.mark.parametrize(
    "shape", [(), (12,) * 70, (4, 4), (-4, -3), (0, 2**62), (2**62, 2**62), (1,) * 9 + (12,), (4, 3, 0)]
)
def test_readings_of_another_shape_are_invalid(shape: tuple[int, ...]) -> None:
    body = b"" if 0 in shape else bytes(48)
    with pytest.raises(Invalid, match="no float32 tensor of shape"):
        decode(Payload(READINGS, body, shape), NUMBERS)


def test_a_picture_for_readings_is_invalid() -> None:
    with pytest.raises(Invalid, match="takes readings, and a picture was sent"):
        decode(Payload("image/jpeg", pictures.encode_jpeg(scene())), NUMBERS)


@pytest.mark.parametrize("media", [PIXELS, CROSSING])
def test_a_bomb_is_refused_before_there_is_room_for_it(media: str) -> None:
    """A few kilobytes that say they are 256 MB, and some that say what is asked for and are 256 MB."""
    bomb = squeezed(bytes(2**28))
    honest = CROSSED if media == CROSSING else FITTED
    # A frame header that tells a small size in front of the same blocks.
    lying = zstandard.ZstdCompressor().compressobj(size=len(honest.body)).flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    tracemalloc.start()
    for body in (bomb, lying + bomb[len(lying) :]):
        with pytest.raises(Invalid):
            decode(replace(honest, body=body), PICTURES)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20
    # One whose shape says as much as it holds: more than any picture may have.
    with pytest.raises(Invalid):
        decode(Payload(media, bomb, (2**13, 2**13 // 3 + 1, 3), None, honest.cut, honest.scale, 3), PICTURES)


@settings(max_examples=150)
@given(
    st.sampled_from([FITTED, CROSSED, NUMBERED, Payload("image/jpeg", pictures.encode_jpeg(scene()))]),
    st.binary(max_size=60),
    st.integers(0, 60),
    st.lists(st.integers(-(2**63), 2**63), max_size=4).map(tuple),
)
def test_nothing_but_our_own_errors_comes_out(honest: Payload, noise: bytes, at: int, shape: tuple[int, ...]) -> None:
    spoilt = replace(honest, body=honest.body[:at] + noise + honest.body[at + len(noise) :])
    for payload in (spoilt, replace(honest, shape=shape), replace(spoilt, shape=shape)):
        for which in (PICTURES, NUMBERS):
            try:
                decoded = decode(payload, which)
            except MarramError:
                continue
            assert decoded.size > 0


# ---------------------------------------------------------------- what may be sent


def test_a_sender_chooses_within_the_budget() -> None:
    measured = [
        Codec(name="jpeg-60", bytes=300, loss=0.05),
        Codec(name="jpeg-85", bytes=600, loss=0.01),
        Codec(name="raw-zstd", bytes=2000, loss=0.0),
    ]

    def names(**more: object) -> list[str]:
        return [codec.name for codec in codecs_for(card(**more))]

    assert names(codecs=measured) == ["jpeg-85", "raw-zstd"]
    assert names(codecs=measured, accuracy_budget=0.05) == ["jpeg-60", "jpeg-85", "raw-zstd"]
    assert names(codecs=measured, accuracy_budget=0.0) == ["raw-zstd"]
    assert names(codecs=measured[:1]) == ["raw-zstd"]  # pixels lose nothing, measured or not
    assert names() == ["jpeg-85", "raw-zstd"]  # nobody measured
    assert codecs_for(NUMBERS) == []
