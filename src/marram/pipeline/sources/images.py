"""`images: FOLDER`: every picture of a folder in name order. What cannot be read is counted and stepped over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from marram.pipeline.contract import Frame, Position
from marram.pipeline.pace import Pace
from marram.runtime import image
from marram.schema.app import ImagesSource
from marram.schema.errors import MarramError, Missing, Retryable

_READ = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".avif", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# What a telephone or a camera may have put among them: pictures all the same, so they are counted and not passed over.
_UNREAD = frozenset({".heic", ".heif", ".dng", ".jxl", ".jp2"})

# How soon a folder that is repeated, and has nothing to read right now, is looked at again.
AGAIN_S = 0.5


def open_source(spec: ImagesSource, base: Path) -> Images:
    """`~` is the home of whoever runs the app. Raises Missing where the folder is absent or has no pictures, Retryable
    where it may not be read.
    """
    folder = base / Path(spec.images).expanduser()
    if not folder.is_dir():
        raise Missing(
            f"no folder {folder}",
            where=f"source: images: {spec.images}",
            hint="It is a file: name the folder that it is in."
            if folder.is_file()
            else "Name a folder of pictures, relative to the app file.",
        )
    if not _pictures(folder):
        raise Missing(
            f"no pictures in {folder}",
            where=f"source: images: {spec.images}",
            hint=f"Looked for {', '.join(sorted(_READ))}.",
        )
    return Images(folder, Pace(spec.every), repeat=spec.repeat)


def _pictures(folder: Path) -> list[Path]:
    """None where the folder is gone: who puts another there may be at it this moment. Raises Retryable."""
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in _READ | _UNREAD and file.is_file())
    except PermissionError as error:
        # On a device also of a folder that was put there after the worker gave up what it does not need (edge.sandbox):
        # the next worker may use it.
        raise Retryable(f"the folder {folder} cannot be read: {error.strerror}") from error
    except OSError:
        return []


class Images:
    """See `contract.Source`. A frame's `name` is its file's. With `repeat` each round looks at the folder anew."""

    live = False

    def __init__(self, folder: Path, pace: Pace, *, repeat: bool) -> None:
        self._folder, self._pace, self._repeat = folder, pace, repeat
        self._reached: Position | None = None
        self.skipped = 0
        self.errors = 0
        self.last_error = ""

    def resume(self, reached: Position) -> None:
        """See `contract.Finite`. By name: pictures may have come and gone meanwhile."""
        self._reached = reached

    def frames(self) -> Iterator[Frame]:
        """Every readable picture, over and over with `repeat`.

        Raises Missing where not one can be read, Retryable where the folder may not be, any more.
        """
        reached, given = self._reached, 0
        index = count(0 if reached is None else reached.frame + 1)
        while not self._pace.closed():
            files = [file for file in _pictures(self._folder) if reached is None or file.name > reached.name]
            before = given
            for file in files:
                if not self._pace.wait():
                    return
                try:
                    picture = image.decode(file.read_bytes())
                except (MarramError, OSError) as error:
                    self.errors += 1
                    self.last_error = f"{file.name}: {error.what if isinstance(error, MarramError) else error}"
                    continue
                given += 1
                yield Frame(next(index), time.time(), time.monotonic(), image=picture, name=file.name)
            if not given and reached is None:
                raise Missing(
                    f"none of the {len(files)} pictures in {self._folder} can be read",
                    hint=f"The last one: {self.last_error}." if self.last_error else None,
                )
            if not self._repeat:
                return
            if given == before:  # who puts other pictures there may be at it this moment
                self._pace.rest(AGAIN_S)

    def close(self) -> None:
        """See `contract.Source`."""
        self._pace.close()
