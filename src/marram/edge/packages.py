"""Which Python distributions are installed on this device, told from the names of their folders: nothing is opened.

An agent asks for it once a connection; reading the metadata of two hundred packages would cost it seconds and memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from marram.schema.platform import normal

# More than any device has; the answer travels with a report.
_MOST = 1000


def installed_versions(folders: Iterable[str] | None = None) -> dict[str, str]:
    """Name (as PEP 503 writes it) to version; of one that is there twice, that which Python finds first."""
    found: dict[str, str] = {}
    for folder in sys.path if folders is None else folders:
        try:
            names = sorted(os.listdir(folder or "."))  # noqa: PTH208 - hundreds of names, no Path objects
        except OSError:
            continue
        for name in names:
            stem, dot, kind = name.rpartition(".")
            project, dash, version = stem.partition("-")
            if dot and kind in ("dist-info", "egg-info") and dash and project and len(found) < _MOST:
                found.setdefault(normal(project), version.partition("-py")[0])
    return found
