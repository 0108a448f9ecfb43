"""What a cloud is told when it starts: where it keeps things, where it listens, which roles it plays."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from marram.schema.errors import Invalid


class Role(StrEnum):
    """What one cloud process does; roles meet only through the bus and the store, so any of them can be doubled."""

    API = "api"  # HTTP API and console
    INGEST = "ingest"  # events into the store
    FLEET = "fleet"  # reports in, desired states and files out
    REPLICA = "replica"  # models answer


@dataclass(frozen=True, slots=True)
class Settings:
    """See `marram cloud --help`. `database`, `objects`, `keys` None: in `folder`; `nats` None: an embedded broker."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8080  # plain HTTP, for this machine alone; 0: any free one
    tls_port: int = 0  # HTTPS, on `host`; 0: any free one
    grpc_port: int | None = None  # the Open Inference Protocol over gRPC, on `host`; None: not at all; 0: any free one
    broker_port: int = 0  # 0: the one it had last time, else any free one
    roles: frozenset[Role] = field(default_factory=lambda: frozenset(Role))
    nats: str | None = None
    database: str | None = None
    objects: str | None = None
    serve: tuple[str, ...] = ()
    replicas: int = 1  # processes that answer inferences, each every model; of the role replica
    replica_memory_bytes: int | None = None  # what the models of each may take together; None: no bound
    # Addresses told to devices that join, where they differ from where the broker listens.
    brokers: tuple[str, ...] = ()
    keys: Path | None = None
    # Where wheels of functions come from: an index's URL or a folder; None: as pip itself is set.
    wheel_index: str | None = None

    @property
    def keys_folder(self) -> Path:
        return self.keys or self.folder / "keys"

    @property
    def makes_keys(self) -> bool:
        """Whether keys that are not there are made: only where nobody else can have others for the same database."""
        return self.keys is None and (self.nats is None or self.database is None)

    @property
    def lacks(self) -> list[str]:
        """What only others can have written, and is neither named nor in `folder`: an empty one would serve nothing."""
        if self.roles != {Role.REPLICA}:
            return []
        named = {
            "--database": self.database or self.folder / "marram.db",
            "--objects": self.objects or self.folder / "objects",
        }
        return [option for option, place in named.items() if isinstance(place, Path) and not place.exists()]

    @property
    def database_url(self) -> str | Path:
        return self.database or self.folder / "marram.db"

    @property
    def objects_url(self) -> str | Path:
        return self.objects or self.folder / "objects"

    @property
    def broker_folder(self) -> Path:
        return self.folder / "broker"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, and as whom to use it: the embedded one, or `tls://USER:PASSWORD@HOST:PORT` taken apart.

    Without user and password they follow from the cloud's keys.
    """

    url: str
    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Raises Invalid; the message never repeats the password."""
        parts = urlsplit(text)
        try:
            host, port = parts.hostname, parts.port or 4222
        except ValueError as error:
            raise Invalid("the port of --nats is not a number") from error
        if parts.scheme not in ("nats", "tls") or not host:
            raise Invalid("--nats is no broker address", hint="Write tls://HOST:4222.")
        bare = f"[{host}]" if ":" in host else host
        return cls(f"{parts.scheme}://{bare}:{port}", parts.username or "", parts.password or "")
