"""Pictures: right ones decode upright to RGB, broken ones are Invalid, both resizers agree."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from marram.runtime import image as pictures
from marram.runtime.fit import Fit, plan
from marram.schema.errors import Invalid
from marram.schema.model import Input


def scene(height: int = 60, width: int = 90) -> np.ndarray:
    """Smooth colours with a red corner at the top left: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // width, y * 255 // height, 128 + 0 * x], axis=2).astype(np.uint8)
    picture[: height // 4, : width // 4] = (250, 10, 10)
    return picture


def save(picture: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(picture).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_decodes_to_rgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    image = pictures.decode(save(scene(), kind, **options))
    assert image.dtype == np.uint8
    tolerance = {"JPEG": 12, "GIF": 30}.get(kind, 0)
    assert np.abs(image.astype(int) - scene()).mean() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    if mode == "I;16":
        picture = Pillow.fromarray((scene()[:, :, 0].astype(np.uint16) << 8) + 17)
    else:
        picture = Pillow.fromarray(scene()).convert(mode)
    out = io.BytesIO()
    picture.save(out, "TIFF" if mode == "CMYK" else "PNG")
    image = pictures.decode(out.getvalue())
    assert image.shape == (60, 90, 3)
    if mode == "I;16":
        np.testing.assert_array_equal(image[:, :, 0], scene()[:, :, 0])


def test_cmyk_and_grey_jpegs_decode() -> None:
    for mode in ("CMYK", "L"):
        out = io.BytesIO()
        Pillow.fromarray(scene()).convert(mode).save(out, "JPEG", quality=95)
        assert pictures.decode(out.getvalue()).shape == (60, 90, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(orientation: int) -> None:
    # What a camera stores for a scene held so; decoding must give the scene back.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](scene())
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
        image = pictures.decode(save(np.ascontiguousarray(stored), kind, exif=exif, **options))
        assert image.shape == (60, 90, 3), kind
        assert np.abs(image.astype(int) - scene()).mean() < 6, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_any_cut_is_invalid_or_whole_and_names_the_file(kind: str) -> None:
    whole = save(scene(), kind)
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        try:
            image = pictures.decode(whole[:length], "gate/0001")
        except Invalid as error:
            assert "gate/0001" in str(error)
        else:
            np.testing.assert_array_equal(image, pictures.decode(whole))  # only padding was missing


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_noise_in_a_file_never_crashes(kind: str) -> None:
    whole, rng = save(scene(), kind), np.random.default_rng(5)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(8):
            content[rng.integers(len(content))] = rng.integers(256)
        with contextlib.suppress(Invalid):
            assert pictures.decode(bytes(content)).ndim == 3


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"hello, this is text", b"\x89PNG\r\n\x1a\n", b"\0" * 1000])
def test_what_is_no_picture_is_invalid(data: bytes) -> None:
    with pytest.raises(Invalid, match="picture"):
        pictures.decode(data)


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    for kind in ("JPEG", "PNG"):
        with pytest.raises(Invalid, match="90×60 pixels are more than 1,000"):
            pictures.decode(save(scene(), kind), most_pixels=1000)


def test_a_jpeg_comes_back_about_as_it_went() -> None:
    picture = scene(240, 320)
    encoded = pictures.encode_jpeg(picture, quality=90)
    assert len(encoded) < 20_000
    assert np.abs(pictures.decode(encoded).astype(int) - picture).mean() < 4
    turned = picture[:, ::-1]  # a view that is not contiguous
    assert np.abs(pictures.decode(pictures.encode_jpeg(turned)).astype(int) - turned).mean() < 5


@pytest.mark.parametrize(
    "wrong", [None, [1], np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), "u1")]
)
def test_what_is_no_image_is_invalid(wrong: object) -> None:
    with pytest.raises(Invalid, match="image"):
        pictures.check(wrong)


SIZES = [(576, 768), (480, 640), (100, 50), (31, 97), (224, 224), (2000, 3000), (1, 1), (5, 1000)]
FITS = ["stretch", "crop", "letterbox"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", FITS)
def test_opencv_and_pillow_give_the_same_picture(
    size: tuple[int, int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    rng = np.random.default_rng(2)
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    fit = plan(Input(size=[112, 160], fit=how), *size)  # type: ignore[arg-type]
    with_opencv = pictures.apply(fit, frame)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with_pillow = pictures.apply(fit, frame)
    assert with_opencv.shape == with_pillow.shape == (112, 160, 3)
    # Pillow's averages of whole blocks round once more than OpenCV's.
    assert np.abs(with_opencv.astype(int) - with_pillow).max() <= 3


def test_a_letterbox_is_black_beside_the_picture_and_nothing_is_lost() -> None:
    frame = np.full((100, 200, 3), 200, np.uint8)
    fitted = pictures.apply(plan(Input(size=[64, 64], fit="letterbox"), 100, 200), frame)
    assert (fitted[16:48] == 200).all()
    assert (fitted[:16] == 0).all()
    assert (fitted[48:] == 0).all()


def test_fine_stripes_do_not_turn_into_coarse_ones() -> None:
    frame = np.zeros((1600, 1600, 3), np.uint8)
    frame[::2] = 255
    fitted = pictures.apply(plan(Input(size=[100, 100]), 1600, 1600), frame)
    assert np.abs(fitted.astype(int) - 127).max() <= 2


def test_the_frame_is_never_written_to() -> None:
    frame = scene()
    frame.setflags(write=False)
    for how in FITS:
        pictures.apply(plan(Input(size=[30, 30], fit=how), 60, 90), frame)  # type: ignore[arg-type]
    assert pictures.apply(Fit((60, 90), (60, 90), (0, 0, 90, 60), (0, 0, 90, 60)), frame).base is frame


def test_importing_it_does_not_load_opencv() -> None:
    code = "import sys, marram.runtime.model; sys.exit(any(m in sys.modules for m in ('cv2', 'torch', 'onnx')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_photos_decode(shared_data: Path) -> None:
    files = sorted((shared_data / "images").glob("*.jpg"))
    assert len(files) >= 30
    for file in files:
        ours = pictures.decode(file.read_bytes(), file.name)
        theirs = np.asarray(Pillow.open(file).convert("RGB"))
        assert np.abs(ours.astype(int) - theirs).mean() < 1
