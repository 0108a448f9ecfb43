"""`CloudApi`: the cloud's HTTP API as Python calls, for the commands, the lab and `marram edge join`.

How a call travels, and what comes back of a cloud that is away, foreign or says no, is `http_wire`'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from marram.bus.http_people import PeopleCalls
from marram.bus.http_wire import params, segment, valid
from marram.schema.api import (
    BenchAsk,
    ChannelAsk,
    ChannelView,
    Counts,
    DeployAsk,
    Deployment,
    EventView,
    FrameView,
    Health,
    JoinAsk,
    Joined,
    LabelAsk,
    Lineage,
    ModelAsk,
    ModelView,
    Origin,
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
from marram.schema.device import Device, DeviceInfo
from marram.schema.errors import Missing, Permanent, Retryable
from marram.schema.event import EventKind
from marram.schema.model import Manifest, ModelCard
from marram.schema.rollout_view import RolloutView
from marram.schema.why import Why

_CHUNK_BYTES = 1 << 18
# A model is opened and asked once before it is taken in.
_CHECKED_S = 600.0
Progress = Callable[[int, int], None]


class CloudApi(PeopleCalls):
    """The calls of the API, and (`PeopleCalls`) those about people; how they travel and what they raise: `Wire`."""

    # ------------------------------------------------------------ joining

    def join(
        self, token: str, csr: str, *, name: str | None = None, labels: dict[str, str] | None = None, info: DeviceInfo
    ) -> Joined:
        """Become a device, with a certificate for the key that `csr` (PEM) asks for; over https only.

        Raises Refused (token wrong or expired), Untrusted (used up, of another cloud …), Conflict (the name is taken).
        """
        ask = valid(JoinAsk, token=token, csr=csr, name=name, labels=labels or {}, info=info)
        return self._post("/join", ask, Joined)

    def renew(self, ask: RenewAsk) -> Renewed:
        """A new certificate for a device whose old one may be over; over https only. Raises Untrusted."""
        return self._post("/renew", ask, Renewed)

    def standing(self, ask: StandingAsk) -> None:
        """Whether the cloud would let the device that asks onto its broker. Raises Untrusted with the reason."""
        self._call("POST", "/standing", ask)

    def create_token(self, labels: dict[str, str] | None = None, *, uses: int = 1, ttl_s: float = 3600.0) -> TokenMade:
        """A token that lets `uses` devices join within `ttl_s` seconds."""
        return self._post("/tokens", valid(TokenAsk, labels=labels or {}, uses=uses, ttl_s=ttl_s), TokenMade)

    def tokens(self) -> list[TokenView]:
        """Join tokens that can still be used."""
        return self._list("/tokens", TokenView)

    def revoke_token(self, id: str) -> None:
        """Nobody joins with it any more."""
        self._call("DELETE", f"/tokens/{segment(id)}")

    # ------------------------------------------------------------ secrets

    def set_secret(self, name: str, value: str, selector: dict[str, str] | None = None) -> SecretView:
        """Set a secret for devices whose labels match."""
        ask = valid(SecretAsk, value=value, selector=selector or {})
        return self._one(SecretView, self._call("PUT", f"/secrets/{segment(name)}", ask))

    def secrets(self) -> list[SecretView]:
        """Which secrets there are; not what they are."""
        return self._list("/secrets", SecretView)

    def remove_secret(self, name: str) -> None:
        """Raises Missing."""
        self._call("DELETE", f"/secrets/{segment(name)}")

    # ------------------------------------------------------------ devices

    def devices(self, selector: str = "all") -> list[Device]:
        """Devices whose labels match `selector` (`site=shanghai,line=3` or `all`), by name."""
        return self._list("/devices", Device, selector=selector)

    def device(self, id: str) -> Device:
        """One device: desired, reported, stats. Raises Missing."""
        return self._one(Device, self._call("GET", f"/devices/{segment(id)}"))

    def remove_device(self, id: str) -> None:
        """Revoke it: its broker user goes, its live connection is cut. What it delivered stays. Raises Missing."""
        self._call("DELETE", f"/devices/{segment(id)}")

    # ------------------------------------------------------------ blobs, models

    def has_blob(self, sha256: str) -> bool:
        """Whether the cloud holds this content."""
        try:
            self._call("HEAD", f"/blobs/{segment(sha256)}")
        except Missing:
            return False
        return True

    def put_blob(self, content: Path | bytes, progress: Progress | None = None) -> str:
        """Upload a file or bytes, unless it is there already; returns its sha256 (hex).

        `progress(sent_bytes, total_bytes)` is called as it goes. Raises Missing where the file is not there.
        """
        sha256, size_bytes = _digest(content)
        if self.has_blob(sha256):
            if progress:
                progress(size_bytes, size_bytes)
            return sha256
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        self._call("PUT", f"/blobs/{sha256}", content=_chunks(content, size_bytes, progress), headers=headers)
        return sha256

    def put_folder(self, folder: Path, paths: Iterable[str], progress: Progress | None = None) -> Manifest:
        """Upload the files `paths` of `folder`; returns their manifest."""
        files: list[tuple[str, str, int]] = []
        names = sorted(set(paths))
        total = sum(_size(folder / name) for name in names)
        sent = 0

        def advance(done: int, _: int) -> None:
            if progress:
                progress(sent + done, total)

        for name in names:
            size = _size(folder / name)
            files.append((name, self.put_blob(folder / name, advance), size))
            sent += size
        return Manifest.of(files)

    def push_model(
        self,
        card: ModelCard,
        folder: Path,
        paths: Iterable[str],
        *,
        version: int | None = None,
        progress: Progress | None = None,
        origin: Origin | None = None,
    ) -> ModelView:
        """Upload and register a bundle: the files `paths` of `folder`, `model.yaml` among them.

        Registering the same content again is fine and gives the version it has. `version` None: the next free one.
        The cloud opens it first, which takes a while. Raises Conflict where `version` exists with other content,
        Untrusted or Invalid where the cloud does not take it.
        """
        manifest = self.put_folder(folder, paths, progress)
        ask = ModelAsk(card=card, manifest=manifest, version=version, origin=origin)
        return self._post("/models", ask, ModelView, timeout=_CHECKED_S)

    def pull_model(self, model: ModelView, folder: Path) -> None:
        """Write the files of a registered version into `folder`, each checked against its digest before it is kept.

        Raises Missing, Permanent where the disk refuses, Retryable where the content that came is not what was asked.
        """
        for file in model.manifest.files:
            content = self._call("GET", f"/blobs/{file.sha256}").content
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise Retryable(f"{self.where} sent other content than asked", where=file.path)
            target = folder / file.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:
                raise Permanent(f"cannot write there: {error.strerror}", where=str(target)) from error

    def models(self) -> list[ModelView]:
        """Every registered model version, by name, newest first."""
        return self._list("/models", ModelView)

    def model(self, name: str, version: int | None = None) -> ModelView:
        """One model version, the newest where `version` is None. Raises Missing."""
        path = f"/models/{segment(name)}" + (f"/{version}" if version is not None else "")
        return self._one(ModelView, self._call("GET", path))

    def lineage(self, name: str, version: int) -> Lineage:
        """Where a model version comes from, what came of it, who uses it. Raises Missing."""
        return self._one(Lineage, self._call("GET", f"/models/{segment(name)}/{version}/lineage"))

    def bench(self, device: str, model: str | None = None) -> None:
        """Have a device measure variants: what it found comes with its reports. Raises Missing, NotReady (offline)."""
        self._call("POST", f"/devices/{segment(device)}/bench", valid(BenchAsk, model=model))

    def tag(self, name: str, channel: str, version: int) -> ChannelView:
        """Have a channel point to a version. Raises Missing, Invalid (no name for a channel)."""
        ask = valid(ChannelAsk, version=version)
        return self._one(ChannelView, self._call("PUT", _channel(name, channel), ask))

    def untag(self, name: str, channel: str) -> None:
        """Take a channel away. Raises Missing."""
        self._call("DELETE", _channel(name, channel))

    # ------------------------------------------------------------ deployments

    def deploy(
        self,
        app_yaml: str,
        files: Manifest | None = None,
        selector: dict[str, str] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> Deployment:
        """Bring an app to devices. Its files and models are in the cloud already (`put_folder`, `push_model`).

        `plan`: fields of `schema.rollout.Plan`; those that are not there are as the cloud usually has them.
        Raises Invalid (app or plan wrong, files missing), Missing (no such model).
        """
        ask = valid(DeployAsk, app_yaml=app_yaml, files=files or Manifest(files=[]), selector=selector or {}, plan=plan)
        # What was not said of the plan stays unsaid: the cloud then has its own way.
        return self._post("/deployments", ask, Deployment, sparse=True)

    def deployments(self) -> list[Deployment]:
        """Every deployed app and where it stands on each of its devices."""
        return self._list("/deployments", Deployment)

    def deployment(self, app: str) -> Deployment:
        """One deployed app. Raises Missing."""
        return self._one(Deployment, self._call("GET", f"/deployments/{segment(app)}"))

    def undeploy(self, app: str, selector: str = "all") -> None:
        """Take the app off every device, or those that match `selector`. Raises Missing."""
        self._call("DELETE", f"/deployments/{segment(app)}", params={"selector": selector})

    # ------------------------------------------------------------ rollouts

    def rollouts(self, *, app: str | None = None, limit: int = 50) -> list[RolloutView]:
        """The newest rollouts, newest first, without their devices."""
        return self._list("/rollouts", RolloutView, app=app, limit=limit)

    def rollout(self, id: int) -> RolloutView:
        """One rollout and how its devices stand. Raises Missing."""
        return self._one(RolloutView, self._call("GET", f"/rollouts/{id}"))

    def steer(self, id: int, act: Literal["pause", "resume", "promote", "abort"]) -> RolloutView:
        """Say how a rollout goes on. Raises Missing; Conflict where it is not in a state for that."""
        return self._one(RolloutView, self._call("POST", f"/rollouts/{id}/{act}"))

    def retry(self, id: int, device: str) -> RolloutView:
        """Let one device try again what it gave up. Raises Missing, Conflict."""
        return self._one(RolloutView, self._call("POST", f"/rollouts/{id}/retry/{segment(device)}"))

    def why(self, device: str) -> Why:
        """Why a device runs what it runs. Raises Missing."""
        return self._one(Why, self._call("GET", f"/devices/{segment(device)}/why"))

    # ------------------------------------------------------------ events, samples

    def events(
        self,
        *,
        app: str | None = None,
        device: str | None = None,
        kinds: Iterable[EventKind | str] = (),
        after: int | None = None,
        limit: int = 100,
        since_s: float | None = None,
    ) -> list[EventView]:
        """Stored events in the order of storing: the first `limit` after id `after`; without `after`, the last `limit`.

        `since_s`: only events the cloud received at that Unix time or later.
        """
        kind = [EventKind(k).value for k in kinds]
        query = {"app": app, "device": device, "kind": kind, "after": after, "limit": limit, "since": since_s}
        return self._list("/events", EventView, **query)

    def of_frame(
        self,
        frame: int,
        *,
        app: str | None = None,
        device: str | None = None,
        before: int | None = None,
        limit: int = 1,
    ) -> FrameView:
        """The last `limit` results of the frame with this number, of the 50,000 newest results below id `before`."""
        query = params(app=app, device=device, before=before, limit=limit)
        return self._one(FrameView, self._call("GET", f"/events/frames/{frame}", params=query))

    def counts(self, *, device: str | None = None) -> Counts:
        """How many events are stored, by stream and kind: the proof of exactly once."""
        return self._one(Counts, self._call("GET", "/events/counts", params=params(device=device)))

    def samples(
        self,
        *,
        app: str | None = None,
        device: str | None = None,
        labelled: bool | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> list[SampleView]:
        """Kept samples in the order of storing, after id `after` (from the first where None)."""
        query = {"app": app, "device": device, "labelled": labelled, "after": after, "limit": limit}
        return self._list("/samples", SampleView, **query)

    def sample_body(self, id: int) -> bytes:
        """The sample's picture or tensor as the device sent it. Raises Missing."""
        return self._call("GET", f"/samples/{id}/body").content

    def label_sample(self, id: int, label: str | None) -> SampleView:
        """Say what a sample shows (None takes it back). Raises Missing."""
        return self._post(f"/samples/{id}/label", valid(LabelAsk, label=label), SampleView)

    # ------------------------------------------------------------ the whole

    def status(self) -> Status:
        """The cloud at a glance."""
        return self._one(Status, self._call("GET", "/status"))

    def health(self) -> Health:
        """Whether database, broker and ingest work, each tried for real; needs no token."""
        return self._one(Health, self._send("GET", "/healthz", ok=(200, 503)))


def _channel(name: str, channel: str) -> str:
    return f"/models/{segment(name)}/channels/{segment(channel)}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}") from error


def _digest(content: Path | bytes) -> tuple[str, int]:
    """sha256 (hex) and size of a file or bytes."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), len(content)
    try:
        with content.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256, file.tell()
    except OSError as error:
        raise Missing(f"cannot read {content}: {error.strerror}") from error


def _chunks(content: Path | bytes, total: int, progress: Progress | None) -> Iterator[bytes]:
    """The content piece by piece: a model of a gigabyte is never in memory whole."""
    sent = 0
    if isinstance(content, bytes):
        pieces: Iterable[bytes] = (content[i : i + _CHUNK_BYTES] for i in range(0, len(content), _CHUNK_BYTES))
    else:
        pieces = _file_pieces(content)
    for piece in pieces:
        sent += len(piece)
        yield piece
        if progress:
            progress(min(sent, total), total)


def _file_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
