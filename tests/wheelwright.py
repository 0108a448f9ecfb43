"""Makes wheels for tests: real ones, and such as nobody should make."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    files: Mapping[str, bytes] | None = None,
    *,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    record: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel with these files (`record`: as its RECORD has them, where that lies)."""
    stem = f"{name}-{version}"
    content = dict(files if files is not None else {f"{name}.py": f"version = {version!r}\n".encode()})
    content[f"{stem}.dist-info/METADATA"] = "\n".join(
        [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {r}" for r in requires),
            "",
        ]
    ).encode()
    content[f"{stem}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    )
    lines = [f"{path},{_hash(body)},{len(body)}" for path, body in {**content, **(record or {})}.items()]
    content[f"{stem}.dist-info/RECORD"] = "\n".join([*lines, f"{stem}.dist-info/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, body in content.items():
            archive.writestr(path, body)
    return place


def _hash(body: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
