"""`images: FOLDER`: every picture of a folder in name order. What cannot be read is counted and stepped over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from marram.pipeline.contract import Frame
from marram.pipeline.pace import Pace
from marram.runtime import image
from marram.schema.app import ImagesSource
from marram.schema.errors import MarramError, Missing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def open_source(spec: ImagesSource, base: Path) -> Images:
    """Raises Missing where the folder is absent or has no pictures."""
    folder = base / spec.images
    if not folder.is_dir():
        raise Missing(
            f"no folder {folder}",
            where=f"source: images: {spec.images}",
            hint="Name a folder of pictures, relative to the app file.",
        )
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise Missing(
            f"no pictures in {folder}",
            where=f"source: images: {spec.images}",
            hint=f"Looked for {', '.join(sorted(SUFFIXES))}.",
        )
    return Images(files, Pace(spec.every), repeat=spec.repeat)


class Images:
    """See `contract.Source`. The frame's `name` is the file's name."""

    live = False

    def __init__(self, files: list[Path], pace: Pace, *, repeat: bool) -> None:
        self._files, self._pace, self._repeat = files, pace, repeat
        self.skipped = 0
        self.errors = 0
        self.last_error = ""

    def frames(self) -> Iterator[Frame]:
        """Every readable picture, over and over with `repeat`. Raises Invalid where not one of them can be read."""
        index = count()
        while not self._pace.closed():
            before = self.errors
            for file in self._files:
                if not self._pace.wait():
                    return
                try:
                    picture = image.decode(file.read_bytes())
                except (MarramError, OSError) as error:
                    self.errors += 1
                    self.last_error = f"{file.name}: {error.what if isinstance(error, MarramError) else error}"
                    continue
                yield Frame(next(index), time.time(), time.monotonic(), image=picture, name=file.name)
            if self.errors - before == len(self._files):
                raise Missing(
                    f"none of the {len(self._files)} pictures in {self._files[0].parent} can be read",
                    hint=f"The last one: {self.last_error}.",
                )
            if not self._repeat:
                return

    def close(self) -> None:
        """See `contract.Source`."""
        self._pace.close()
