"""video: a disk that fills is told, counted, and leaves a video that plays; the app goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.pipeline.contract import Frame
from marram.pipeline.plugins import open_sink, open_source
from marram.pipeline.sinks import video
from marram.schema.app import VideoSink, VideoSource
from marram.schema.errors import Retryable


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of this test's own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "marram-test", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        pytest.skip(f"needs `mount`: {error}")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def noise(index: int, height: int = 240, width: int = 320) -> Frame:
    """What compresses badly."""
    pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), np.uint8)
    return Frame(index, float(index), 0.0, image=pixels)


def played(file: Path) -> int:
    return sum(1 for _ in open_source(VideoSource(video=file.name), file.parent).frames())


@pytest.mark.parametrize("kind", ["avi", "mp4", "mkv"])
def test_a_full_disk_is_told_and_the_video_still_plays(small_disk: Path, kind: str) -> None:
    sink: Any = open_sink(VideoSink(video=f"out.{kind}"), small_disk)
    lost = 0
    for index in range(150):
        try:
            sink.write(noise(index))
        except Retryable as error:
            lost += 1
            assert f"out.{kind} (no space left on device); {lost} pictures are lost so far" in str(error)
    assert 0 < lost == sink.lost < 150
    sink.close()
    assert played(small_disk / f"out.{kind}") == 150 - lost


def test_room_made_on_the_disk_is_used(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_500_000))
    sink: Any = open_sink(VideoSink(video="out.avi"), small_disk)
    for index in range(5):
        with pytest.raises(Retryable, match="no space left"):
            sink.write(noise(index))
    ballast.unlink()
    for index in range(5):
        sink.write(noise(index))
    sink.close()
    assert (sink.lost, played(small_disk / "out.avi")) == (5, 5)


def test_an_app_goes_on_without_its_video(build: Any, photos: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(2_500_000))
    pipeline, seen = build(
        f"source: {{images: {photos}}}\nsteps: [classify: MODEL]\nsinks: [{{video: {small_disk}/out.mp4}}]\n"
    )
    pipeline.run()
    assert len(seen.frames) == 9
    stats = pipeline.stats()
    assert (stats["frames"], stats["errors"]) == (9, 9)
    assert "no space left on device" in stats["last_error"]


@pytest.mark.parametrize("kind", ["avi", "mp4"])
def test_a_limit_that_no_disk_shows_is_seen_by_the_file(tmp_path: Path, kind: str) -> None:
    """A quota, FAT's 4 GB: the disk has room and the file does not grow. Here a limit on a file's size."""
    code = f"""
import resource, sys
import numpy as np
from pathlib import Path
from marram.pipeline.contract import Frame
from marram.pipeline.plugins import open_sink
from marram.schema.app import VideoSink
from marram.schema.errors import Retryable
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
sink = open_sink(VideoSink(video="out.{kind}"), Path(sys.argv[1]))
pixels = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
for index in range(450):
    try:
        sink.write(Frame(index, 0.0, 0.0, image=pixels))
    except Retryable as error:
        print(index, error)
        break
sink.close()
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=150, check=True
    )
    assert "the file no longer grows" in ran.stdout


@pytest.mark.parametrize(("kind", "size"), [("avi", (48, 64)), ("mp4", (48, 64)), ("mp4", (480, 640))])
def test_a_picture_that_never_changes_is_no_fault(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    sink: Any = open_sink(VideoSink(video=f"out.{kind}"), tmp_path)
    black = np.zeros((*size, 3), np.uint8)
    for index in range(1500):
        sink.write(Frame(index, 0.0, 0.0, image=black))
    sink.close()
    assert sink.lost == 0
    # Every codec writes more than the least that is expected of it, or this would not be a fault that can be told.
    least = video.LEAST_BYTES_A_PIXEL[video.CODECS[f".{kind}"]]
    assert (tmp_path / f"out.{kind}").stat().st_size > 1.5 * least * size[0] * size[1] * 1500


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    sink: Any = open_sink(VideoSink(video="out.avi"), tmp_path)
    for index in range(3):
        sink.write(noise(index))
    (tmp_path / "out.avi").rename(tmp_path / "old.avi")
    with pytest.raises(Retryable, match="no such file"):
        sink.write(noise(3))
    for index in range(2):
        sink.write(noise(index))
    sink.close()
    assert (played(tmp_path / "old.avi"), played(tmp_path / "out.avi")) == (3, 2)


def test_every_codec_has_its_least() -> None:
    assert set(video.CODECS.values()) == set(video.LEAST_BYTES_A_PIXEL)
