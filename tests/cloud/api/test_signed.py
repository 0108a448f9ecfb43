from __future__ import annotations

import httpx
import pytest
from tests.cloud.api.serving import Served


def test_what_is_signed_is_open_to_everybody(served: Served) -> None:
    found = httpx.get(f"{served.url}/api/v1/metadata/timestamp.json")
    assert found.status_code == 200 and found.json()["signed"]["_type"] == "timestamp"
    assert found.headers["cache-control"] == "no-cache"
    root = httpx.get(f"{served.url}/api/v1/metadata/1.root.json")
    assert root.content == served.state.signing.root() and "immutable" in root.headers["cache-control"]


@pytest.mark.parametrize(
    ("name", "status"),
    [("2.root.json", 404), ("root.json", 404), ("x.json", 400), ("..%2fmarram.db", 404), ("1.root.json%00", 400)],
)
def test_and_nothing_else_is(served: Served, name: str, status: int) -> None:
    assert httpx.get(f"{served.url}/api/v1/metadata/{name}").status_code == status
