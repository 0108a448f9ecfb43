"""`preview: auto`: a live view of what the app sees and answers: a page in the browser, or a window.

- `auto` is a window where this machine can show one, else a page; a port (`8090`) is always a page.
- `window` is a window, or an error that says what is missing for one: a display, and an OpenCV that was built with
  windows. The one that Marram installs (`opencv-python-headless`) was not, because it would bring a desktop's libraries
  onto every device; `pip uninstall opencv-python-headless`, then `pip install opencv-python` has it in its place.

The page is MJPEG over HTTP, on this machine only (127.0.0.1). Whoever looks gets the newest picture: a slow viewer
misses pictures and never slows the pipeline, and where nobody looks nothing is encoded.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

from marram.pipeline import opencv
from marram.pipeline.contract import Frame, Image, Sink
from marram.pipeline.events import data_of
from marram.runtime import image as pictures
from marram.schema.app import PreviewSink
from marram.schema.errors import Conflict, Missing

HOST = "127.0.0.1"
USUAL_PORT = 8090
BOUNDARY = "marram-picture"
# A viewer that takes nothing for so long is gone.
VIEWER_TIMEOUT_S = 10.0


def open_sink(spec: PreviewSink, base: Path) -> Sink:
    """Raises Conflict where the port is taken, Missing where a window is asked for and cannot be."""
    if spec.preview == "window":
        return Window(_with_windows())
    if spec.preview == "auto":
        try:
            return Window(_with_windows())
        except Missing:
            return Page(None)
    return Page(spec.preview)


class Newest:
    """The newest picture and its result; viewers wait for one they have not seen."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._number = 0
        self._jpeg: tuple[int, bytes] = (0, b"")
        self.closed = False

    def put(self, frame: Frame) -> None:
        with self._changed:
            self._frame = frame
            self._number += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def frame(self) -> Frame | None:
        return self._frame

    def jpeg(self, seen: int) -> tuple[int, bytes] | None:
        """The newest picture after number `seen`, with its number; None once closed. Waits."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._number > seen)
            if self.closed:
                return None
            number, frame = self._number, self._frame
            if self._jpeg[0] == number:  # another viewer has had it encoded already
                return self._jpeg
        assert frame is not None and frame.image is not None
        encoded = (number, pictures.encode_jpeg(frame.image))
        with self._changed:
            self._jpeg = max(self._jpeg, encoded)
        return encoded


class Page:
    """See `contract.Sink`. At `url`: `/` the page, `/stream` MJPEG, `/result.json` the newest result."""

    def __init__(self, port: int | None) -> None:
        self._newest = Newest()
        self._server = _serve(self._newest, port)
        self.url = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="marram-preview", daemon=True
        )
        self._thread.start()

    def write(self, frame: Frame) -> None:
        """Show the frame's picture; never waits for a viewer."""
        if frame.image is not None:
            self._newest.put(frame)

    def close(self) -> None:
        """End the page and every viewer's stream."""
        self._newest.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _serve(newest: Newest, port: int | None) -> _Server:
    """A server on `port`; on the usual one, or else any free one, where it is None. Raises Conflict."""
    for attempt in (USUAL_PORT, 0) if port is None else (port,):
        try:
            return _Server((HOST, attempt), newest)
        except (OSError, OverflowError) as error:
            failure = error
    raise Conflict(
        f"port {port} cannot be used for the preview ({getattr(failure, 'strerror', None) or failure})",
        where=f"sinks: preview: {port}",
        hint="Name another, or write `preview: auto`.",
    ) from failure


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Viewers end by themselves when `Newest` closes; one that hangs must not hold up the end of the app.
    block_on_close = False

    def __init__(self, address: tuple[str, int], newest: Newest) -> None:
        self.newest = newest
        super().__init__(address, _Viewer)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer went away: nothing to tell anybody."""


class _Viewer(BaseHTTPRequestHandler):
    timeout = VIEWER_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        """One of the three addresses, else 404."""
        path = self.path.partition("?")[0]
        if path == "/stream":
            self._stream()
        elif path == "/result.json":
            frame = self.server.newest.frame()
            self._send("application/json", json.dumps(data_of(frame) if frame else {}).encode())
        elif path == "/":
            page = importlib.resources.files("marram.pipeline.sinks").joinpath("preview.html").read_bytes()
            self._send("text/html; charset=utf-8", page)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal belongs to the app's results."""

    def _send(self, media: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        seen = 0
        while (picture := self.server.newest.jpeg(seen)) is not None:
            seen, jpeg = picture
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")


def _with_windows() -> ModuleType:
    """OpenCV, where it can open windows here. Raises Missing, naming what is not there."""
    where, browser = "sinks: preview: window", "or write `preview: auto` for a page in the browser."
    if sys.platform == "darwin":
        raise Missing(
            "macOS opens windows only from an app's main thread, which is not Marram's here",
            where=where,
            hint="Write `preview: auto` for a page in the browser.",
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise Missing(
            "no display here (neither DISPLAY nor WAYLAND_DISPLAY is set)",
            where=where,
            hint=f"Run it in a desktop session, {browser}",
        )
    cv2 = opencv.load(where)
    lines = [line.split() for line in str(cv2.getBuildInformation()).splitlines()]
    if ["GUI:", "NONE"] in lines:
        raise Missing(
            "the OpenCV installed here was built without windows (opencv-python-headless)",
            where=where,
            hint=f"pip uninstall opencv-python-headless && pip install opencv-python, {browser}",
        )
    return cv2


class Window:
    """See `contract.Sink`. One thread owns the window, as OpenCV wants it."""

    def __init__(self, cv2: ModuleType) -> None:
        self._cv2 = cv2
        self._changed = threading.Condition()
        self._image: Image | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._show, name="marram-preview", daemon=True)
        self._thread.start()

    def write(self, frame: Frame) -> None:
        """Show the frame's picture; never waits for the window."""
        with self._changed:
            self._image = frame.image
            self._changed.notify()

    def close(self) -> None:
        """Close the window."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _show(self) -> None:
        while not self._closed:
            with self._changed:
                # Also without a new picture the window must answer its user: it is moved, resized, closed.
                self._changed.wait(0.05)
                image, self._image = self._image, None
            if image is not None:
                self._cv2.imshow("marram", opencv.as_bgr(self._cv2, image))
            self._cv2.waitKey(1)
        self._cv2.destroyAllWindows()
