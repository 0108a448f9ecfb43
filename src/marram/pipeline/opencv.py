"""OpenCV, for the plug-ins that need it: quiet, and a clear word where it is not installed.

OpenCV and the FFmpeg inside it write to stderr on every odd file; what a person should know is said in our own words,
so both are silenced before they are loaded (they read the environment only then).
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from marram.pipeline.contract import Image
from marram.schema.errors import Missing


def load(what: str) -> ModuleType:
    """The module cv2. `what` wants it, for the message. Raises Missing where it is not installed."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    # A stream over UDP loses packets and shows smeared pictures as if they were true.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise Missing(
            f"{what} needs OpenCV, which is not installed here", hint="pip install 'marram[camera]'"
        ) from error


def as_bgr(cv2: ModuleType, image: Image) -> Image:
    """The picture (uint8 [H, W, 3], RGB) as contiguous BGR: free for frames that OpenCV decoded, see `as_rgb_view`."""
    view = image[..., ::-1]
    bgr: Image = view if view.flags.c_contiguous else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bgr


def as_rgb_view(bgr: Image) -> Image:
    """OpenCV's BGR as a picture in RGB without a copy: a view with its channels read backwards."""
    return bgr[..., ::-1]
