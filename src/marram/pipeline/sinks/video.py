"""`video: out.mp4`: the (annotated) pictures as a video file. It can be played once the pipeline has ended.

All pictures of a video have one size: the first one's. Others are scaled to it.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from marram.pipeline import opencv
from marram.pipeline.contract import Frame
from marram.schema.app import VideoSink
from marram.schema.errors import Invalid, Missing, Permanent

# Containers by their suffix, with a codec that OpenCV's own wheels can write.
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


def open_sink(spec: VideoSink, base: Path) -> Video:
    """Raises Missing (no OpenCV, no such folder), Invalid (unknown kind of file), Permanent (not writable)."""
    where = f"sinks: video: {spec.video}"
    cv2 = opencv.load(where)
    file = base / spec.video
    if file.suffix.lower() not in CODECS:
        raise Invalid(f'"{file.suffix}" is no video file', where=where, hint=f"Use one of {', '.join(CODECS)}.")
    if not file.parent.is_dir():
        raise Missing(f"no folder {file.parent}", where=where, hint="Make it first.")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise Permanent(f"cannot write {file}", where=where, hint="Name a file in a folder you may write to.")
    return Video(cv2, file, spec.fps)


class Video:
    """See `contract.Sink`. The file is made at the first picture."""

    def __init__(self, cv2: ModuleType, file: Path, fps: float) -> None:
        self._cv2, self._file, self._fps = cv2, file, fps
        self._writer: Any = None
        self._size = (0, 0)  # width, height

    def write(self, frame: Frame) -> None:
        """Append the frame's picture; frames without one are left out. Raises Permanent where it cannot be written."""
        if frame.image is None:
            return
        picture = opencv.as_bgr(self._cv2, frame.image)
        height, width = picture.shape[:2]
        if self._writer is None:
            self._open((width, height))
        if (width, height) != self._size:
            picture = self._cv2.resize(picture, self._size, interpolation=self._cv2.INTER_LINEAR)
        self._writer.write(picture)

    def close(self) -> None:
        """Finish the file: before this no player reads it. Any number of times."""
        if self._writer is not None:
            self._writer.release()

    def _open(self, size: tuple[int, int]) -> None:
        codec = self._cv2.VideoWriter_fourcc(*CODECS[self._file.suffix.lower()])
        writer = self._cv2.VideoWriter(str(self._file), codec, self._fps, size)
        if not writer.isOpened():
            raise Permanent(f"OpenCV here cannot write {self._file}", hint="Try another kind: .avi")
        self._writer, self._size = writer, size
