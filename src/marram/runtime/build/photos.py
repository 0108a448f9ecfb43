"""Photos for calibration that a fresh machine has: those inside the scikit-image and scikit-learn packages.

Ranges of activations need a variety of textures and brightness, not labels: each photo is seen whole, cropped and
mirrored. All are public domain or CC0, or CC BY (scikit-learn's two); see the packages' own README files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from marram.runtime import image as pictures
from marram.runtime.image import Image
from marram.schema.errors import NotReady

# Pictures of things; not the test patterns and masks that lie beside them.
_NAMES = {
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}


def files() -> list[Path]:
    """The photos that are installed. Raises NotReady where there are none."""
    present = installed(_NAMES)
    if not present:
        raise NotReady(
            "calibration needs the photos inside scikit-image and scikit-learn", hint="`pip install marram[demo]`"
        )
    return present


def installed(names: Mapping[str, tuple[str, str]]) -> list[Path]:
    """The files of `names` that are here: {package: (folder inside it, file names between spaces)}."""
    found = []
    for package, (folder, wanted) in names.items():
        spec = importlib.util.find_spec(package)  # found, not imported: scikit-image takes a second and 100 MB
        for root in spec.submodule_search_locations or [] if spec else []:
            found += [Path(root) / folder / name for name in wanted.split()]
    return [file for file in found if file.is_file()]


def crops() -> Iterator[Image]:
    """Each photo whole, mirrored, and its four quarters and centre, every other one mirrored: 7 views a photo."""
    for file in files():
        whole = pictures.decode(file.read_bytes(), str(file))
        height, width = whole.shape[0] // 2, whole.shape[1] // 2
        corners = [(0, 0), (0, width), (height, 0), (height, width), (height // 2, width // 2)]
        parts = [whole[y : y + height, x : x + width] for y, x in corners]
        for index, part in enumerate([whole, whole, *parts]):
            yield np.ascontiguousarray(part[:, ::-1]) if index % 2 else part
