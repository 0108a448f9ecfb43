"""What a bundle is known by: the digest of the list of its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from marram.schema.errors import Invalid
from marram.schema.model import Manifest


def bundle_digest(manifest: Manifest) -> str:
    """Hex SHA-256 over the files' paths, digests and sizes, in path order: JSON without spaces."""
    rows = [[file.path, file.sha256, file.size_bytes] for file in sorted(manifest.files, key=lambda file: file.path)]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def manifest_of(folder: Path, names: list[str]) -> Manifest:
    """The manifest of the files `names` (relative) in `folder`. Raises Invalid where one cannot be read, Untrusted."""
    files = []
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        except OSError as error:
            raise Invalid(f"cannot be read: {error.strerror}", where=str(folder / name)) from error
        files.append((name, sha256, size))
    return Manifest.of(files)
