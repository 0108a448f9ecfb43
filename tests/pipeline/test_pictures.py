"""Apps over folders of pictures and videos, for real: files in, answers out, in order."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from marram.pipeline import opencv
from marram.pipeline.build import Pipeline
from marram.pipeline.pace import Pace
from marram.pipeline.sources import camera
from marram.pipeline.sources.images import Images
from marram.schema.app import CameraSource
from marram.schema.errors import Invalid, MarramError, Missing
from marram.schema.event import EventKind
from marram.system import landlock

NAMES = ["red", "green", "blue"]


def test_every_picture_is_answered_in_name_order(build: Any, photos: Path) -> None:
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [{{classify: MODEL, parallel: 3}}]\n")
    pipeline.run()
    assert seen.labels == NAMES * 3
    assert [frame.name for frame in seen.frames] == sorted(file.name for file in photos.iterdir())
    assert [frame.index for frame in seen.frames] == list(range(9))
    stats = pipeline.stats()
    assert (stats["frames"], stats["edge"], stats["cloud"], stats["errors"]) == (9, 9, 0, 0)
    assert 0 < stats["p50_ms"] <= stats["p95_ms"]
    assert stats["link_up"] is None
    assert seen.closed == 1


def test_results_say_where_and_how_long(build: Any, photos: Path) -> None:
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    first = seen.events[0]
    assert first.kind is EventKind.RESULT
    assert first.app == "test"
    assert first.data["label"] == "red"
    assert first.data["name"] == "00-red.png"
    assert first.data["place"] == "edge"
    assert first.data["latency_ms"] > 0
    assert first.data["audit"] is False and first.data["fallback"] is False


@pytest.mark.parametrize(("send", "labels"), [
    ("results", ["red", "red", "green", "green", "red"]),
    ("changes", ["red", "green", "red"]),
    ("alerts", []),
    ("nothing", []),
])  # fmt: skip
def test_send_chooses_the_events(build: Any, tmp_path: Path, send: str, labels: list[str]) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for number, name in enumerate(["red", "red", "green", "green", "red"]):
        colour = {"red": (255, 0, 0), "green": (0, 255, 0)}[name]
        Pillow.new("RGB", (20, 20), colour).save(folder / f"{number}.png")
    pipeline, seen = build(f"source: {{images: few}}\nsteps: [classify: MODEL]\nsend: {send}\n")
    pipeline.run()
    assert [event.data["label"] for event in seen.events] == labels


def test_a_broken_picture_is_counted_and_stepped_over(build: Any, photos: Path) -> None:
    whole = (photos / "03-red.png").read_bytes()
    (photos / "03-red.png").write_bytes(whole[: len(whole) // 2])
    (photos / "05-blue.png").write_bytes(b"not a picture")
    (photos / "06-red.png").write_bytes(b"")
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    assert seen.labels == ["red", "green", "blue", "green", "green", "blue"]
    stats = pipeline.stats()
    assert stats["errors"] == 3
    assert "06-red.png" in stats["last_error"]


def test_not_one_readable_picture_is_an_error(build: Any, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"\xff\xd8nothing")
    pipeline, _ = build("source: {images: bad}\nsteps: [classify: MODEL]\n")
    with pytest.raises(MarramError, match="none of the 1 pictures"):
        pipeline.run()


def test_a_picture_of_a_kind_nobody_reads_is_counted(build: Any, photos: Path) -> None:
    """A telephone's folder is half HEIC: who hears nothing of it thinks that all of it was looked at."""
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (photos / "notes.txt").write_text("no picture")
    pipeline, seen = build(f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    assert seen.labels == NAMES * 3
    stats = pipeline.stats()
    assert (stats["errors"], stats["last_error"]) == (1, "IMG_1.HEIC: not a picture Marram can read")


def test_a_repeated_folder_that_is_away_for_a_moment_is_looked_at_again(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spare in sorted(photos.iterdir())[1:]:
        spare.unlink()
    source, away, rests = Images(photos, Pace(None), repeat=True), tmp_path / "away", []
    frames = source.frames()
    first = next(frames)
    photos.rename(away)

    def rest(_: Pace, span_s: float) -> None:
        rests.append(span_s)
        if len(rests) == 2:
            away.rename(photos)

    monkeypatch.setattr(Pace, "rest", rest)
    assert next(frames).name == first.name
    assert len(rests) == 2 and rests[0] > 0


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_a_folder_that_is_closed_to_the_app_is_said_and_not_waited_for(photos: Path, tmp_path: Path) -> None:
    """Another folder in its place, which a worker that gave up the rest may not use: the next worker may."""
    program = """
        import sys
        from pathlib import Path
        from marram.pipeline.sources.images import open_source
        from marram.schema.app import ImagesSource
        from marram.schema.errors import Retryable
        from marram.system import landlock

        folder, closed = sys.argv[1:]
        landlock.restrict(landlock.everything_but({closed: 0}))
        frames = open_source(ImagesSource(images=folder, repeat=True), Path()).frames()
        print(next(frames).name, flush=True)
        input()
        try:
            for frame in frames:
                pass
        except Retryable as error:
            print(error, flush=True)
    """
    (tmp_path / "closed").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(photos), str(tmp_path / "closed")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "00-red.png\n"
        photos.rename(tmp_path / "old")
        shutil.copytree(tmp_path / "old", photos)
        told, _ = child.communicate("go on\n", timeout=30)
    assert told == f"the folder {photos} cannot be read: Permission denied\n"


def test_repeat_starts_over(build: Any, photos: Path, running: Callable[[Pipeline], Any]) -> None:
    pipeline, seen = build(f"source: {{images: {photos}, repeat: true}}\nsteps: [classify: MODEL]\n")
    running(pipeline)
    assert seen.arrived(30)
    assert seen.labels[:30] == (NAMES * 10)[:30]


def test_every_paces_a_folder(build: Any, photos: Path) -> None:
    pipeline, seen = build(f"source: {{images: {photos}, every: 20 ms}}\nsteps: [classify: MODEL]\n")
    begun_s = time.monotonic()
    pipeline.run()
    # Never sooner than due; later is the machine's business.
    assert seen.frames[-1].captured_s - begun_s >= 8 * 0.020
    assert seen.labels == NAMES * 3


@pytest.mark.parametrize(("source", "words"), [
    ("images: nowhere", "no folder"),
    ("images: empty", "no pictures in"),
    ("images: photo.jpg", "no folder .*It is a file: name the folder"),
    ("video: nowhere.mp4", "no file"),
    ("video: garbage.mp4", "is not a video that can be read"),
])  # fmt: skip
def test_a_wrong_source_is_named(build: Any, tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage.mp4").write_bytes(b"garbage" * 1000)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(MarramError, match=words) as caught:
        build(f"source: {{{source}}}\nsteps: [classify: MODEL]\n")
    assert caught.value.hint


def test_a_wrong_model_is_named(build: Any, photos: Path) -> None:
    with pytest.raises(Missing, match='no model "nothing"'):
        build(f"source: {{images: {photos}}}\nsteps: [classify: nothing]\n")
    with pytest.raises(Invalid, match="is a model for classification") as caught:
        build(f"source: {{images: {photos}}}\nsteps: [detect: MODEL]\n")
    assert "classify" in str(caught.value)
    with pytest.raises(Missing, match='no variant "int8"'):
        build(f"source: {{images: {photos}}}\nsteps: [{{classify: MODEL, variant: int8}}]\n")


def test_a_model_of_pictures_does_not_take_readings(build: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    with pytest.raises(Invalid, match="takes pictures, and the source gives readings"):
        build("source: {series: a.csv}\nsteps: [classify: MODEL]\n")


# ---------------------------------------------------------------- video


def make_video(file: Path, colours: list[tuple[int, int, int]]) -> Path:
    """A video of one picture a colour (RGB)."""
    cv2 = opencv.load("test")
    codec = "MJPG" if file.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*codec), 25, (64, 48))
    for colour in colours:
        writer.write(np.full((48, 64, 3), colour[::-1], np.uint8))
    writer.release()
    return file


COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}


def test_no_frame_of_a_video_is_lost_and_red_is_red(build: Any, tmp_path: Path) -> None:
    names = (NAMES * 20)[:50]
    make_video(tmp_path / "a.avi", [COLOURS[name] for name in names])
    pipeline, seen = build("source: {video: a.avi}\nsteps: [{classify: MODEL, parallel: 2}]\n")
    pipeline.run()
    assert seen.labels == names
    # RGB, as the contract says, though OpenCV decodes BGR.
    assert abs(int(seen.frames[0].image[0, 0, 0]) - 220) < 12
    assert abs(int(seen.frames[2].image[0, 0, 2]) - 230) < 12
    assert pipeline.stats()["skipped"] == 0


def test_a_video_that_is_cut_off_says_so(build: Any, tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.avi", [COLOURS["red"]] * 60).read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: len(whole) // 2])
    pipeline, seen = build("source: {video: a.avi}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    stats = pipeline.stats()
    assert 0 < len(seen.frames) < 60
    assert stats["errors"] == 1
    assert "of 60 frames: damaged or cut off" in stats["last_error"]


def test_an_mp4_cut_off_before_its_index_is_refused(build: Any, tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.mp4", [COLOURS["red"]] * 60).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Invalid, match="damaged, or cut off"):
        build("source: {video: a.mp4}\nsteps: [classify: MODEL]\n")


def test_damaged_bytes_inside_a_video_do_not_end_the_app(build: Any, tmp_path: Path) -> None:
    whole = bytearray(make_video(tmp_path / "a.avi", [COLOURS["red"]] * 60).read_bytes())
    whole[len(whole) // 3 : len(whole) // 3 + 2000] = b"\0" * 2000
    (tmp_path / "a.avi").write_bytes(bytes(whole))
    pipeline, seen = build("source: {video: a.avi}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    assert seen.frames
    assert pipeline.stats()["frames"] == len(seen.frames)


def test_opencv_and_ffmpeg_say_nothing_on_stderr(build: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = make_video(tmp_path / "a.avi", [COLOURS["red"]] * 60).read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.mp4").write_bytes(b"garbage" * 1000)
    pipeline, _ = build("source: {video: a.avi}\nsteps: [classify: MODEL]\n")
    pipeline.run()
    with pytest.raises(Invalid):
        build("source: {video: b.mp4}\nsteps: [classify: MODEL]\n")
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- camera


def test_an_absent_camera_is_named_with_a_way_on(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "present", list)
    pipeline, _ = build("source: {camera: 99}\nsteps: [classify: MODEL]\n")
    with pytest.raises(Missing) as caught:
        pipeline.run()
    assert str(caught.value) == (
        "cannot open camera 99: no such device here (found: none). Is it plugged in? "
        "Try `source: {images: photos/}` meanwhile."
    )


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(Missing, match="needs OpenCV") as caught:
        camera.open_source(CameraSource(camera=0), tmp_path)
    assert "camera: 0" in str(caught.value)
    assert "pip install 'marram[camera]'" in str(caught.value)


@pytest.mark.parametrize("answers", ["1.0", "None", "False", "[frame, frame]"])
def test_functions_alone_are_timed_from_capture(build: Any, photos: Path, tmp_path: Path, answers: str) -> None:
    """What the p95 gates judge where no step asks a model: each frame that went through, whatever came of it."""
    text = f"import time\ndef answer(frame, result):\n    time.sleep(0.02)\n    return {answers}\n"
    (tmp_path / "slow.py").write_text(text)
    pipeline, _ = build(f"source: {{images: {photos}}}\nsteps: [{{function: 'slow.py:answer'}}]")
    pipeline.run()
    stats = pipeline.stats()
    assert (stats["frames"], stats["delays"], stats["edge"]) == (9, 9, 0)
    assert 19 < stats["p50_ms"] <= stats["p95_ms"]


def test_what_follows_a_model_does_not_change_its_delays(build: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("def answer(frame, result):\n    return [frame, frame]\n")
    pipeline, _ = build(f"source: {{images: {photos}}}\nsteps: [{{classify: MODEL}}, {{function: 'slow.py:answer'}}]")
    pipeline.run()
    assert (pipeline.stats()["delays"], pipeline.stats()["edge"]) == (9, 9)
