"""Sources that cannot be helped: a camera that stays away costs no processor, a video without a picture is a fault."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from marram.pipeline.contract import Image
from marram.pipeline.newest import Newest
from marram.pipeline.sources.video import open_source
from marram.schema.app import VideoSource
from marram.schema.errors import Invalid, Missing


class Ended:
    """A camera that was just unplugged."""

    def read(self) -> Image | None:
        return None

    def close(self) -> None:
        pass


def test_a_camera_that_stays_away_is_tried_ever_more_rarely_and_counted_each_time() -> None:
    spans: list[float | None] = []

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            spans.append(timeout)
            if len(spans) == 8:
                self.set()
            return self.is_set()

    def absent() -> Ended:
        raise Missing("cannot open camera 0")

    source = Newest(absent, None, "camera 0")
    source._closed = Impatient()
    source._read(Ended())
    assert spans == [0.5, 1.0, 2.0, 5.0, 10.0, 10.0, 10.0, 10.0]
    assert source.errors == 8  # that it ended, and seven times that it is not there
    assert source.last_error == "cannot open camera 0"


def test_a_video_of_which_no_picture_can_be_decoded_is_a_fault_not_an_end(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "gate.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for n in range(5):
        writer.write(np.full((48, 64, 3), 40 * n, np.uint8))
    writer.release()
    content = bytearray(file.read_bytes())
    place = content.find(b"00dc", content.find(b"movi"))
    while 0 <= place < content.find(b"idx1"):  # the headers stay whole: it opens as a video
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        content[place + 8 : place + 8 + size] = bytes(size)
        place = content.find(b"00dc", place + 8 + size)
    file.write_bytes(content)
    source = open_source(VideoSource(video="gate.avi"), tmp_path)
    with pytest.raises(Invalid, match=r"not one picture of .*gate\.avi can be decoded"):
        list(source.frames())
