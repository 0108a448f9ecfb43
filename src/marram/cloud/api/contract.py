"""The seam of the HTTP API: what `create_app(state)` and the console ask of the cloud behind them.

Methods block (the database, a file) and are called in worker threads, many at a time; they raise the errors of
`schema/errors`, which the API turns into replies. The API never reaches around this into a database or the broker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from marram.cloud.access import Access
from marram.cloud.models import ModelDesk
from marram.cloud.people import People
from marram.cloud.steering import Steering
from marram.schema.api import (
    Check,
    Counts,
    DeployAsk,
    Deployment,
    EventView,
    FrameView,
    JoinAsk,
    Joined,
    ModelAsk,
    ModelView,
    RenewAsk,
    Renewed,
    SampleView,
    SecretAsk,
    SecretView,
    StandingAsk,
    Status,
    TokenAsk,
    TokenMade,
    TokenView,
)
from marram.schema.device import Device
from marram.schema.event import EventKind
from marram.store import Audit


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events: None is any. The first `limit` after id `after`; the last `limit` where `after` is None."""

    app: str | None = None
    device: str | None = None
    kinds: tuple[EventKind, ...] = ()
    after: int | None = None
    limit: int = 100
    since_s: float | None = None


@dataclass(frozen=True, slots=True)
class FrameQuery:
    """Which results of a frame: the last `limit` below id `before`; None is any."""

    app: str | None = None
    device: str | None = None
    before: int | None = None
    limit: int = 1


@dataclass(frozen=True, slots=True)
class SampleQuery:
    """Which samples, after id `after` (0: from the first). `labelled`: only those with, or without, a label."""

    app: str | None = None
    device: str | None = None
    labelled: bool | None = None
    after: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Totals:
    """Stored events by kind, and redelivered ones that were recognised and not stored again."""

    by_kind: dict[str, int]
    duplicates_seen: int


class State(Protocol):
    """The cloud as its API sees it."""

    @property
    def access(self) -> Access:
        """Who a caller is, by token. Must be quick: asked for every request."""
        ...

    @property
    def people(self) -> People: ...
    @property
    def audit(self) -> Audit: ...

    @property
    def scratch(self) -> Path:
        """A folder for uploads on their way in; on the file system of the objects where those are files."""
        ...

    # Joining and renewing. `join` raises Refused (token wrong, expired), Untrusted (used up, of another cloud …),
    # Conflict (name taken), Invalid (the signing request); `renew`, `standing` Untrusted, Invalid.
    @property
    def ca(self) -> bytes:
        """The certificate of this cloud's authority, PEM: no secret."""
        ...

    def join(self, ask: JoinAsk) -> Joined: ...
    def renew(self, ask: RenewAsk) -> Renewed: ...
    def standing(self, ask: StandingAsk) -> None: ...
    def create_token(self, ask: TokenAsk) -> TokenMade: ...
    def tokens(self) -> list[TokenView]: ...
    def revoke_token(self, id: str) -> None: ...

    # Secrets; no answer holds a value. `remove_secret`: Missing.
    def set_secret(self, name: str, ask: SecretAsk) -> SecretView: ...
    def secrets(self) -> list[SecretView]: ...
    def remove_secret(self, name: str) -> None: ...

    # Devices. Missing where there is none. `remove_device` also cuts the live connection.
    def devices(self) -> list[Device]: ...
    def device(self, id: str) -> Device: ...
    def remove_device(self, id: str) -> None: ...

    # Content. `add_blob` takes `file` (already verified to be `sha256`) over; it is gone from its place afterwards.
    def blob_bytes(self, sha256: str) -> int | None: ...
    def read_blob(self, sha256: str) -> Iterator[bytes]: ...
    def add_blob(self, sha256: str, file: Path) -> None: ...

    # Models. `add_model`: the same content again gives the version it has; Conflict, Invalid, Untrusted, Missing.
    @property
    def models_desk(self) -> ModelDesk: ...
    def bench(self, device: str, model: str | None) -> None:
        """Have a device measure variants; what it found comes with its reports. Raises Missing, NotReady (offline)."""
        ...

    def add_model(self, ask: ModelAsk) -> ModelView: ...
    def models(self) -> list[ModelView]: ...
    def model(self, name: str, version: int | None) -> ModelView: ...

    def metadata(self, name: str) -> bytes | None:
        """Signed update metadata, as devices get it; None where there is none of that name. Raises Invalid."""
        ...

    # Deployments. `deploy`: Invalid (app, files), Missing (model).
    def deploy(self, ask: DeployAsk) -> Deployment: ...
    def deployments(self) -> list[Deployment]: ...
    def deployment(self, app: str) -> Deployment: ...
    def undeploy(self, app: str, selector: dict[str, str]) -> None: ...

    @property
    def steering(self) -> Steering:
        """Rollouts: how they stand, and a person's say in them."""
        ...

    # What devices delivered.
    def events(self, query: EventQuery) -> list[EventView]: ...
    def of_frame(self, frame: int, query: FrameQuery) -> FrameView:
        """Results of the frame with this number; one look is bounded, the reply says where the next begins."""
        ...

    def counts(self, device: str | None) -> Counts:
        """The proof of exactly once, counted from the rows themselves: reads all of them."""
        ...

    def totals(self) -> Totals:
        """The running counters: cheap enough to ask every few seconds."""
        ...

    def samples(self, query: SampleQuery) -> list[SampleView]: ...
    def sample_body(self, id: int) -> tuple[bytes, str]:
        """The body and its media type. Raises Missing."""
        ...

    def label_sample(self, id: int, label: str | None) -> SampleView: ...

    # The whole.
    def status(self) -> Status: ...
    def checks(self, age_s: float = 0.0) -> list[Check]:
        """Database, objects, broker and ingest, each tried for real at most `age_s` seconds ago, within a second or
        two each; never raises."""
        ...
