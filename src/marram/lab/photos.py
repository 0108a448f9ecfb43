"""The photos of the demo: those inside the scikit-image and scikit-learn packages, as a camera would give them.

Only pictures of the world (no test patterns, scans or masks), cut to 4:3 and sized as a camera's 640 × 480 JPEG.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from marram.runtime.build.photos import installed
from marram.schema.errors import NotReady, Permanent

SIZE = (640, 480)
_QUALITY = 88
_PHOTOS = {
    "skimage": (
        "data",
        "astronaut.png camera.png chelsea.png clock_motion.png coffee.png coins.png grass.png gravel.png moon.png "
        "motorcycle_left.png motorcycle_right.png rocket.jpg",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}


def write_photos(folder: Path) -> int:
    """Write them as JPEGs into `folder` (made where it is not); returns how many.

    Raises NotReady where no package has any, Permanent where the folder cannot be written.
    """
    found = installed(_PHOTOS)
    if not found:
        raise NotReady(
            "the demo's photos are those inside scikit-image and scikit-learn, which are not installed",
            hint="pip install 'marram[demo]'",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(found):
            with Image.open(file) as opened:
                picture = ImageOps.fit(opened.convert("RGB"), SIZE, Image.Resampling.LANCZOS)
            picture.save(folder / f"{number:02d}-{file.stem}.jpg", quality=_QUALITY)
    except OSError as error:
        raise Permanent(f"cannot write the photos: {error}", where=str(folder)) from error
    return len(found)
