"""What a model version comes from and who uses it; the channels that point to versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from marram.cloud.api.guard import Cloud, needs
from marram.schema.api import BenchAsk, ChannelAsk, ChannelView, Lineage
from marram.schema.ids import Channel, Name
from marram.schema.people import Permission

router = APIRouter(tags=["models"])

Version = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/models/{name}/{version}/lineage")
@needs(Permission.READ)
def lineage(name: Name, version: Version, cloud: Cloud) -> Lineage:
    """Where a model version comes from: parent, recipe, samples, measured accuracy; and who uses it."""
    return cloud.models_desk.lineage(name, version)


@router.post("/devices/{id}/bench", status_code=202, tags=["devices"])
@needs(Permission.DEPLOY)
def bench(id: Name, ask: BenchAsk, cloud: Cloud) -> None:
    """Have a device measure the variants of its models. The figures come with its reports: `apps[].chosen`."""
    cloud.bench(id, ask.model)


@router.put("/models/{name}/channels/{channel}")
@needs(Permission.MODELS)
def tag(name: Name, channel: Channel, ask: ChannelAsk, cloud: Cloud) -> ChannelView:
    """Have a channel point to a version. It is looked up when an app is deployed: what is deployed stays as it is."""
    return cloud.models_desk.tag(name, channel, ask.version)


@router.delete("/models/{name}/channels/{channel}", status_code=204)
@needs(Permission.MODELS)
def untag(name: Name, channel: Channel, cloud: Cloud) -> None:
    """Take a channel away."""
    cloud.models_desk.untag(name, channel)
