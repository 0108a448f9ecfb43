"""`Wire`: HTTP requests to one cloud, as one caller, and what comes back as our models or our errors.

Its subclasses are the API's calls: `http.CloudApi`, with those of `http_people`. Every fault comes back as one of our
errors, whose line names the cloud, what is wrong and the next step. It holds no state but a connection pool. httpx is
loaded by the first `Wire`, not by the import: a device agent that is joined already never pays for it. This module must
never retry by itself: not everything is safe to do twice.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from marram.schema.api import PREFIX, ErrorReply
from marram.schema.errors import (
    KINDS,
    Conflict,
    Invalid,
    MarramError,
    Missing,
    Refused,
    Retryable,
    Threat,
    Untrusted,
)
from marram.schema.words import field_fault

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T", bound=BaseModel)
# What may be read of somebody who has proven nothing, and for how long.
_UNPROVEN_BYTES, _UNPROVEN_S = 16_384, 15.0
_STATUSES: dict[int, type[MarramError]] = {401: Refused, 403: Refused, 404: Missing, 409: Conflict, 429: Retryable}


class Wire:
    """One cloud, spoken to as one caller (`token`). Use as a context manager, or `close` it; safe from several threads.

    Every call raises Retryable where the cloud does not answer (now), Untrusted where another cloud does, Refused
    without the right token, Missing, Conflict or Invalid where the cloud says so.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(
        self, method: str, path: str, body: BaseModel | None = None, *, sparse: bool = False, **options: Any
    ) -> httpx.Response:
        """`sparse`: what was not said in `body` stays unsaid."""
        if body is not None:
            options["content"] = body.model_dump_json(exclude_unset=sparse).encode()
            options["headers"] = {"Content-Type": "application/json"}
        return self._send(method, PREFIX + path, **options)

    def _post(self, path: str, body: BaseModel, reply: type[_T], **options: Any) -> _T:
        return self._one(reply, self._call("POST", path, body, **options))

    def _list(self, path: str, item: type[_T], **query: Any) -> list[_T]:
        response = self._call("GET", path, params=params(**query))
        try:
            return TypeAdapter(list[item]).validate_json(response.content)  # type: ignore[valid-type]
        except ValidationError as error:
            raise self._foreign(response) from error

    def _one(self, reply: type[_T], response: httpx.Response) -> _T:
        try:
            return reply.model_validate_json(response.content)
        except ValidationError as error:
            raise self._foreign(response) from error

    def _send(self, method: str, path: str, *, ok: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        with self._faults():
            response = self._client.request(method, path, **options)
        if response.is_success or response.status_code in ok:
            return response
        raise self._fault(response)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """httpx's own errors as ours."""
        httpx = self._httpx
        try:
            yield
        except httpx.TimeoutException as error:
            raise self._silent("it took too long") from error
        except httpx.TransportError as error:
            raise self._silent(_reason(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Invalid(f"cannot be asked: {error}", where=self.where) from error

    def _silent(self, reason: str) -> MarramError:
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

    def _unproven(self, path: str) -> bytes:
        """A small file from whoever answers."""
        nobody = ssl.create_default_context()
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        content, until_s = b"", time.monotonic() + _UNPROVEN_S
        timeout, trust_env = self._client.timeout, self._client.trust_env
        with (
            self._faults(),
            self._httpx.Client(verify=nobody, timeout=timeout, trust_env=trust_env) as client,
            client.stream("GET", self.url + path) as response,
        ):
            for part in response.iter_raw():
                content += part
                if len(content) > _UNPROVEN_BYTES:
                    raise Untrusted(f"more than {_UNPROVEN_BYTES} bytes", where=self.where, threat=Threat.ENDLESS)
                if time.monotonic() > until_s:
                    raise Untrusted("it does not come to an end", where=self.where, threat=Threat.SLOW)
        if response.status_code != 200:
            raise self._foreign(response)
        return content


def fetch_authority(url: str, *, timeout_s: float = 10.0) -> bytes:
    """The certificate (PEM) of the authority of the cloud at `url` (https://…), as whoever answers there says it.

    Nothing is believed and nothing is sent: compare its fingerprint before anything else. Raises Retryable (no answer),
    Untrusted (ENDLESS: more than a certificate), Invalid (not a Marram cloud).
    """
    with Wire(url, timeout_s=timeout_s) as api:
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


def is_local(host: str) -> bool:
    """Whether it is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def valid(ask: type[_T], **fields: Any) -> _T:
    """Build a request here, so that a wrong argument is told before anything travels. Never repeats what was given."""
    try:
        return ask.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(field_fault(first, echo=False), where=".".join(str(part) for part in first["loc"])) from None


def segment(text: str) -> str:
    """A path segment that cannot leave its place in the path."""
    if text.strip() in ("", ".", ".."):
        raise Missing(f'there is nothing called "{text}"')
    return quote(text, safe="")


def params(**query: Any) -> dict[str, Any]:
    """Query parameters without the ones that are not set."""
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in query.items()
        if value is not None and value != []
    }


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


def _printable(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token.strip():
        raise Invalid("the token has characters that no token has", hint="Copy it again, whole and alone.")
    return token.strip()


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
