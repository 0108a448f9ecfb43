"""Signed update metadata as it is named, kept and served: one document for each version of each role.

The roles are TUF's (theupdateframework.io, specification 1.0): `root` says whose keys count, `targets` delegates to the
project's role, `snapshot` and `timestamp` say which versions belong together and are the newest.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from marram.schema.errors import Invalid

# Namespaces in signed names and in blobs belong to a project; there is one for now.
PROJECT = "main"
ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
# Its keys sign while the cloud runs; `targets` says which paths are its to sign.
ONLINE = (PROJECT, SNAPSHOT, TIMESTAMP)
OFFLINE = (ROOT, TARGETS)
ROLES = (*OFFLINE, *ONLINE)

# When a document was signed, in whole seconds since 1970: a device's clock cannot be earlier than that.
ISSUED = "x-marram-issued"

# The one document that is asked for without a version: it is how everybody finds the others.
_NAME = re.compile(r"(?:(?P<version>[1-9][0-9]{0,9})\.)?(?P<role>[a-z0-9][a-z0-9_-]{0,62})\.json")


class SignedDocument(NamedTuple):
    """One version of one role. `expires_s`: seconds since 1970, as its content says."""

    role: str
    version: int
    content: bytes
    expires_s: float


def metadata_name(role: str, version: int | None) -> str:
    """`3.root.json`; `timestamp.json` where `version` is None."""
    return f"{role}.json" if version is None else f"{version}.{role}.json"


def parse_metadata_name(name: str) -> tuple[str, int | None]:
    """Role and version (None: the newest) of a metadata file's name. Raises Invalid."""
    found = _NAME.fullmatch(name)
    if found is None or found["role"] not in ROLES:
        raise Invalid(f"{name[:100]!r} is no metadata file", hint="There are timestamp.json, 1.root.json and so on.")
    return found["role"], int(found["version"]) if found["version"] else None
