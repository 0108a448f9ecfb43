"""`video: out.mp4`: the (annotated) pictures as a video file. It can be played once the pipeline has ended.

All pictures of a video have one size: the first one's. Others are scaled to it.

OpenCV does not say when it cannot write: its writer goes on as if nothing were wrong, and the file is never playable
again. So the disk is watched here. While it has less room than finishing the file needs, pictures are left out, each
told to whoever counts errors, and the video goes on when there is room again. What no figure of the disk shows (a
quota, a file system's largest file) is seen by the file: it no longer grows, although any encoder would have written.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from marram.pipeline import opencv
from marram.pipeline.contract import Frame, Image
from marram.schema.app import VideoSink
from marram.schema.errors import Invalid, Missing, Permanent, Retryable
from marram.schema.words import file_fault

# Containers by their suffix, with a codec that OpenCV's own wheels can write.
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
# What these codecs write at the least for a black picture, bytes a pixel; measured: 0.0014 and 0.006.
LEAST_BYTES_A_PIXEL = {"mp4v": 0.0007, "MJPG": 0.003}
# More than the muxer ever holds back (32 kB and one picture).
BUFFERED_BYTES = 256_000
# What finishing the file takes: an index entry for each picture, and what is buffered still.
RESERVE_BYTES = 1_000_000
INDEX_BYTES = 64


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
    """See `contract.Sink`. The file is made at the first picture, and again where it was moved away (logrotate)."""

    def __init__(self, cv2: ModuleType, file: Path, fps: float) -> None:
        self.lost = 0
        self._cv2, self._file, self._fps = cv2, file, fps
        self._codec = CODECS[file.suffix.lower()]
        self._writer: Any = None
        self._closed = False
        # OpenCV's writer crashes where one thread finishes it and another still writes.
        self._lock = threading.Lock()

    def write(self, frame: Frame) -> None:
        """Append the frame's picture; frames without one are left out.

        Raises Retryable for each picture that the disk has no room for, Permanent where OpenCV cannot write at all.
        """
        if frame.image is None:
            return
        picture = opencv.as_bgr(self._cv2, frame.image)
        with self._lock:
            if not self._closed:
                self._write(picture)

    def close(self) -> None:
        """Finish the file: before this no player reads it. Any number of times."""
        with self._lock:
            self._closed = True
            if self._writer is not None:
                self._writer.release()

    def _write(self, picture: Image) -> None:
        height, width = picture.shape[:2]
        if self._writer is None:
            self._open((width, height))
        fault = self._fault()
        if fault:
            self.lost += 1
            raise Retryable(f"cannot write {self._file} ({fault}); {self.lost:,} pictures are lost so far")
        if (width, height) != self._size:
            picture = self._cv2.resize(picture, self._size, interpolation=self._cv2.INTER_LINEAR)
        self._writer.write(picture)
        self._written += 1
        self._owed_bytes += self._size[0] * self._size[1] * LEAST_BYTES_A_PIXEL[self._codec]

    def _open(self, size: tuple[int, int]) -> None:
        codec = self._cv2.VideoWriter_fourcc(*self._codec)
        writer = self._cv2.VideoWriter(str(self._file), codec, self._fps, size)
        if not writer.isOpened():
            raise Permanent(f"OpenCV here cannot write {self._file}", hint="Try another kind: .avi")
        self._writer, self._size = writer, size  # width, height
        self._written = 0
        # The file's size when it last grew, and what it should at least have grown by since.
        self._file_bytes, self._owed_bytes = 0, 0.0

    def _fault(self) -> str:
        """Why another picture cannot be written, as the disk tells; empty where it can."""
        try:
            disk, file = os.statvfs(self._file.parent), self._file.stat()
        except OSError as error:
            # Moved or deleted: what OpenCV still holds open ends here, and the next picture makes it anew.
            self._writer.release()
            self._writer = None
            return file_fault(error)
        if file.st_size != self._file_bytes:
            self._file_bytes, self._owed_bytes = file.st_size, 0.0
        picture_bytes = 3 * self._size[0] * self._size[1]
        if disk.f_bavail * disk.f_frsize < RESERVE_BYTES + picture_bytes + INDEX_BYTES * self._written:
            return "no space left on device"
        return "the file no longer grows" if self._owed_bytes > BUFFERED_BYTES else ""
