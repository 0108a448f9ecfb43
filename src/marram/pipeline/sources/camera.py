"""`camera: 0`: a camera by its index, live: the newest picture, through OpenCV."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from marram.pipeline import opencv
from marram.pipeline.contract import Image
from marram.pipeline.newest import Newest
from marram.schema.app import CameraSource
from marram.schema.errors import Missing


def open_source(spec: CameraSource, base: Path) -> Newest:
    """Raises Missing without OpenCV. `frames` opens the camera itself, and raises Missing where there is none."""
    cv2 = opencv.load(f"source: camera: {spec.camera}")
    return Newest(lambda: Camera(cv2, spec.camera), spec.every, f"camera {spec.camera}")


def present() -> list[str]:
    """Cameras this machine says it has: `/dev/video*` on Linux, nothing known elsewhere."""
    return sorted(str(device) for device in Path("/dev").glob("video*"))


class Camera:
    """See `newest.Grabber`. Raises Missing where the camera is absent, held by another program, or not permitted.

    `device` is a camera's index; OpenCV also takes a device's path, or a file that plays as a camera would.
    """

    def __init__(self, cv2: ModuleType, device: int | str) -> None:
        self._capture = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            self._capture.release()
            found = present()
            held = f"/dev/video{device}" in found
            why = "it is there, but in use, or not for this user" if held else "no such device here"
            raise Missing(
                f"cannot open camera {device}: {why} (found: {', '.join(found) or 'none'})."
                f"{'' if held else ' Is it plugged in?'}",
                hint="Try `source: {images: photos/}` meanwhile.",
            )
        # Where the driver lets us: its own queue would hand out old pictures as new ones.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> Image | None:
        """See `newest.Grabber`."""
        ok, bgr = self._capture.read()
        return opencv.as_rgb_view(bgr) if ok else None

    def close(self) -> None:
        """See `newest.Grabber`."""
        self._capture.release()
