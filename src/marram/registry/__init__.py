"""Model versions in the cloud: content-addressed bundles, checked before anybody can be given one; their channels.

A version never changes: the same content again is the same version, other content under a taken version is a Conflict.
"""

from __future__ import annotations

from marram.registry.digest import bundle_digest, manifest_of
from marram.registry.registry import Registry

__all__ = ["Registry", "bundle_digest", "manifest_of"]
