"""Blobs by their sha256, models made of them, deployments of apps."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from marram.cloud.api.guard import Cloud, needs
from marram.cloud.api.selector import Selector, labels_of
from marram.schema.api import DeployAsk, Deployment, ModelAsk, ModelView, Sha256
from marram.schema.errors import Invalid, Missing, Retryable
from marram.schema.ids import Name
from marram.schema.people import Permission

router = APIRouter()

# Gathered before a write, so that a slow link does not cost a thread switch for each of its packets.
_WRITE_BYTES = 1 << 20
Version = Annotated[int, PathParameter(ge=1, le=2**31 - 1)]


@router.head("/blobs/{sha256}", tags=["content"], responses={404: {"description": "Not here"}})
@needs(Permission.READ, Permission.DEPLOY, Permission.MODELS)
def has_blob(sha256: Sha256, cloud: Cloud) -> Response:
    """Whether this content is here; Content-Length says how large it is."""
    size_bytes = cloud.blob_bytes(sha256)
    if size_bytes is None:
        raise Missing(f"no blob {sha256[:12]}…")
    return Response(headers={"Content-Length": str(size_bytes)}, media_type="application/octet-stream")


@router.get("/blobs/{sha256}", tags=["content"])
@needs(Permission.READ)
def read_blob(sha256: Sha256, cloud: Cloud) -> StreamingResponse:
    """The content itself."""
    size_bytes = cloud.blob_bytes(sha256)
    if size_bytes is None:
        raise Missing(f"no blob {sha256[:12]}…")
    headers = {"Content-Length": str(size_bytes), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(cloud.read_blob(sha256), headers=headers, media_type="application/octet-stream")


@router.put(
    "/blobs/{sha256}",
    status_code=201,
    tags=["content"],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@needs(Permission.DEPLOY, Permission.MODELS)
async def put_blob(sha256: Sha256, request: Request, cloud: Cloud) -> None:
    """Bring content. It is checked against its name before anybody can see it; sending it twice is fine."""
    try:
        with tempfile.NamedTemporaryFile(dir=cloud.scratch, prefix="upload-", delete=False) as file:
            place = Path(file.name)
            found = await _receive(request, file)
    except OSError as error:
        raise Retryable(f"cannot keep the upload: {error.strerror}", hint="Is the cloud's disk full?") from error
    try:
        if found != sha256:
            raise Invalid(f"the content is not what its name says: its sha256 is {found}", where=sha256)
        await run_in_threadpool(cloud.add_blob, sha256, place)
    finally:
        place.unlink(missing_ok=True)


async def _receive(request: Request, file: tempfile._TemporaryFileWrapper[bytes]) -> str:
    """Write the body to `file`; returns its sha256. Leaves no file where the sender goes away or sends too much."""
    digest, gathered = hashlib.sha256(), bytearray()
    try:
        async for piece in request.stream():
            digest.update(piece)
            gathered += piece
            if len(gathered) >= _WRITE_BYTES:
                await run_in_threadpool(file.write, bytes(gathered))
                gathered.clear()
        file.write(gathered)
    except BaseException as error:
        Path(file.name).unlink(missing_ok=True)
        if isinstance(error, ClientDisconnect):
            raise Invalid("the sender went away before the end") from error
        raise
    return digest.hexdigest()


@router.post("/models", status_code=201, tags=["models"])
@needs(Permission.MODELS)
def add_model(ask: ModelAsk, cloud: Cloud) -> ModelView:
    """Register a model version made of uploaded blobs. The same content again gives the version it has."""
    return cloud.add_model(ask)


@router.get("/models", tags=["models"])
@needs(Permission.READ)
def models(cloud: Cloud) -> list[ModelView]:
    """Every model version, by name, newest first."""
    return cloud.models()


@router.get("/models/{name}", tags=["models"])
@needs(Permission.READ)
def model(name: Name, cloud: Cloud) -> ModelView:
    """The newest version of one model."""
    return cloud.model(name, None)


@router.get("/models/{name}/{version}", tags=["models"])
@needs(Permission.READ)
def model_version(name: Name, version: Version, cloud: Cloud) -> ModelView:
    """One model version."""
    return cloud.model(name, version)


@router.post("/deployments", status_code=201, tags=["deployments"])
@needs(Permission.DEPLOY)
def deploy(ask: DeployAsk, cloud: Cloud) -> Deployment:
    """Put an app on every device that matches the selector, those that join later included."""
    return cloud.deploy(ask)


@router.get("/deployments", tags=["deployments"])
@needs(Permission.READ)
def deployments(cloud: Cloud) -> list[Deployment]:
    """Every deployed app, and where it stands on each of its devices."""
    return cloud.deployments()


@router.get("/deployments/{app}", tags=["deployments"])
@needs(Permission.READ)
def deployment(app: Name, cloud: Cloud) -> Deployment:
    """One deployed app."""
    return cloud.deployment(app)


@router.delete("/deployments/{app}", status_code=204, tags=["deployments"])
@needs(Permission.DEPLOY)
def undeploy(app: Name, cloud: Cloud, selector: Selector = "all") -> None:
    """Take an app off every device, or off those whose labels match."""
    cloud.undeploy(app, labels_of(selector))
