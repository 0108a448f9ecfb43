"""Signed update metadata, for whoever wants to look: it is public, and believed by nobody before it is verified."""

from __future__ import annotations

from fastapi import APIRouter, Response

from marram.cloud.api.guard import Cloud, needs_nothing
from marram.schema.errors import Missing

router = APIRouter(tags=["signed"])


@router.get("/metadata/{name}", responses={404: {"description": "No such file"}})
@needs_nothing
def metadata(name: str, cloud: Cloud) -> Response:
    """One document as it was signed: `timestamp.json`, `1.root.json`, `7.snapshot.json` and so on. No token."""
    content = cloud.metadata(name)
    if content is None:
        raise Missing(f"nothing is signed under the name {name}")
    # Everything but the timestamp never changes.
    age = "no-cache" if name == "timestamp.json" else "public, max-age=31536000, immutable"
    return Response(content, media_type="application/json", headers={"Cache-Control": age})
