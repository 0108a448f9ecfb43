"""A served API for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.cloud.api.serving import Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "cloud") as cloud:
        yield cloud


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    """A plain client with the right token, for what `CloudApi` would never send."""
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx.Client(base_url=served.url, headers=headers, trust_env=False, timeout=20) as client:
        yield client
