"""What devices delivered: events and their bookkeeping, samples and their labels."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from marram.cloud.api.contract import EventQuery, FrameQuery, SampleQuery
from marram.cloud.api.guard import Cloud, needs
from marram.schema.api import Counts, EventView, FrameView, LabelAsk, SampleView
from marram.schema.event import EventKind
from marram.schema.ids import Name
from marram.schema.people import Permission

router = APIRouter()

_LARGEST = 2**63 - 1
After = Annotated[int | None, Query(ge=0, le=_LARGEST)]
Limit = Annotated[int, Query(ge=1, le=10_000)]
Id = Annotated[int, Path(ge=0, le=_LARGEST)]


@router.get("/events", tags=["events"])
@needs(Permission.READ)
def events(
    cloud: Cloud,
    app: Name | None = None,
    device: Name | None = None,
    kind: Annotated[list[EventKind] | None, Query()] = None,
    after: After = None,
    limit: Limit = 100,
    since: Annotated[
        float | None, Query(ge=0, le=1e12, description="received at this Unix time or later, by the cloud's clock")
    ] = None,
) -> list[EventView]:
    """Stored events in the order of storing: the first `limit` after id `after`; without it, the last `limit`."""
    return cloud.events(EventQuery(app, device, tuple(kind or ()), after, limit, since))


@router.get("/events/frames/{frame}", tags=["events"])
@needs(Permission.READ)
def of_frame(
    frame: Id, cloud: Cloud, app: Name | None = None, device: Name | None = None, before: After = None, limit: Limit = 1
) -> FrameView:
    """The last `limit` results of the frame with this number. One call looks through 50,000 results at most, newest
    first; with `before` (as the reply says it) the next ones."""
    return cloud.of_frame(frame, FrameQuery(app, device, before, limit))


@router.get("/events/counts", tags=["events"])
@needs(Permission.READ)
def counts(cloud: Cloud, device: Name | None = None) -> Counts:
    """The bookkeeping behind "exactly once", by outbox."""
    return cloud.counts(device)


@router.get("/samples", tags=["samples"])
@needs(Permission.READ)
def samples(
    cloud: Cloud,
    app: Name | None = None,
    device: Name | None = None,
    labelled: bool | None = None,
    after: After = None,
    limit: Limit = 100,
) -> list[SampleView]:
    """Kept samples, in the order of storing."""
    return cloud.samples(SampleQuery(app, device, labelled, after or 0, limit))


@router.get("/samples/{id}/body", tags=["samples"])
@needs(Permission.READ)
def sample_body(id: Id, cloud: Cloud) -> Response:
    """The picture or tensor as the device sent it: never rendered as a page, whatever the device called it."""
    body, media = cloud.sample_body(id)
    safe = media if media in ("image/jpeg", "image/png") else "application/octet-stream"
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
    return Response(body, media_type=safe, headers=headers)


@router.post("/samples/{id}/label", tags=["samples"])
@needs(Permission.LABEL)
def label(id: Id, ask: LabelAsk, cloud: Cloud) -> SampleView:
    """Say what a sample shows; null takes a label back."""
    return cloud.label_sample(id, ask.label)
