"""Rows of the store as the API shows them."""

from __future__ import annotations

from collections.abc import Iterable

from marram.schema.api import Counts, DeviceApp, EventView, ModelView, SampleView, StreamCount
from marram.schema.device import Device, DeviceInfo
from marram.store import Counts as StoreCounts
from marram.store import ModelRow, Sample, StoredEvent

# The distributions of the extra `serve`, as a device reports them.
_SERVE = ("grpcio", "protobuf", "starlette", "uvicorn")


def event_view(event: StoredEvent) -> EventView:
    return EventView(
        id=event.id,
        device=event.device,
        app=event.app,
        kind=event.kind,
        time_s=event.time_s,
        received_s=event.received_s,
        stream=event.stream,
        sequence=event.sequence,
        data=event.data,
        media=event.media,
        body_bytes=event.size_bytes,
    )


def sample_view(sample: Sample) -> SampleView:
    return SampleView(
        id=sample.id,
        device=sample.device,
        app=sample.app,
        time_s=sample.time_s,
        reason=sample.reason,
        data=sample.data,
        media=sample.media,
        body_bytes=sample.size_bytes,
        label=sample.label,
    )


def counts_view(counts: StoreCounts) -> Counts:
    return Counts(
        stored=counts.stored,
        distinct=counts.distinct,
        duplicates_seen=counts.duplicates,
        by_kind=counts.by_kind,
        streams=[
            StreamCount(
                device=stream.device,
                stream=stream.stream,
                stored=stream.stored,
                first_sequence=stream.first_sequence,
                last_sequence=stream.last_sequence,
            )
            for stream in counts.streams
        ],
    )


def model_view(row: ModelRow, channels: Iterable[str] = ()) -> ModelView:
    return ModelView(
        name=row.name,
        version=row.version,
        card=row.card,
        manifest=row.manifest,
        digest=row.digest,
        created_s=row.created_s,
        channels=sorted(channels),
        unchecked=list(row.lineage.get("unchecked", [])),
    )


def device_app(device: Device, app: str, wanted: int) -> DeviceApp:
    """Where `app` stands on `device`, which should run its version `wanted`."""
    said = next((a for a in device.reported.apps if a.name == app), None) if device.reported else None
    if said is None:
        return DeviceApp(device=device.id, wanted=wanted, seen_s=device.seen_s)
    return DeviceApp(
        device=device.id,
        wanted=wanted,
        version=said.version,
        state=said.state,
        reason=said.reason,
        seen_s=device.seen_s,
    )


def lacking_serve(devices: list[DeviceInfo]) -> list[str]:
    """A note where devices lack what `serve:` needs. Those that have not said what they have are passed over."""
    known = [device.packages for device in devices if device.packages]
    lacking = [absent for packages in known if (absent := [name for name in _SERVE if name not in packages])]
    if not lacking:
        return []
    names = ", ".join(sorted({name for absent in lacking for name in absent}))
    count = f"{len(lacking)} of {len(devices)} device{'s' if len(devices) != 1 else ''}"
    return [f"serve: {count} cannot run it for want of {names}. There: pip install 'marram[serve]', then deploy again."]
