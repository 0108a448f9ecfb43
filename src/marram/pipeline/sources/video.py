"""`video: FILE` loses no frame; `video: rtsp://…` or `http://…` is live: the newest picture, and opened again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from marram.pipeline import opencv
from marram.pipeline.contract import Frame, Image, Position, Source
from marram.pipeline.newest import Newest
from marram.pipeline.pace import Pace
from marram.schema.app import VideoSource
from marram.schema.errors import Invalid, Missing, Retryable

OPEN_TIMEOUT_MS = 5000
READ_TIMEOUT_MS = 5000
# A container's own count of its frames is an estimate; only a file that ends well before it is called cut off.
WHOLE_SHARE = 0.95


def open_source(spec: VideoSource, base: Path) -> Source:
    """Raises Missing where the file or OpenCV is absent, Invalid where the file is no video."""
    cv2 = opencv.load(f"source: video: {without_password(spec.video)}")
    if "://" in spec.video:
        return Newest(lambda: Stream(cv2, spec.video), spec.every, without_password(spec.video))
    file = base / Path(spec.video).expanduser()
    if not file.is_file():
        raise Missing(
            f"no file {file}",
            where=f"source: video: {spec.video}",
            hint="Name a video file, relative to the app file, or a stream as rtsp://….",
        )
    Video.open(cv2, file).release()
    return Video(cv2, file, Pace(spec.every), repeat=spec.repeat)


def without_password(url: str) -> str:
    """`rtsp://user:secret@host/…` as it may be shown: `rtsp://user@host/…`."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1@", url)


class Video:
    """See `contract.Source`. The frame's `name` is the file's name."""

    live = False

    def __init__(self, cv2: ModuleType, file: Path, pace: Pace, *, repeat: bool) -> None:
        self._cv2, self._file, self._pace, self._repeat = cv2, file, pace, repeat
        self._start = 0
        self.skipped = 0
        self.errors = 0
        self.last_error = ""

    @staticmethod
    def open(cv2: ModuleType, file: Path) -> Any:
        """The opened cv2.VideoCapture. Raises Invalid where the file is no video, or so cut off that none plays."""
        capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            raise Invalid(
                f"{file} is not a video that can be read: another format, damaged, or cut off",
                hint="Does it play elsewhere? Copy it again, or convert it: ffmpeg -i FILE new.mp4",
            )
        return capture

    def resume(self, reached: Position) -> None:
        """See `contract.Finite`."""
        self._start = reached.frame + 1

    def frames(self) -> Iterator[Frame]:
        """Every frame, over and over with `repeat`. Raises Invalid where not one can be decoded."""
        index = count(self._start)
        while not self._pace.closed():
            capture = self.open(self._cv2, self._file)
            try:
                promised = capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
                decoded = 0
                # Frame by frame: a jump lands on the nearest key frame, or near it.
                while decoded < self._start and not self._pace.closed() and capture.grab():
                    decoded += 1
                while self._pace.wait():
                    ok, bgr = capture.read()
                    if not ok:
                        break
                    decoded += 1
                    yield Frame(
                        next(index), time.time(), time.monotonic(), image=opencv.as_rgb_view(bgr), name=self._file.name
                    )
            finally:
                capture.release()
            if self._pace.closed():
                return
            if not decoded:
                raise Invalid(f"not one picture of {self._file} can be decoded", hint="It is damaged; copy it again.")
            if decoded < promised * WHOLE_SHARE:
                self.errors += 1
                self.last_error = f"{self._file.name} ends after {decoded} of {promised:.0f} frames: damaged or cut off"
            if not self._repeat:
                return

    def close(self) -> None:
        """See `contract.Source`."""
        self._pace.close()


class Stream:
    """See `newest.Grabber`. Raises Retryable where nothing answers, or no picture comes."""

    def __init__(self, cv2: ModuleType, url: str) -> None:
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS,
        ]  # fmt: skip
        self._capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            self._capture.release()
            raise Retryable(
                f"{without_password(url)} gives no video within {OPEN_TIMEOUT_MS // 1000} s",
                hint="Is the camera on, are address, user and password right?",
            )

    def read(self) -> Image | None:
        """See `newest.Grabber`."""
        ok, bgr = self._capture.read()
        return opencv.as_rgb_view(bgr) if ok else None

    def close(self) -> None:
        """See `newest.Grabber`."""
        self._capture.release()
