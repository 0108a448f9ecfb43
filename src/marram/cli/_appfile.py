"""An app file, read and checked: the one way that every command takes one from a person.

It also makes what an app needs and does not say: the face detector of `redact: faces`, which is small and built in a
second.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from marram.runtime import library
from marram.runtime.build import recipes
from marram.schema.app import App, RedactStep, app_on, model_uses
from marram.schema.errors import Invalid, MarramError, Missing
from marram.schema.page import Page
from marram.schema.words import file_fault

DETECTOR = RedactStep().model


# A page of YAML; what is named by mistake (a video, a device) may have no end.
MAX_APP_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class AppFile:
    """An app file. `page` knows on which line each field stands."""

    path: Path
    text: str
    page: Page
    app: App

    @classmethod
    def read(cls, path: Path) -> AppFile:
        """Raises Missing or Invalid, every fault on a line of its own."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_APP_BYTES + 1)
            if len(content) > MAX_APP_BYTES:
                raise Invalid("is too large for an app file", where=str(path), hint="Is this an app file (YAML)?")
            text = content.decode("utf-8").replace("\r\n", "\n")
        except FileNotFoundError as error:
            raise Missing(f"no such file {path}", hint="Name an app file, such as app.yaml.") from error
        except IsADirectoryError as error:
            there = [file.name for file in sorted(path.glob("*.y*ml"))]
            hint = f"Name the file in it: {path / there[0]}" if there else "An app is a file, such as app.yaml."
            raise Invalid("is a folder, not an app file", where=str(path), hint=hint) from error
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(
                f"cannot be read: {file_fault(error)}", where=str(path), hint="Is this an app file (YAML)?"
            ) from error
        page = Page.read(text, str(path))
        return cls(path, text, page, app_on(page))

    @property
    def folder(self) -> Path:
        """Where paths in the app start."""
        return self.path.resolve().parent


def build_detector(app: App, there: Collection[str] = ()) -> None:
    """Make the face detector where the app uses it and it is neither in the library nor among the names `there`.

    Raises what `recipes.build` raises: Retryable where PyPI cannot be reached.
    """
    needed = any(use.reference == DETECTOR and not use.cloud for use in model_uses(app))
    if not needed or DETECTOR in there or library.versions(DETECTOR):
        return
    print(f"building {DETECTOR}, the face detector of `redact: faces` (once) …", file=sys.stderr)
    try:
        recipes.build(DETECTOR)
    except MarramError as error:
        error.what = f'model "{DETECTOR}", which covers faces, cannot be built: {error}'
        error.where, error.hint = None, f"`marram model build {DETECTOR}` tries again."
        raise
