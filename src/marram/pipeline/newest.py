"""Keeps the newest picture of a live source (camera, stream), so that a slow model sees now, not a second ago.

One thread reads as fast as pictures come; whoever asks gets the newest one not yet taken, and what it replaced is
counted as skipped. A device that stops answering (a camera unplugged, a stream cut) is counted as an error each time it
is tried, opened again with back-off, and never holds up `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Protocol

from marram.pipeline.contract import Frame, Image
from marram.pipeline.faults import Faults, words
from marram.pipeline.pace import following
from marram.schema.errors import MarramError

log = logging.getLogger(__name__)

BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
# How long `frames` waits for the reading thread at its end; a read that hangs in a driver is left behind.
CLOSE_GRACE_S = 2.0


class Grabber(Protocol):
    """An opened camera or stream."""

    def read(self) -> Image | None:
        """The next picture; None where the device or the stream ended. Blocks until then."""
        ...

    def close(self) -> None: ...


class Newest:
    """See `contract.Source`. `open_grabber` raises Missing or Retryable where the device cannot be opened."""

    live = True

    def __init__(self, open_grabber: Callable[[], Grabber], every_s: float | None, name: str) -> None:
        self._open, self._every_s, self._name = open_grabber, every_s, name
        self._changed = threading.Condition()
        self._newest: tuple[Image, float, float] | None = None
        self._closed = threading.Event()
        self._faults = Faults(log)
        self.skipped = 0
        self.errors = 0
        self.last_error = ""

    def frames(self) -> Iterator[Frame]:
        """The newest picture, each time one is asked for, until `close`."""
        if self._closed.is_set():
            return
        grabber = self._open()
        thread = threading.Thread(target=self._read, args=(grabber,), name=f"marram-{self._name}", daemon=True)
        thread.start()
        try:
            due_s = 0.0
            for index in count():
                with self._changed:
                    while not self._closed.is_set():
                        wait_s = due_s - time.monotonic()
                        if wait_s <= 0 and self._newest is not None:
                            break
                        self._changed.wait(wait_s if wait_s > 0 else None)
                    if self._closed.is_set() or self._newest is None:
                        return
                    (image, time_s, captured_s), self._newest = self._newest, None
                if self._every_s is not None:
                    due_s = following(due_s, self._every_s, captured_s)
                yield Frame(index, time_s, captured_s, image=image, name=self._name)
        finally:
            self.close()
            thread.join(CLOSE_GRACE_S)

    def close(self) -> None:
        """See `contract.Source`."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    def _read(self, grabber: Grabber | None) -> None:
        failures = 0
        while not self._closed.is_set():
            if grabber is None:
                if self._closed.wait(BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1]):
                    return
                try:
                    grabber = self._open()
                except Exception as error:  # noqa: BLE001 - supervisor: as long as the app runs it is tried again
                    failures += 1
                    if not isinstance(error, MarramError):
                        self._faults.tell(f"opening {self._name}", error)
                    self._failed(words(error))
                    continue
            image = self._picture(grabber)
            if image is None:
                grabber.close()
                grabber = None
                failures += 1
                self._failed(f"{self._name} stopped giving pictures; it is opened again")
                continue
            if failures:
                log.info("%s gives pictures again", self._name)
            failures = 0
            self._offer(image)
        if grabber is not None:
            grabber.close()

    def _picture(self, grabber: Grabber) -> Image | None:
        try:
            return grabber.read()
        except Exception as error:  # noqa: BLE001 - supervisor: whatever a driver does, the device is opened again
            self._faults.tell(f"reading {self._name}", error)
            return None

    def _offer(self, image: Image) -> None:
        with self._changed:
            # With `every`, pictures between two that are due are not wanted, so not missed either.
            if self._newest is not None and self._every_s is None:
                self.skipped += 1
            self._newest = (image, time.time(), time.monotonic())
            self._changed.notify_all()

    def _failed(self, message: str) -> None:
        if not self._closed.is_set():
            self.errors += 1
            self.last_error = message
