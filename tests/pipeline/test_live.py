"""Live sources keep the newest picture; streams come back; the preview shows the newest and waits for nobody."""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.pipeline import newest, opencv
from marram.pipeline.build import Pipeline
from marram.pipeline.contract import Frame, Image
from marram.pipeline.newest import Newest
from marram.pipeline.plugins import open_sink, open_source
from marram.pipeline.sinks.preview import Page
from marram.pipeline.sources import video
from marram.pipeline.sources.camera import Camera as RealCamera
from marram.runtime import image as pictures
from marram.runtime.model import Model
from marram.schema.app import PreviewSink, VideoSink, VideoSource
from marram.schema.errors import Conflict, Invalid, MarramError, Missing, Retryable
from marram.schema.model import Task
from marram.schema.result import Result


def has_windows() -> bool:
    lines = [line.split() for line in opencv.load("test").getBuildInformation().splitlines()]
    return ["GUI:", "NONE"] not in lines


def grey(level: int) -> Image:
    return np.full((48, 64, 3), level, np.uint8)


class Camera:
    """A grabber whose pictures the test hands out; None ends it."""

    def __init__(self) -> None:
        self.pictures: queue.Queue[Image | None] = queue.Queue()
        self.closed = False

    def read(self) -> Image | None:
        return self.pictures.get(timeout=30)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def source_of() -> Iterator[Callable[..., Newest]]:
    made: list[tuple[Newest, list[Camera]]] = []

    def make(cameras: list[Camera], every_s: float | None = None) -> Newest:
        left = list(cameras)

        def open_grabber() -> Camera:
            if not left:
                raise Retryable("the camera does not answer")
            return left.pop(0)

        made.append((Newest(open_grabber, every_s, "cam"), cameras))
        return made[-1][0]

    yield make
    for source, cameras in made:
        source.close()
        for camera in cameras:
            camera.pictures.put(None)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.002)
    assert condition()


def test_only_the_newest_picture_is_given(source_of: Any) -> None:
    camera = Camera()
    source = source_of([camera])
    frames = source.frames()
    camera.pictures.put(grey(1))
    first = next(frames)
    for level in (2, 3, 4, 5):
        camera.pictures.put(grey(level))
    wait_for(lambda: source.skipped == 3)
    second = next(frames)
    assert [int(frame.image[0, 0, 0]) for frame in (first, second)] == [1, 5]
    assert [first.index, second.index] == [0, 1]
    assert source.live and source.skipped == 3
    camera.pictures.put(None)


def test_the_time_is_that_of_the_capture(source_of: Any) -> None:
    camera = Camera()
    source = source_of([camera])
    frames = source.frames()
    camera.pictures.put(grey(1))
    next(frames)
    before_s = time.monotonic()
    camera.pictures.put(grey(2))
    wait_for(lambda: source._newest is not None)
    after_s = time.monotonic()
    assert before_s <= next(frames).captured_s <= after_s
    assert source.skipped == 0
    camera.pictures.put(None)


def test_a_source_that_ends_is_opened_again(source_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.001, 0.002))
    first, second = Camera(), Camera()
    source = source_of([first, second])
    frames = source.frames()
    first.pictures.put(grey(1))
    assert next(frames).index == 0
    first.pictures.put(None)
    second.pictures.put(grey(9))
    assert int(next(frames).image[0, 0, 0]) == 9
    assert first.closed
    assert source.errors == 1
    # And where it does not come back, that is tried again and again, and counted.
    second.pictures.put(None)
    wait_for(lambda: source.errors >= 4)
    assert source.last_error == "the camera does not answer"


def test_a_camera_that_is_unplugged_is_counted_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The camera's own code on a device that gives so many pictures and then none, is gone, and is back."""
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.01, 0.02))
    cv2 = opencv.load("test")
    device, away = tmp_path / "device.avi", tmp_path / "unplugged"
    writer = cv2.VideoWriter(str(device), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(3):
        writer.write(grey(90))
    writer.release()
    source = Newest(lambda: RealCamera(cv2, str(device)), None, "camera 0")
    frames = source.frames()
    try:
        assert abs(int(next(frames).image[0, 0, 0]) - 90) < 6
        wait_for(lambda: source.errors >= 1)
        assert "camera 0 stopped giving pictures; it is opened again" in source.last_error
        device.rename(away)
        wait_for(lambda: "cannot open camera" in source.last_error)
        tried = source.errors
        wait_for(lambda: source.errors >= tried + 2)
        assert "Is it plugged in?" in source.last_error
        while source._newest is not None:  # what it gave before
            next(frames)
        away.rename(device)
        before_s = time.monotonic()
        assert next(frames).captured_s >= before_s
    finally:
        source.close()
        frames.close()


def test_a_driver_that_throws_is_a_device_that_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.001,))
    calls = itertools.count()

    class Throwing(Camera):
        def read(self) -> Image | None:
            if next(calls) % 2:
                raise RuntimeError("VIDIOC_DQBUF: No such device")
            return grey(1)

    def open_grabber() -> Throwing:
        if next(calls) % 3 == 2:
            raise OSError("the bus is gone")
        return Throwing()

    source = Newest(open_grabber, None, "cam")
    frames = source.frames()
    assert [next(frames).index for _ in range(5)] == [0, 1, 2, 3, 4]
    wait_for(lambda: source.errors >= 4)
    source.close()
    frames.close()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("VIDIOC_DQBUF" in line for line in warned) == 1  # the first of its kind only


def test_a_source_that_never_opens_is_an_error(source_of: Any) -> None:
    with pytest.raises(Retryable, match="does not answer"):
        next(source_of([]).frames())


def test_close_ends_the_waiting(source_of: Any) -> None:
    camera = Camera()
    source = source_of([camera])
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(source.frames()))
    thread.start()
    source.close()
    source.close()
    camera.pictures.put(None)
    thread.join(30)
    assert not thread.is_alive() and got == []


def test_a_slow_model_sees_now_and_skips_are_counted(
    build: Any, monkeypatch: pytest.MonkeyPatch, running: Callable[[Pipeline], threading.Thread]
) -> None:
    camera = Camera()
    monkeypatch.setattr("marram.pipeline.plugins.open_source", lambda spec, base: Newest(lambda: camera, None, "cam"))
    real, gate, begun = Model.predict, threading.Event(), threading.Semaphore(0)

    def slow(model: Model, *given: Any) -> Result:
        begun.release()
        gate.wait(30)
        return real(model, *given)

    monkeypatch.setattr(Model, "predict", slow)
    pipeline, seen = build("source: {camera: 0}\nsteps: [classify: MODEL]\n")
    thread = running(pipeline)
    camera.pictures.put(np.full((9, 9, 3), (200, 0, 0), np.uint8))
    assert begun.acquire(timeout=30)
    for _ in range(20):  # while the model works: old news when it is done
        camera.pictures.put(np.full((9, 9, 3), (0, 200, 0), np.uint8))
    camera.pictures.put(np.full((9, 9, 3), (0, 0, 200), np.uint8))
    wait_for(lambda: pipeline.stats()["skipped"] == 20)
    gate.set()
    assert seen.arrived(2)
    assert seen.labels == ["red", "blue"]
    pipeline.stop()
    camera.pictures.put(None)
    thread.join(30)


# ---------------------------------------------------------------- preview, and the preview as a stream


@pytest.fixture
def page() -> Iterator[Page]:
    shown = Page(0)
    yield shown
    shown.close()


def frame(index: int, level: int) -> Frame:
    result = Result(Task.CLASSIFICATION, "m@1", "cat", 0.9, (("cat", 0.9),))
    return Frame(index, 0.0, 0.0, image=grey(level), name=f"{index}.jpg", result=result)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def test_the_page_shows_picture_and_result(page: Page) -> None:
    assert page.url.startswith("http://127.0.0.1:")
    assert b'src="stream"' in get(page.url)
    assert json.loads(get(page.url + "result.json")) == {}
    page.write(frame(3, 80))
    answer = json.loads(get(page.url + "result.json"))
    assert (answer["label"], answer["frame"], answer["name"]) == ("cat", 3, "3.jpg")
    with urllib.request.urlopen(page.url + "stream", timeout=30) as stream:
        assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        assert stream.readline().startswith(b"--")
        stream.readline()
        size = int(stream.readline().split(b":")[1])
        stream.readline()
        shown = pictures.decode(stream.read(size))
    assert abs(int(shown[0, 0, 0]) - 80) < 4


def test_a_viewer_that_takes_nothing_slows_nobody(page: Page) -> None:
    with socket.create_connection(("127.0.0.1", int(page.url.rsplit(":")[-1].strip("/")))) as viewer:
        viewer.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        # Far more than the sockets' buffers hold; a write that waited for the viewer would never end.
        noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
        for index in range(200):
            page.write(Frame(index, 0.0, 0.0, image=noise))
        page.write(frame(200, 5))
        assert json.loads(get(page.url + "result.json"))["frame"] == 200


def test_unknown_addresses_are_404(page: Page) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(page.url + "etc/passwd")


def test_a_taken_port_is_a_conflict(page: Page, tmp_path: Path) -> None:
    port = int(page.url.rsplit(":")[-1].strip("/"))
    with pytest.raises(Conflict, match=f"port {port}"):
        open_sink(PreviewSink(preview=port), tmp_path)
    with pytest.raises(Conflict, match="port 99999"):
        open_sink(PreviewSink(preview=99999), tmp_path)


def test_auto_finds_a_port_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    sinks = [open_sink(PreviewSink(preview="auto"), tmp_path) for _ in range(2)]
    assert len({sink.url for sink in sinks if isinstance(sink, Page)}) == 2
    for sink in sinks:
        sink.close()


def test_a_window_that_cannot_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(Missing, match="no display here") as caught:
        open_sink(PreviewSink(preview="window"), tmp_path)
    assert "preview: auto" in str(caught.value)


@pytest.mark.skipif(has_windows(), reason="the OpenCV installed here opens windows")
def test_an_opencv_without_windows_is_named_and_auto_is_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    with pytest.raises(Missing, match="built without windows") as caught:
        open_sink(PreviewSink(preview="window"), tmp_path)
    assert "pip uninstall opencv-python-headless && pip install opencv-python" in str(caught.value)
    page = open_sink(PreviewSink(preview="auto"), tmp_path)
    assert isinstance(page, Page)
    page.close()


@pytest.mark.skipif(
    not has_windows(), reason="needs opencv-python in place of the headless build, which has no windows"
)
@pytest.mark.skipif(
    shutil.which("Xvfb") is None, reason="needs Xvfb (apt-get install xvfb), which is not installed here"
)
def test_a_window_shows_and_closes(tmp_path: Path) -> None:
    # In a process of its own: the toolkits keep the display they first saw.
    code = """
import sys, numpy as np
from pathlib import Path
from marram.pipeline.contract import Frame
from marram.pipeline.plugins import open_sink
from marram.schema.app import PreviewSink
sink = open_sink(PreviewSink(preview="window"), Path("."))
assert type(sink).__name__ == "Window"
for index in range(20):
    sink.write(Frame(index, 0.0, 0.0, image=np.zeros((48, 64, 3), np.uint8)))
sink.close()
sink.close()
"""
    read, write = os.pipe()
    xvfb = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"], pass_fds=[write])
    os.close(write)
    try:
        with os.fdopen(read) as told:
            display = f":{told.readline().strip()}"
        ran = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "DISPLAY": display}, timeout=60, check=False
        )
        assert ran.returncode == 0
    finally:
        xvfb.terminate()
        xvfb.wait()


def keep_showing(page: Page, level: int, stop: threading.Event) -> None:
    index = 0
    while not stop.is_set():
        page.write(frame(index, level))
        index += 1
        time.sleep(0.01)


def test_a_stream_over_http_is_live_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.05,))
    first, stop = Page(0), threading.Event()
    showing = threading.Thread(target=keep_showing, args=(first, 60, stop))
    showing.start()
    source = open_source(VideoSource(video=first.url + "stream"), tmp_path)
    frames = source.frames()
    try:
        assert source.live
        assert abs(int(next(frames).image[0, 0, 0]) - 60) < 6
        port = int(first.url.rsplit(":")[-1].strip("/"))
        stop.set()
        showing.join()
        first.close()
        stop.clear()
        second = Page(port)
        showing = threading.Thread(target=keep_showing, args=(second, 200, stop))
        showing.start()
        while abs(int(next(frames).image[0, 0, 0]) - 200) >= 6:
            pass
        assert source.errors >= 1
    finally:
        source.close()
        frames.close()
        stop.set()
        showing.join()
        second.close()


def test_a_stream_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/stream"
        source = open_source(VideoSource(video=url), tmp_path)
        with pytest.raises(Retryable, match="gives no video") as caught:
            next(source.frames())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("url", "shown"), [
    ("rtsp://cam/1", "rtsp://cam/1"),
    ("rtsp://u:p@cam/1", "rtsp://u@cam/1"),
    ("rtsp://u:p:q@cam:554/1?x=a@b", "rtsp://u@cam:554/1?x=a@b"),
])  # fmt: skip
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert video.without_password(url) == shown


# ---------------------------------------------------------------- video sink


def test_a_video_file_written_is_read_again(build: Any, photos: Path, tmp_path: Path) -> None:
    for kind in ("avi", "mp4", "mkv"):
        pipeline, _ = build(
            f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\nsinks: [{{video: out.{kind}, fps: 10}}]\n"
        )
        pipeline.run()
        again, seen = build(f"source: {{video: out.{kind}}}\nsteps: [classify: MODEL]\n")
        again.run()
        assert seen.labels == ["red", "green", "blue"] * 3


def test_pictures_of_other_sizes_are_scaled_to_the_first(tmp_path: Path) -> None:
    sink = open_sink(VideoSink(video="out.avi"), tmp_path)
    sink.write(Frame(0, 0, 0, image=np.zeros((48, 64, 3), np.uint8)))
    sink.write(Frame(1, 0, 0, image=np.zeros((480, 640, 3), np.uint8)))
    sink.write(Frame(2, 0, 0))  # a reading has no picture
    sink.close()
    sink.close()
    frames = list(open_source(VideoSource(video="out.avi"), tmp_path).frames())
    assert [f.image.shape for f in frames] == [(48, 64, 3)] * 2


@pytest.mark.parametrize(("name", "error", "words"), [
    ("out.xyz", Invalid, "no video file"),
    ("nowhere/out.mp4", Missing, "no folder"),
    ("folder.mp4", MarramError, "cannot write"),
])  # fmt: skip
def test_a_video_file_that_cannot_be_is_named(tmp_path: Path, name: str, error: type[Exception], words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(error, match=words):
        open_sink(VideoSink(video=name), tmp_path)
