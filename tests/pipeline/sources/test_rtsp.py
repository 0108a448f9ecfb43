"""rtsp: a camera on the network that answers, is cut off, and is back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.pipeline import newest
from marram.pipeline.contract import Frame
from marram.pipeline.plugins import open_source
from marram.pipeline.sources import video
from marram.schema.app import VideoSource
from marram.schema.errors import Retryable


def level(frame: Frame) -> int:
    assert frame.image is not None
    return int(np.median(frame.image))


def test_a_network_camera_is_live_in_colour_and_upright(rtsp_camera: Any, tmp_path: Path) -> None:
    source = open_source(VideoSource(video=rtsp_camera.url), tmp_path)
    frames = source.frames()
    try:
        first = next(frames)
        assert source.live
        assert first.image is not None
        assert (first.image.shape, first.image.dtype) == ((48, 64, 3), np.uint8)
        assert abs(level(first) - 60) < 6
        # "secret" is nobody's to read in results and logs.
        assert first.name.startswith("rtsp://user@127.0.0.1:")
        rtsp_camera.level = 200
        while abs(level(next(frames)) - 200) >= 6:
            pass
    finally:
        source.close()
        frames.close()


def test_a_network_camera_that_was_cut_off_is_counted_and_comes_back(
    rtsp_camera: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.05,))
    source = open_source(VideoSource(video=rtsp_camera.url), tmp_path)
    frames = source.frames()
    try:
        next(frames)
        rtsp_camera.unplug()
        rtsp_camera.level = 200
        rtsp_camera.plug_in()
        while abs(level(next(frames)) - 200) >= 6:
            pass
        assert source.errors >= 1
        assert rtsp_camera.played == 2
        assert "secret" not in source.last_error
    finally:
        source.close()
        frames.close()


def test_an_address_without_a_camera_is_an_error_without_the_password(
    rtsp_camera: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "OPEN_TIMEOUT_MS", 1000)
    rtsp_camera.unplug()
    source = open_source(VideoSource(video=rtsp_camera.url), tmp_path)
    with pytest.raises(Retryable, match="gives no video within 1 s") as caught:
        next(source.frames())
    assert "secret" not in str(caught.value)
    rtsp_camera.plug_in()
