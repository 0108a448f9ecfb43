"""What the cloud's HTTP API takes and gives, `/api/v1`: one set of types for server, client and OpenAPI document.

Unlike the files people write, replies ignore fields they do not know, so a newer cloud can talk to an older client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from marram.schema.device import AppState, DeviceInfo
from marram.schema.event import EventKind
from marram.schema.ids import Name
from marram.schema.model import Manifest, ModelCard, Strict
from marram.schema.rollout import Plan

PREFIX = "/api/v1"
# The most one blob may weigh: the largest model anybody should put on a device.
MAX_BLOB_BYTES = 2_000_000_000
# The most any other request may weigh.
MAX_REQUEST_BYTES = 4_000_000
# The longest life of a token, for a device to join with or for a program.
LONGEST_S = 366 * 86400.0

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# No control characters: nothing that a database refuses (NUL) or a terminal obeys.
Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Labels = Annotated[dict[Label, Label], Field(max_length=64)]


class Reply(BaseModel):
    """A reply: frozen; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True)


class Fault(Reply):
    """What is wrong; `kind` is that of `schema/errors`: what the caller should do."""

    kind: Literal[
        "invalid", "missing", "refused", "conflict", "retryable", "not_ready", "busy", "permanent", "untrusted"
    ]
    what: str
    where: str | None = None
    hint: str | None = None


class ErrorReply(Reply):
    """The one shape of every reply that is not a success."""

    error: Fault


# ---------------------------------------------------------------- joining


# Certificates, signing requests, keys: PEM text. The largest of ours has a tenth of that.
Pem = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


class JoinAsk(Strict):
    """A machine asks to become a device. `csr`: a signing request (PEM) for the key it made and keeps."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    csr: Pem
    name: Name | None = None
    labels: Labels = {}
    info: DeviceInfo = DeviceInfo()


class Joined(Reply):
    """The device's identity: a certificate for its key, and what it trusts from now on."""

    device: Name
    # PEM: the device's certificate, and the authority of this cloud.
    certificate: Pem
    ca: Pem
    # The first update metadata it trusts (TUF root.json).
    root: str = ""
    # nats://host:port, tried in order.
    brokers: list[str]
    labels: dict[str, str] = {}


class RenewAsk(Strict):
    """A device asks for a certificate of a new key: `proof`, by the key of `certificate`, signs `csr`."""

    certificate: Pem
    csr: Pem
    proof: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Renewed(Reply):
    """The certificate (PEM) for the key that was asked for."""

    certificate: Pem


class StandingAsk(Strict):
    """A device that the broker refuses asks why: `proof`, by the key of `certificate`, that it is this device."""

    certificate: Pem
    proof: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class TokenAsk(Strict):
    """Make a join token. Devices that join with it get `labels`; their own come on top."""

    labels: Labels = {}
    uses: int = Field(default=1, ge=1, le=1_000_000)
    ttl_s: float = Field(default=3600, gt=0, le=LONGEST_S)


class TokenView(Reply):
    """A join token, without the token itself."""

    id: str
    labels: dict[str, str]
    uses: int
    uses_left: int
    created_s: float
    expires_s: float


class TokenMade(TokenView):
    """A fresh token: the only time it is told."""

    token: str
    # The command to type on the device.
    join: str = ""


# ---------------------------------------------------------------- secrets

MAX_SECRET_BYTES = 16_384


class SecretAsk(Strict):
    """Set a secret for devices whose labels match `selector` ({}: all)."""

    value: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SECRET_BYTES)] = Field(repr=False)
    selector: Labels = {}


class SecretView(Reply):
    """A secret, without what it is."""

    name: str
    selector: dict[str, str] = {}
    version: int = 0
    changed_s: float = 0


# ---------------------------------------------------------------- models, deployments


class SliceScore(Strict):
    """One slice of held-out examples, and the share (0–1) that the version before and this one name rightly."""

    slice: Annotated[str, StringConstraints(max_length=200)]
    examples: int = Field(ge=0)
    old: float | None = Field(default=None, ge=0, le=1)
    new: float = Field(ge=0, le=1)


class Origin(Strict):
    """Where a model version comes from, as whoever made it says."""

    # The version (of the same model) that it was judged beside, and would replace.
    parent: int | None = Field(default=None, ge=1)
    # The recipe's text, and what it found: examples to train on and held out, by source.
    recipe: Annotated[str, StringConstraints(max_length=20_000)] = ""
    trained_on: int = Field(default=0, ge=0)
    held_out: int = Field(default=0, ge=0)
    samples: Annotated[dict[str, int], Field(max_length=200)] = {}
    accuracy: Annotated[list[SliceScore], Field(max_length=200)] = []


class ModelAsk(Strict):
    """Register a model version whose files are uploaded already. `version` None: the next free one."""

    card: ModelCard
    manifest: Manifest
    version: int | None = Field(default=None, ge=1)
    origin: Origin | None = None


class BenchAsk(Strict):
    """Which model's variants to measure on a device; None: of all that it runs."""

    model: Name | None = None


class ChannelAsk(Strict):
    """Which version a channel shall point to."""

    version: int = Field(ge=1, le=2**31 - 1)


class ChannelView(Reply):
    """A channel of a model. `before`: what it pointed to until this call, None where it is new."""

    model: Name
    channel: str
    version: int
    before: int | None = None


class ModelView(Reply):
    """A registered model version."""

    name: Name
    version: int
    card: ModelCard
    manifest: Manifest
    digest: str = ""
    created_s: float = 0
    # Those that point to this version now.
    channels: list[str] = []
    # What could not be checked when it was added, and why.
    unchecked: list[str] = []


class ModelStep(Reply):
    """One version in a lineage: when it was made, by whom, how well it did where that was measured."""

    version: int
    created_s: float = 0
    by: str = ""
    accuracy: list[SliceScore] = []


class ModelUser(Reply):
    """An app version that uses a model version, and how many devices should run it now."""

    app: Name
    version: int
    devices: int = 0


class Lineage(Reply):
    """Where a model version comes from (`ancestors`: parent first), what came of it, and who uses it."""

    name: Name
    version: int
    digest: str
    created_s: float
    by: str = ""
    origin: Origin | None = None
    ancestors: list[ModelStep] = []
    children: list[int] = []
    channels: list[str] = []
    apps: list[ModelUser] = []
    unchecked: list[str] = []


class DeployAsk(Strict):
    """Bring an app to every device whose labels match `selector` ({}: all), those that join later included.

    `plan`: what it says counts over what is usual: by stages, or at once where no device has another version.
    """

    app_yaml: Annotated[str, StringConstraints(max_length=1_000_000)]
    files: Manifest = Manifest(files=[])
    selector: Labels = {}
    plan: Plan | None = None


class DeviceApp(Reply):
    """Where a deployed app stands on one device: the version it should run (`wanted`), and what it says of it."""

    device: Name
    wanted: int
    # None: it has not spoken of this app yet, and `state` is pending.
    version: int | None = None
    state: AppState = AppState.PENDING
    reason: str = ""
    # When the cloud last heard of the device; None: never.
    seen_s: float | None = None


class Deployment(Reply):
    """A deployed app: a version of it, whom it is for, and where it stands on each of those it has reached.

    `rollout`: how it goes there; `new`: False where the very same was deployed before. `notes`: what is likely to go
    wrong on some of them, in words, said once as it is deployed.
    """

    app: Name
    version: int
    selector: dict[str, str] = {}
    created_s: float = 0
    devices: list[DeviceApp] = []
    rollout: int | None = None
    new: bool = True
    notes: list[str] = []


# ---------------------------------------------------------------- events, samples


class EventView(Reply):
    """A stored event. `id` rises in the order of storing: `after=<id>` continues from there."""

    id: int
    device: str
    app: str
    kind: EventKind
    time_s: float
    received_s: float = 0
    stream: str = ""
    sequence: int = 0
    data: dict[str, Any] = {}
    media: str | None = None
    body_bytes: int = 0


class FrameView(Reply):
    """Results of one frame, oldest first. `before`: older ones, if any, are below this id; None: all were looked
    through."""

    results: list[EventView]
    before: int | None = None


class StreamCount(Reply):
    """What one outbox delivered: `stored` rows, their lowest and highest sequence number."""

    device: str
    stream: str
    stored: int
    first_sequence: int
    last_sequence: int


class Counts(Reply):
    """The bookkeeping behind "exactly once".

    `stored`: rows; `distinct`: different (device, stream, sequence) among them, so `stored - distinct` were stored
    twice; `duplicates_seen`: redelivered records that ingest recognised and did not store again.
    """

    stored: int
    distinct: int
    duplicates_seen: int = 0
    by_kind: dict[str, int] = {}
    streams: list[StreamCount] = []


class SampleView(Reply):
    """A kept input: the picture or tensor is at `/samples/<id>/body`."""

    id: int
    device: str
    app: str
    time_s: float
    reason: str = ""
    data: dict[str, Any] = {}
    media: str | None = None
    body_bytes: int = 0
    label: str | None = None


class LabelAsk(Strict):
    """What a person says a sample shows; None takes a label back."""

    label: Label | None


# ---------------------------------------------------------------- the whole


class Check(Reply):
    """One real check of a part the cloud stands on."""

    name: str
    ok: bool
    detail: str = ""


class Health(Reply):
    """`/healthz`: ok only where every check is."""

    ok: bool
    checks: list[Check]


class Status(Reply):
    """The cloud at a glance. `warnings`: what a person has to do soon, each with its command."""

    version: str
    uptime_s: float
    devices: int
    online: int
    apps: int
    models: int
    events: int
    samples: int
    brokers: list[str] = []
    checks: list[Check] = []
    warnings: list[str] = []
