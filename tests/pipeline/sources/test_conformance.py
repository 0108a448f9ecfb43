"""What every source must do, whatever it reads: one suite, each implementation through it with real inputs."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from PIL import Image as Pillow

from marram.pipeline import newest, opencv
from marram.pipeline.contract import Finite, Frame, Position, Source
from marram.pipeline.newest import Newest
from marram.pipeline.plugins import open_source
from marram.pipeline.sinks.preview import Page
from marram.pipeline.sources import mqtt, video
from marram.pipeline.sources.camera import Camera
from marram.schema.app import SOURCES, parse_app
from marram.schema.errors import MarramError

BEFORE_2020_S, AFTER_2100_S = 1_577_836_800.0, 4_102_444_800.0


class Case:
    """One implementation. `open` gives an endless source; `broken` one that cannot be opened; `spoil` a bad input."""

    verb = ""
    live = False

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder, self.request = folder, request

    def spec(self, text: str) -> Source:
        app = parse_app(f"app: test\nsource: {text}\nsteps: [{{filter: 'true'}}]")
        return open_source(app.source, self.folder)

    def open(self) -> Source:
        raise NotImplementedError

    def finite(self) -> Source:
        """The same without `repeat`."""
        self.spec, spec = lambda text: spec(text.replace(", repeat: true", "")), self.spec  # type: ignore[method-assign]
        return self.open()

    def spoil(self) -> None:
        """Called before `open` for what lies in files, or while it runs (`live`)."""

    def broken(self) -> Source:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Images(Case):
    verb = "images"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        for number in range(4):
            Pillow.new("RGB", (20 + number, 10), (50 * number, 0, 0)).save(self.folder / f"{number}.png")

    def open(self) -> Source:
        return self.spec("{images: ., repeat: true}")

    def spoil(self) -> None:
        (self.folder / "1.png").write_bytes(b"no picture")

    def broken(self) -> Source:
        (self.folder / "none").mkdir()
        return self.spec("{images: none}")


class PacedImages(Images):
    def open(self) -> Source:
        return self.spec("{images: ., repeat: true, every: 5 ms}")

    def broken(self) -> Source:
        (self.folder / "bad").mkdir()
        (self.folder / "bad" / "a.png").write_bytes(b"no picture")
        return self.spec("{images: bad}")


def write_video(file: Path, count: int = 60) -> None:
    cv2 = opencv.load("test")
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), 4 * number % 256, np.uint8))
    writer.release()


class VideoFile(Case):
    verb = "video"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        write_video(self.folder / "a.avi")

    def open(self) -> Source:
        return self.spec("{video: a.avi, repeat: true}")

    def spoil(self) -> None:
        whole = (self.folder / "a.avi").read_bytes()
        (self.folder / "a.avi").write_bytes(whole[: len(whole) // 2])

    def broken(self) -> Source:
        (self.folder / "b.avi").write_bytes(b"no video" * 500)
        return self.spec("{video: b.avi}")


class HttpStream(Case):
    verb = "video"
    live = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._show()

    def _show(self, port: int = 0) -> None:
        self.page, self.stop = Page(port), threading.Event()
        self.thread = threading.Thread(target=self._keep_showing)
        self.thread.start()

    def _keep_showing(self) -> None:
        for index in itertools.count():
            if self.stop.wait(0.01):
                return
            self.page.write(Frame(index, 0.0, 0.0, image=np.full((48, 64, 3), index % 200, np.uint8)))

    def open(self) -> Source:
        return self.spec(f"{{video: '{self.page.url}stream'}}")

    def spoil(self) -> None:
        port = int(self.page.url.rsplit(":")[-1].strip("/"))
        self.close()
        self._show(port)

    def broken(self) -> Source:
        return self.spec(f"{{video: '{self.page.url}nothing'}}")

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.page.close()


class RtspStream(Case):
    verb = "video"
    live = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.camera = self.request.getfixturevalue("rtsp_camera")

    def open(self) -> Source:
        return self.spec(f"{{video: '{self.camera.url}'}}")

    def spoil(self) -> None:
        self.camera.unplug()
        self.camera.plug_in()

    def broken(self) -> Source:
        return self.spec("{video: 'rtsp://127.0.0.1:1/live'}")


class UsbCamera(Case):
    """The camera's own code on a file that plays, far longer than any test here looks; at its end it is unplugged."""

    verb = "camera"
    live = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        write_video(self.folder / "device.avi", 1000)

    def open(self) -> Source:
        cv2 = opencv.load("test")
        return Newest(lambda: Camera(cv2, str(self.folder / "device.avi")), None, "camera 0")

    def broken(self) -> Source:
        return self.spec("{camera: 99}")


class Rows(Case):
    verb = "series"
    text = "time,a,b\n" + "".join(f"{1_700_000_000 + n},{n},{n * n}\n" for n in range(20))
    options = ""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        (self.folder / "a.csv").write_text(self.text)

    def open(self) -> Source:
        return self.spec(f"{{series: a.csv, repeat: true{self.options}}}")

    def spoil(self) -> None:
        (self.folder / "a.csv").write_text(self.text.replace("\n1700000003,3,9\n", "\n1700000003,three\n"))

    def broken(self) -> Source:
        return self.spec("{series: b.csv}")


class Windows(Rows):
    options = ", window: 4 s, every: 2 s"

    def broken(self) -> Source:
        (self.folder / "b.csv").write_text("")
        return self.spec("{series: b.csv}")


class Messages(Case):
    verb = "mqtt"
    live = True
    options = ""
    bad = b"\0" * (mqtt.MAX_PAYLOAD_BYTES + 1)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.broker = self.request.getfixturevalue("mosquitto")
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.connect("127.0.0.1", self.broker.port)
        self.client.loop_start()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._keep_sending)
        self.thread.start()

    def _keep_sending(self) -> None:
        for number in itertools.count():
            if self.stop.wait(0.005):
                return
            self.client.publish("plant/x", json.dumps({"n": number}), qos=1)

    def open(self) -> Source:
        return self.spec(f"{{mqtt: plant/x, broker: '{self.broker.address}'{self.options}}}")

    def spoil(self) -> None:
        self.client.publish("plant/x", self.bad, qos=1)

    def broken(self) -> Source:
        self.stop.set()
        self.broker.stop()
        return self.open()

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.client.disconnect()
        self.client.loop_stop()


class MessageWindows(Messages):
    options = ", window: 50 ms"
    bad = b'{"other": 1}'


CASES = [Images, PacedImages, VideoFile, HttpStream, RtspStream, UsbCamera, Rows, Windows, Messages, MessageWindows]


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(newest, "BACK_OFF_S", (0.02,))
    monkeypatch.setattr(video, "OPEN_TIMEOUT_MS", 2000)
    folder = tmp_path / "inputs"
    folder.mkdir()
    made: Case = request.param(folder, request)
    yield made
    made.close()


@pytest.fixture
def opened(case: Case) -> Iterator[Callable[[], tuple[Source, Iterator[Frame]]]]:
    """A source and its frames; whatever the test leaves open is closed."""
    left: list[tuple[Source, Any]] = []

    def make() -> tuple[Source, Iterator[Frame]]:
        source = case.open()
        left.append((source, source.frames()))
        return left[-1]

    yield make
    for source, frames in left:
        source.close()
        frames.close()


Opened = Callable[[], tuple[Source, Iterator[Frame]]]


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    return list(itertools.islice(frames, count))


def test_counters_begin_at_nothing(case: Case, opened: Opened) -> None:
    source, _ = opened()
    assert source.live is case.live
    assert (source.skipped, source.errors, source.last_error) == (0, 0, "")


@pytest.mark.parametrize("spoilt", [False, True])
def test_files_go_on_after_any_frame(case: Case, spoilt: bool) -> None:
    if spoilt and not case.live:
        case.spoil()
    source = case.finite()
    assert isinstance(source, Finite) is not case.live
    if not isinstance(source, Finite):
        source.close()
        return
    whole = list(source.frames())
    for place in (0, len(whole) // 2, len(whole) - 1):
        source = case.finite()
        assert isinstance(source, Finite)
        source.resume(Position(whole[place].index, whole[place].name))
        rest = list(source.frames())
        assert [frame.index for frame in rest] == [frame.index for frame in whole[place + 1 :]]
        assert [frame.name for frame in rest] == [frame.name for frame in whole[place + 1 :]]
        for frame, before in zip(rest, whole[place + 1 :], strict=True):
            assert np.array_equal(content(frame), content(before))


def test_a_folder_goes_on_by_name_whatever_came_and_went(tmp_path: Path) -> None:
    for name in ("b", "d", "f"):
        Pillow.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").unlink()
    for name in ("a", "e"):
        Pillow.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    source = open_source(parse_app("app: a\nsource: {images: .}\nsteps: [{filter: 'true'}]").source, tmp_path)
    assert isinstance(source, Finite)
    source.resume(Position(1, "d.png"))
    assert [(frame.index, frame.name) for frame in source.frames()] == [(2, "e.png"), (3, "f.png")]


def test_frames_are_numbered_timed_and_filled(opened: Opened) -> None:
    source, frames = opened()
    before_s = time.monotonic()
    taken = take(frames, 6)
    after_s = time.monotonic()
    assert [frame.index for frame in taken] == [0, 1, 2, 3, 4, 5]
    captured = [before_s, *(frame.captured_s for frame in taken), after_s]
    assert captured == sorted(captured)
    for frame in taken:
        assert BEFORE_2020_S < frame.time_s < AFTER_2100_S
        assert frame.name and isinstance(frame.name, str)
        assert (frame.result, frame.placed, frame.redacted, frame.extra) == (None, None, False, {})
        assert (frame.image is None) != (frame.reading is None)
        if frame.image is not None:
            assert (frame.image.dtype, frame.image.ndim, frame.image.shape[2]) == (np.uint8, 3, 3)
        else:
            assert frame.tensor is not None
            assert (frame.tensor.dtype, frame.tensor.ndim) == (np.float32, 2)
    assert source.errors == 0


def test_a_frame_stays_what_it_was(opened: Opened) -> None:
    """Frames wait in windows, for models and sinks: what comes later must not show through them."""
    _, frames = opened()
    taken, copies = [], []
    for frame in itertools.islice(frames, 6):
        taken.append(frame)
        copies.append(content(frame).copy())
    for frame, copy in zip(taken, copies, strict=True):
        np.testing.assert_array_equal(content(frame), copy)
    for one, other in itertools.combinations(taken, 2):
        assert not np.shares_memory(content(one), content(other))


def content(frame: Frame) -> np.ndarray[Any, Any]:
    array = frame.image if frame.image is not None else frame.tensor
    assert array is not None
    return array


def test_close_ends_it_any_number_of_times(opened: Opened) -> None:
    source, frames = opened()
    take(frames, 2)
    source.close()
    source.close()
    # What was read already may still come; then it ends.
    assert len(take(frames, 100)) <= 1
    source.close()


def test_closed_before_the_first_frame_it_gives_none(opened: Opened) -> None:
    source, frames = opened()
    source.close()
    assert take(frames, 1) == []


def test_close_from_another_thread_ends_it(opened: Opened) -> None:
    source, frames = opened()
    flowing, ended = threading.Event(), threading.Event()

    def read() -> None:
        for _ in frames:
            flowing.set()
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert flowing.wait(30)
    source.close()
    assert ended.wait(10)
    reader.join()


def test_who_stops_asking_leaves_nothing_running(opened: Opened) -> None:
    """Also `no_threads_left` looks after this test."""
    _, frames = opened()
    take(frames, 1)
    frames.close()  # type: ignore[attr-defined]
    assert take(frames, 1) == []


def test_what_cannot_be_read_is_counted_and_stepped_over(case: Case, opened: Opened) -> None:
    if not case.live:
        case.spoil()
    source, frames = opened()
    indices = [frame.index for frame in take(frames, 2)]
    if case.live:
        case.spoil()
    deadline_s = time.monotonic() + 60
    while not source.errors and time.monotonic() < deadline_s:
        indices += [frame.index for frame in take(frames, 1)]
    assert source.errors >= 1
    assert len(source.last_error) > 10
    # And on it goes, without a gap in the numbers.
    indices += [frame.index for frame in take(frames, 2)]
    assert indices == list(range(len(indices)))


def test_what_cannot_be_opened_is_said_before_the_first_frame(case: Case) -> None:
    source: Source | None = None
    with pytest.raises(MarramError) as caught:
        source = case.broken()
        next(source.frames())
    assert len(str(caught.value)) > 20
    assert "Traceback" not in str(caught.value)
    if source is not None:
        source.close()
        source.close()


def test_every_source_is_here() -> None:
    assert {case.verb for case in CASES} == set(SOURCES)
