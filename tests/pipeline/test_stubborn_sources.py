"""Sources that cannot be helped: a camera that stays away costs no processor, a video without a picture is a fault."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from marram.pipeline import newest
from marram.pipeline.contract import Image
from marram.pipeline.newest import Newest
from marram.pipeline.sources import video
from marram.pipeline.sources.video import open_source
from marram.runtime.image import encode_jpeg
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


@pytest.mark.timeout(25)  # left to itself OpenCV waits for half a minute
def test_a_stream_that_falls_silent_and_stays_open_is_noticed_and_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a camera does whose firmware hangs: the connection stands, no picture comes any more, and no end either."""
    pytest.importorskip("cv2")
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.01,))
    monkeypatch.setattr(video, "READ_TIMEOUT_MS", 2000)
    listener, held = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
    jpeg = encode_jpeg(np.full((48, 64, 3), 90, np.uint8))
    part = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            connection.recv(4096)
            connection.sendall(head + 30 * part)  # and never more

    server = threading.Thread(target=serve)
    server.start()
    source = open_source(VideoSource(video=f"http://127.0.0.1:{listener.getsockname()[1]}/stream"), tmp_path)
    frames = source.frames()
    try:
        next(frames)
        while len(held) < 2:
            next(frames)
        assert source.errors >= 1 and "stopped giving pictures" in source.last_error
    finally:
        source.close()
        frames.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()
        server.join(30)
