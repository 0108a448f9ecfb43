"""The cloud as its API, its console and its commands see it: one object over store, registry, rollout and broker.

Methods block and are safe from any thread; `cloud.api.contract.State` says what each promises. What has to reach the
outside (a nudge, the broker's list of devices) goes through `Hands`, which the server fills in: a process that plays
only the API role against somebody else's broker has other hands than one that embeds its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marram import __version__
from marram.cloud.access import Access
from marram.cloud.api.contract import EventQuery, FrameQuery, SampleQuery, Totals
from marram.cloud.enrolment import Enrolment
from marram.cloud.models import ModelDesk
from marram.cloud.people import People
from marram.cloud.safe import Safe, secret_view
from marram.cloud.signing import Signing
from marram.cloud.steering import Steering
from marram.cloud.views import counts_view, device_app, event_view, lacking_serve, sample_view
from marram.cloud.wheels import Wheels
from marram.registry import Registry
from marram.rollout import Rollout
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
from marram.schema.app import parse_app
from marram.schema.device import Device, DeviceState
from marram.schema.errors import MarramError, Missing, NotReady
from marram.schema.model import Manifest
from marram.store import DeploymentRow, EventFilter, Objects, SampleFilter, Store, actor, auditing
from marram.trust.authority import Authority
from marram.trust.keys import Keys

# What `status` says of broker, database and ingest is at most so old: every open console asks each second.
CHECKS_KEEP_S = 5.0
# How long a caller waits for the checks that another one's question began.
CHECK_WAIT_S = 3.0


@dataclass(slots=True)
class Hands:
    """What the state can make happen outside of the store; every call may block and must be safe from any thread."""

    nudge: Callable[[list[str]], None] = lambda devices: None
    # Have a device measure the variants of a model (None: of all that it runs).
    bench: Callable[[str, str | None], None] = lambda device, model: None
    # A device is let in no more: its live connections end.
    cut: Callable[[str], None] = lambda device: None
    # What replicas must serve may have changed.
    deployments_changed: Callable[[], None] = lambda: None
    # Broker and ingest, each tried for real.
    checks: Callable[[], list[Check]] = list
    # What devices are told: where the broker is. What people are told: where the API is.
    brokers: list[str] = field(default_factory=list)
    url: str = ""


class CloudState:
    """Implements `cloud.api.contract.State`."""

    def __init__(
        self, store: Store, objects: Objects, scratch: Path, keys: Keys, wheel_index: str | None = None
    ) -> None:
        """Raises Missing, Refused or Invalid where `keys` are not there or not to be used."""
        self.store = store
        self.objects = objects
        self.registry = Registry(store.models, objects, scratch=scratch)
        self.models_desk = ModelDesk(store, self.registry)
        self.signing = Signing(store, keys)
        self.signing.open()
        self.rollout = Rollout(store, self.registry, objects, self.signing.sign, self._resolve)
        self.access = Access(store)
        self.people = People(store, self.access)
        self.audit = store.audit
        self.hands = Hands()
        self.steering = Steering(store, self.rollout, self._rolled)
        self.keys = keys
        self.safe = Safe(store, keys)
        self._wheels = Wheels(objects, scratch, wheel_index)
        self.authority = Authority.open(keys)
        self.enrolment = Enrolment(store, self.authority)
        self._scratch = scratch
        self._started_s = time.monotonic()
        self._checking = threading.Lock()
        self._checked: tuple[float, list[Check]] = (float("-inf"), [])

    @property
    def scratch(self) -> Path:
        return self._scratch

    # ------------------------------------------------------------ joining

    def join(self, ask: JoinAsk) -> Joined:
        enrolled = self.enrolment.join(ask)
        certificate = enrolled.certificate
        self.rollout.refresh(certificate.device)
        return Joined(
            device=certificate.device,
            certificate=certificate.pem.decode(),
            ca=self.ca.decode(),
            root=self.signing.root().decode(),
            brokers=self.hands.brokers,
            labels=enrolled.labels,
        )

    def renew(self, ask: RenewAsk) -> Renewed:
        return Renewed(certificate=self.enrolment.renew(ask).pem.decode())

    def standing(self, ask: StandingAsk) -> None:
        self.enrolment.standing(ask)

    @property
    def ca(self) -> bytes:
        return self.authority.certificate_pem

    def create_token(self, ask: TokenAsk) -> TokenMade:
        return self.enrolment.create_token(ask, self.hands.url)

    def tokens(self) -> list[TokenView]:
        return self.enrolment.tokens()

    def revoke_token(self, id: str) -> None:
        with auditing(actor(), "join_token.revoke", id):
            self.store.tokens.remove(id)

    # ------------------------------------------------------------ secrets

    def set_secret(self, name: str, ask: SecretAsk) -> SecretView:
        with auditing(actor(), "secret.set", name, selector=ask.selector):
            return secret_view(self.safe.put(name, ask.value, dict(ask.selector)))

    def secrets(self) -> list[SecretView]:
        return [secret_view(row) for row in self.safe.all()]

    def remove_secret(self, name: str) -> None:
        with auditing(actor(), "secret.remove", name):
            self.safe.remove(name)

    # ------------------------------------------------------------ devices

    def devices(self) -> list[Device]:
        return self.store.devices.list()

    def device(self, id: str) -> Device:
        return self.store.devices.get(id)

    def remove_device(self, id: str) -> None:
        with auditing(actor(), "device.remove", id):
            self.store.devices.remove(id)
        self.hands.cut(id)
        self.hands.deployments_changed()

    # ------------------------------------------------------------ content

    def blob_bytes(self, sha256: str) -> int | None:
        try:
            return self.objects.size(sha256)
        except Missing:
            return None

    def read_blob(self, sha256: str) -> Iterator[bytes]:
        return self.objects.stream(sha256)

    def add_blob(self, sha256: str, file: Path) -> None:
        self.objects.adopt(file, sha256)
        self.audit.add(actor(), "blob.put", sha256)

    def add_model(self, ask: ModelAsk) -> ModelView:
        view = self.models_desk.add(ask)
        self.signing.sign_model(view.card.model, view.version)
        return view

    def models(self) -> list[ModelView]:
        return self.models_desk.all()

    def model(self, name: str, version: int | None) -> ModelView:
        return self.models_desk.get(name, version)

    def bench(self, device: str, model: str | None) -> None:
        if self.store.devices.get(device).state is not DeviceState.ONLINE:
            raise NotReady(f"{device} is not online", hint="Ask again once it is: marram device list")
        self.hands.bench(device, model)
        self.audit.add(actor(), "device.bench", device, model=model)

    # ------------------------------------------------------------ signed metadata

    def metadata(self, name: str) -> bytes | None:
        return self.signing.read(name)

    # ------------------------------------------------------------ deployments

    def _resolve(self, requires: Sequence[str], selector: dict[str, str]) -> dict[str, Manifest]:
        if not requires:
            return {}
        return self._wheels.resolve(requires, self.store.devices.platforms(selector))

    def deploy(self, ask: DeployAsk) -> Deployment:
        app = parse_app(ask.app_yaml)
        with auditing(actor(), "deploy", app.app, selector=ask.selector):
            rolled = self.rollout.deploy(ask.app_yaml, ask.files, dict(ask.selector), ask.plan)
        self._rolled(rolled.changed)
        devices = {device.id: device for device in self.store.devices.list()}
        made = self._deployment(rolled.deployment, devices)
        notes = lacking_serve(self.store.devices.platforms(dict(ask.selector))) if app.serve is not None else []
        number = rolled.rollout.id if rolled.rollout else None
        return made.model_copy(update={"new": rolled.new, "rollout": number, "notes": notes})

    def _rolled(self, changed: list[str]) -> None:
        self.hands.deployments_changed()
        self.hands.nudge(changed)

    def undeploy(self, app: str, selector: dict[str, str]) -> None:
        with auditing(actor(), "undeploy", app, selector=selector):
            rolled = self.rollout.remove(app, selector)
        self._rolled(rolled.changed)

    def deployments(self) -> list[Deployment]:
        devices = {device.id: device for device in self.store.devices.list()}
        held = sorted(self.rollout.current(), key=lambda row: row.app)  # stable: of one app the newest first
        return [self._deployment(row, devices) for row in held]

    def deployment(self, app: str) -> Deployment:
        newest = next((row for row in self.rollout.current() if row.app == app), None)
        if newest is None:
            raise self.rollout.unknown(app)
        return self._deployment(newest, {device.id: device for device in self.store.devices.list()})

    def _deployment(self, row: DeploymentRow, devices: dict[str, Device]) -> Deployment:
        """With the devices that run the app because of this very deployment, not of an older or a narrower one."""
        version = row.version or 0
        return Deployment(
            app=row.app,
            version=version,
            selector=row.selector,
            created_s=row.created_s,
            devices=[
                device_app(devices[name], row.app, version)
                for name, held_by in sorted(self.rollout.targets(row.app).items())
                if held_by.id == row.id and name in devices
            ],
        )

    # ------------------------------------------------------------ what devices delivered

    def events(self, query: EventQuery) -> list[EventView]:
        which = EventFilter(query.device, query.app, query.kinds, query.since_s)
        if query.after is not None:
            return [event_view(event) for event in self.store.events.after(query.after, which, query.limit)]
        return [event_view(event) for event in reversed(self.store.events.newest(which, query.limit))]

    def of_frame(self, frame: int, query: FrameQuery) -> FrameView:
        which = EventFilter(query.device, query.app)
        found, before = self.store.events.of_frame(frame, which, query.limit, query.before)
        return FrameView(results=[event_view(event) for event in reversed(found)], before=before)

    def counts(self, device: str | None) -> Counts:
        return counts_view(self.store.events.counts(device))

    def totals(self) -> Totals:
        totals = self.store.events.totals()
        return Totals(by_kind=totals.by_kind, duplicates_seen=totals.duplicates)

    def samples(self, query: SampleQuery) -> list[SampleView]:
        which = SampleFilter(query.device, query.app, None, query.labelled)
        return [sample_view(sample) for sample in self.store.samples.list(which, query.limit, query.after)]

    def sample_body(self, id: int) -> tuple[bytes, str]:
        sample = self.store.samples.get(id)
        return self.objects.get(sample.sha256), sample.media or "application/octet-stream"

    def label_sample(self, id: int, label: str | None) -> SampleView:
        with auditing(actor(), "sample.label", str(id), label=label):
            return sample_view(self.store.samples.label(id, label, actor()))

    # ------------------------------------------------------------ the whole

    def status(self) -> Status:
        devices = self.store.devices.list()
        return Status(
            version=__version__,
            uptime_s=time.monotonic() - self._started_s,
            devices=len(devices),
            online=sum(device.state is DeviceState.ONLINE for device in devices),
            apps=len({row.app for row in self.rollout.current()}),
            models=self.store.models.count(),
            events=self.store.events.totals().stored,
            samples=self.store.samples.count(),
            brokers=self.hands.brokers,
            checks=self.checks(CHECKS_KEEP_S),
            warnings=self.signing.warnings(),
        )

    def checks(self, age_s: float = 0.0) -> list[Check]:
        # One caller tries, the others who come meanwhile share what it finds; a part that hangs holds none of them.
        if not self._checking.acquire(timeout=CHECK_WAIT_S):
            return [Check(name="checks", ok=False, detail="one has not come back yet")]
        try:
            made_s, checks = self._checked
            if time.monotonic() - made_s >= age_s:
                checks = [
                    tried("database", self.store.check),
                    tried("objects", self.objects.check),
                    *self.hands.checks(),
                ]
                self._checked = (time.monotonic(), checks)
            return checks
        finally:
            self._checking.release()


def tried(name: str, attempt: Callable[[], str]) -> Check:
    """One check: what `attempt` says of itself, or why it failed."""
    try:
        return Check(name=name, ok=True, detail=attempt())
    except MarramError as error:
        return Check(name=name, ok=False, detail=str(error))
