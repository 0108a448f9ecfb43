"""`CloudApi`: the cloud's HTTP API as Python calls, for the commands, the lab and `marram edge join`.

Every fault comes back as one of our errors, whose line names the cloud, what is wrong and the next step. It holds no
state but a connection pool. httpx is loaded by the first `CloudApi`, not by the import: a device agent that is joined
already never pays for it. This module must never retry by itself something that is not safe to do twice.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from marram.bus.http_people import PeopleCalls
from marram.schema.api import (
    PREFIX,
    BenchAsk,
    ChannelAsk,
    ChannelView,
    Counts,
    DeployAsk,
    Deployment,
    ErrorReply,
    EventView,
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
    Status,
    TokenAsk,
    TokenMade,
    TokenView,
)
from marram.schema.device import Device, DeviceInfo
from marram.schema.errors import (
    KINDS,
    Conflict,
    Invalid,
    MarramError,
    Missing,
    Permanent,
    Refused,
    Retryable,
    Threat,
    Untrusted,
)
from marram.schema.event import EventKind
from marram.schema.model import Manifest, ModelCard
from marram.schema.rollout_view import RolloutView
from marram.schema.why import Why
from marram.schema.words import field_fault

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T", bound=BaseModel)
_CHUNK_BYTES = 1 << 18
# A model is opened and asked once before it is taken in.
_CHECKED_S = 600.0
# What may be read of somebody who has proven nothing, and for how long.
_UNPROVEN_BYTES, _UNPROVEN_S = 16_384, 15.0
_STATUSES: dict[int, type[MarramError]] = {401: Refused, 403: Refused, 404: Missing, 409: Conflict, 429: Retryable}
Progress = Callable[[int, int], None]


class CloudApi(PeopleCalls):
    """One cloud, spoken to as one caller (`token`). Use as a context manager, or `close` it; safe from several threads.

    Every method raises Retryable where the cloud does not answer (now), Refused without the right token, Missing,
    Conflict or Invalid where the cloud says so.
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout_s: float = 30.0, authority: str | None = None
    ) -> None:
        """`url`: http(s)://host[:port]; `authority`: the certificate (PEM) of the one authority to believe over https.

        Raises Invalid where either is not what it should be.
        """
        import httpx

        self.url = check_url(url)
        parts = urlsplit(self.url)
        self.where = parts.netloc
        headers = {"Authorization": f"Bearer {_printable(token)}"} if token else {}
        self._httpx = httpx
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers | {"User-Agent": "marram"},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            # A proxy set for the outside world must never catch a cloud on this very machine.
            trust_env=not is_local(parts.hostname or ""),
            verify=True if authority is None or parts.scheme == "http" else _only(authority),
        )

    def __enter__(self) -> CloudApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # ------------------------------------------------------------ joining

    def join(
        self, token: str, csr: str, *, name: str | None = None, labels: dict[str, str] | None = None, info: DeviceInfo
    ) -> Joined:
        """Become a device, with a certificate for the key that `csr` (PEM) asks for; over https only.

        Raises Refused (token wrong or expired), Untrusted (used up, of another cloud …), Conflict (the name is taken).
        """
        ask = _valid(JoinAsk, token=token, csr=csr, name=name, labels=labels or {}, info=info)
        return self._post("/join", ask, Joined)

    def renew(self, ask: RenewAsk) -> Renewed:
        """A new certificate for a device whose old one may be over; over https only. Raises Untrusted."""
        return self._post("/renew", ask, Renewed)

    def create_token(self, labels: dict[str, str] | None = None, *, uses: int = 1, ttl_s: float = 3600.0) -> TokenMade:
        """A token that lets `uses` devices join within `ttl_s` seconds."""
        return self._post("/tokens", _valid(TokenAsk, labels=labels or {}, uses=uses, ttl_s=ttl_s), TokenMade)

    def tokens(self) -> list[TokenView]:
        """Join tokens that can still be used."""
        return self._list("/tokens", TokenView)

    def revoke_token(self, id: str) -> None:
        """Nobody joins with it any more."""
        self._call("DELETE", f"/tokens/{_segment(id)}")

    # ------------------------------------------------------------ secrets

    def set_secret(self, name: str, value: str, selector: dict[str, str] | None = None) -> SecretView:
        """Set a secret for devices whose labels match."""
        ask = _valid(SecretAsk, value=value, selector=selector or {})
        content = ask.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        return self._one(SecretView, self._call("PUT", f"/secrets/{_segment(name)}", content=content, headers=headers))

    def secrets(self) -> list[SecretView]:
        """Which secrets there are; not what they are."""
        return self._list("/secrets", SecretView)

    def remove_secret(self, name: str) -> None:
        """Raises Missing."""
        self._call("DELETE", f"/secrets/{_segment(name)}")

    # ------------------------------------------------------------ devices

    def devices(self, selector: str = "all") -> list[Device]:
        """Devices whose labels match `selector` (`site=shanghai,line=3` or `all`), by name."""
        return self._list("/devices", Device, selector=selector)

    def device(self, id: str) -> Device:
        """One device: desired, reported, stats. Raises Missing."""
        return self._one(Device, self._call("GET", f"/devices/{_segment(id)}"))

    def remove_device(self, id: str) -> None:
        """Revoke it: its broker user goes, its live connection is cut. What it delivered stays. Raises Missing."""
        self._call("DELETE", f"/devices/{_segment(id)}")

    # ------------------------------------------------------------ blobs, models

    def has_blob(self, sha256: str) -> bool:
        """Whether the cloud holds this content."""
        try:
            self._call("HEAD", f"/blobs/{_segment(sha256)}")
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
        path = f"/models/{_segment(name)}" + (f"/{version}" if version is not None else "")
        return self._one(ModelView, self._call("GET", path))

    def lineage(self, name: str, version: int) -> Lineage:
        """Where a model version comes from, what came of it, who uses it. Raises Missing."""
        return self._one(Lineage, self._call("GET", f"/models/{_segment(name)}/{version}/lineage"))

    def bench(self, device: str, model: str | None = None) -> None:
        """Have a device measure variants: what it found comes with its reports. Raises Missing, NotReady (offline)."""
        body = _valid(BenchAsk, model=model).model_dump_json().encode()
        path, headers = f"/devices/{_segment(device)}/bench", {"Content-Type": "application/json"}
        self._call("POST", path, content=body, headers=headers)

    def tag(self, name: str, channel: str, version: int) -> ChannelView:
        """Have a channel point to a version. Raises Missing, Invalid (no name for a channel)."""
        return self._post(_channel(name, channel), _valid(ChannelAsk, version=version), ChannelView, method="PUT")

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
        ask = _valid(
            DeployAsk, app_yaml=app_yaml, files=files or Manifest(files=[]), selector=selector or {}, plan=plan
        )
        # What was not said of the plan stays unsaid: the cloud then has its own way.
        return self._post("/deployments", ask, Deployment, sparse=True)

    def deployments(self) -> list[Deployment]:
        """Every deployed app and where it stands on each of its devices."""
        return self._list("/deployments", Deployment)

    def deployment(self, app: str) -> Deployment:
        """One deployed app. Raises Missing."""
        return self._one(Deployment, self._call("GET", f"/deployments/{_segment(app)}"))

    def undeploy(self, app: str, selector: str = "all") -> None:
        """Take the app off every device, or those that match `selector`. Raises Missing."""
        self._call("DELETE", f"/deployments/{_segment(app)}", params={"selector": selector})

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
        return self._one(RolloutView, self._call("POST", f"/rollouts/{id}/retry/{_segment(device)}"))

    def why(self, device: str) -> Why:
        """Why a device runs what it runs. Raises Missing."""
        return self._one(Why, self._call("GET", f"/devices/{_segment(device)}/why"))

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

    def counts(self, *, device: str | None = None) -> Counts:
        """How many events are stored, by stream and kind: the proof of exactly once."""
        return self._one(Counts, self._call("GET", "/events/counts", params=_params(device=device)))

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
        return self._post(f"/samples/{id}/label", _valid(LabelAsk, label=label), SampleView)

    # ------------------------------------------------------------ the whole

    def status(self) -> Status:
        """The cloud at a glance."""
        return self._one(Status, self._call("GET", "/status"))

    def health(self) -> Health:
        """Whether database, broker and ingest work, each tried for real; needs no token."""
        return self._one(Health, self._send("GET", "/healthz", ok=(200, 503)))

    # ------------------------------------------------------------ the wire

    def _unproven(self, path: str) -> bytes:
        """A small file from whoever answers."""
        httpx = self._httpx
        nobody = ssl.create_default_context()
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        content, until_s = b"", time.monotonic() + _UNPROVEN_S
        try:
            with (
                httpx.Client(verify=nobody, timeout=self._client.timeout, trust_env=self._client.trust_env) as client,
                client.stream("GET", self.url + path) as response,
            ):
                for part in response.iter_raw():
                    content += part
                    if len(content) > _UNPROVEN_BYTES:
                        raise Untrusted(f"more than {_UNPROVEN_BYTES} bytes", where=self.where, threat=Threat.ENDLESS)
                    if time.monotonic() > until_s:
                        raise Untrusted("it does not come to an end", where=self.where, threat=Threat.SLOW)
        except httpx.TimeoutException as error:
            raise self._silent("it took too long", error) from error
        except httpx.TransportError as error:
            raise self._silent(_reason(error), error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Invalid(f"cannot be asked: {error}", where=self.where) from error
        if response.status_code != 200:
            raise self._foreign(response)
        return content

    def _post(
        self,
        path: str,
        body: BaseModel,
        reply: type[_T],
        *,
        sparse: bool = False,
        method: str = "POST",
        **options: Any,
    ) -> _T:
        content = body.model_dump_json(exclude_unset=sparse).encode()
        headers = {"Content-Type": "application/json"}
        return self._one(reply, self._call(method, path, content=content, headers=headers, **options))

    def _list(self, path: str, item: type[_T], **query: Any) -> list[_T]:
        response = self._call("GET", path, params=_params(**query))
        try:
            return TypeAdapter(list[item]).validate_json(response.content)  # type: ignore[valid-type]
        except ValidationError as error:
            raise self._foreign(response) from error

    def _one(self, reply: type[_T], response: httpx.Response) -> _T:
        try:
            return reply.model_validate_json(response.content)
        except ValidationError as error:
            raise self._foreign(response) from error

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._send(method, PREFIX + path, **options)

    def _send(self, method: str, path: str, *, ok: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        httpx = self._httpx
        try:
            response = self._client.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise self._silent("it took too long", error) from error
        except httpx.TransportError as error:
            raise self._silent(_reason(error), error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Invalid(f"cannot be asked: {error}", where=self.where) from error
        if response.is_success or response.status_code in ok:
            return response
        raise self._fault(response)

    def _silent(self, reason: str, error: Exception) -> MarramError:
        if "certificate" in reason:
            return Untrusted(
                f"{self.where} is not the cloud that is known here ({reason})",
                threat=Threat.OTHER_CLOUD,
                hint="Check the address; if it is right, sign in anew: marram login URL",
            )
        hint = "Is `marram cloud` running there, and the address right?"
        return Retryable(f"{self.where} does not answer ({reason})", hint=hint)

    def _fault(self, response: httpx.Response) -> MarramError:
        """The cloud's own words where it spoke them, else what the status says."""
        status = response.status_code
        kind = _STATUSES.get(status, Retryable if status >= 500 else Invalid)
        try:
            fault = ErrorReply.model_validate_json(response.content).error
        except ValidationError:
            # HEAD has no body to speak in; anything else without our words is not our cloud, or a proxy before it.
            if response.request.method == "HEAD":
                return kind(f"HTTP {status} {response.reason_phrase}", where=self.where)
            return self._foreign(response)
        if status == 401 and not self._client.headers.get("Authorization"):
            hint = "Give --token, set MARRAM_TOKEN, or run this where `marram cloud` runs."
            return Refused(fault.what, where=self.where, hint=hint)
        return KINDS[fault.kind](fault.what, where=fault.where, hint=fault.hint)

    def _foreign(self, response: httpx.Response) -> MarramError:
        media = response.headers.get("content-type", "no content type").partition(";")[0]
        kind = Retryable if response.status_code >= 500 else Invalid
        return kind(
            f"{self.where} answers, but not as a Marram cloud (HTTP {response.status_code}, {media})",
            hint="Is the address right, and both sides of one version?",
        )


def fetch_authority(url: str, *, timeout_s: float = 10.0) -> bytes:
    """The certificate (PEM) of the authority of the cloud at `url` (https://…), as whoever answers there says it.

    Nothing is believed and nothing is sent: compare its fingerprint before anything else. Raises Retryable (no answer),
    Untrusted (ENDLESS: more than a certificate), Invalid (not a Marram cloud).
    """
    with CloudApi(url, timeout_s=timeout_s) as api:
        return api._unproven("/ca.pem")


def check_url(text: str, scheme: str = "http") -> str:
    """`cloud.local:8443` or `http://cloud.local:8443/` -> `http://cloud.local:8443`. Raises Invalid."""
    url = text.strip() if "://" in text else f"{scheme}://{text.strip()}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f'"{text}" is not a cloud address: {error}', hint="Write http://HOST:PORT.") from error
    odd = parts.path.strip("/") or parts.query or parts.fragment or parts.username or port == 0
    if parts.scheme not in ("http", "https") or not parts.hostname or odd or any(c.isspace() for c in parts.netloc):
        raise Invalid(f'"{text}" is not a cloud address', hint="Write http://HOST:PORT.")
    return f"{parts.scheme}://{parts.netloc}"


def _only(authority: str) -> ssl.SSLContext:
    """TLS that believes one authority alone. Host names are not what it looks at: the use of a certificate is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise Invalid("the cloud's authority is no certificate that can be read") from error
    return context


def is_local(host: str) -> bool:
    """Whether it is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _printable(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token.strip():
        raise Invalid("the token has characters that no token has", hint="Copy it again, whole and alone.")
    return token.strip()


def _channel(name: str, channel: str) -> str:
    return f"/models/{_segment(name)}/channels/{_segment(channel)}"


def _segment(text: str) -> str:
    """A path segment that cannot leave its place in the path."""
    if text in ("", ".", ".."):
        raise Missing(f'there is nothing called "{text}"')
    return quote(text, safe="")


def _valid(ask: type[_T], **fields: Any) -> _T:
    """Build a request here, so that a wrong argument is told before anything travels. Raises Invalid."""
    try:
        return ask.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise Invalid(field_fault(first, echo=False), where=field) from error


def _params(**query: Any) -> dict[str, Any]:
    """Query parameters without the ones that are not set."""
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in query.items()
        if value is not None and value != []
    }


def _reason(error: Exception) -> str:
    """A transport failure in a few plain words: the innermost cause knows best."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    text = str(cause) or str(error) or type(cause).__name__
    for sign, words in (
        ("refused", "connection refused"),
        ("All connection attempts failed", "connection refused"),
        ("Name or service not known", "no such host name"),
        ("nodename nor servname", "no such host name"),
        ("Temporary failure in name resolution", "the host name cannot be looked up"),
        ("No route to host", "no route to host"),
        ("unreachable", "network unreachable"),
        ("CERTIFICATE_VERIFY_FAILED", "certificate not trusted"),
        ("WRONG_VERSION_NUMBER", "it does not speak HTTPS; try http://"),
        ("reset by peer", "connection reset"),
        ("disconnected without sending", "connection closed"),
    ):
        if sign in text:
            return words
    return text[:200]


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
