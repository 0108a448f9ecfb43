"""The device's folder: who it is, what it should run, what it runs. The only memory an agent has.

Power may fail at any byte: every file is written to a temporary beside it, synced, renamed, and its folder synced, so
that a reader finds the old content or the new, never a mixture. Files of the agent's own carry their digest; one that
is damaged all the same (a dying disk, a curious person) is set aside and treated as absent: the cloud's next answer
brings it back. Nothing here ever talks to the network, and no fault of a file here may end in a crash loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from marram.edge.deploy import AppRecord
from marram.edge.disk import disk_fault
from marram.edge.identity import IdentityFiles
from marram.schema.device import Desired
from marram.schema.errors import Conflict, Invalid, Missing
from marram.schema.ids import Name, check_name
from marram.schema.model import Strict
from marram.system import files

log = logging.getLogger("marram.edge")
_M = TypeVar("_M", bound=BaseModel)


class Credentials(Strict):
    """Who this device is and where its cloud is. No secret: what proves it lies in `identity/`."""

    device: Name
    brokers: list[str] = Field(min_length=1)
    cloud: str = ""


class Folder:
    """One device's folder. `lock` before changing anything in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # In a folder of its own, which workers may write in: SQLite makes files beside its own.
        self.outbox = path / "outbox" / "outbox.db"
        self.identity = IdentityFiles(path / "identity")
        self._credentials = path / "credentials.yaml"
        self._desired = path / "desired.json"
        self._apps = path / "apps"

    def log_file(self, app: str) -> Path:
        """Where a worker's own words go (stdout and stderr)."""
        return self.path / "logs" / f"{app}.log"

    def work(self, app: str) -> Path:
        """The app's own working folder; what it writes there stays over versions and restarts."""
        return self.path / "work" / app

    def make(self) -> None:
        """Create the folder, for nobody else to read. Raises Permanent or Retryable where it cannot be written."""
        logs, work = self.path / "logs", self.path / "work"
        for part in (self.path, self._apps, logs, work, self.outbox.parent, self.identity.folder):
            with _translated(part):
                files.make_folder(part)
        with _translated(self.path):
            for leftover in (f for part in (self.path, self._apps, self.identity.folder) for f in part.glob(".*.tmp")):
                leftover.unlink()
            # Where it lay before: its parts one by one, the database last, so that a cut leaves a move to finish.
            for part in sorted(self.path.glob("outbox.db*"), reverse=True):
                part.replace(self.outbox.parent / part.name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. Raises Conflict, naming the process, where another agent does."""
        self.make()
        with _translated(self.path):
            held = files.hold(self.path / "lock", self._taken)
        try:
            yield
        finally:
            os.close(held)

    def _taken(self, holder: str) -> Conflict:
        return Conflict(
            f"another agent (process {holder}) runs on {self.path}",
            hint="Stop it first, or give this one a folder of its own: --folder.",
        )

    def holder(self) -> int | None:
        """The process of the agent that runs on this folder, or None."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = os.pread(fd, 20, 0).decode(errors="replace").strip()
            return int(text) if text.isdigit() else 0
        else:
            return None
        finally:
            os.close(fd)

    # ------------------------------------------------------------ who it is

    def joined(self) -> bool:
        """Whether credentials are here (readable or not)."""
        return self._credentials.exists()

    def credentials(self) -> Credentials:
        """Raises Missing where the device never joined, Invalid where the file is damaged."""
        try:
            text = self._credentials.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise Missing(
                f"this machine is not joined to a cloud (no {self._credentials})",
                hint="Join it: marram edge join URL TOKEN. `marram token create` in the cloud makes the token.",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error
        try:
            return Credentials.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError, RecursionError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Invalid:
        what = error.strerror if isinstance(error, OSError) else "it does not hold device and brokers"
        return Invalid(
            f"cannot be read: {what or type(error).__name__}",
            where=str(self._credentials),
            hint="Restore it from a copy; or delete it and join again with a new token: marram edge join URL TOKEN.",
        )

    def save_credentials(self, credentials: Credentials) -> None:
        """Raises Retryable (disk full) or Permanent."""
        document = credentials.model_dump(mode="json")
        text = "# Which device this is, and where its cloud is. What proves it lies in identity/.\n"
        write_atomic(self._credentials, (text + yaml.safe_dump(document, sort_keys=False)).encode())

    # ------------------------------------------------------------ what it should run

    def desired(self) -> Desired | None:
        """The last desired state received, None where there is none (or it was damaged: then it is set aside)."""
        return self._read(self._desired, Desired)

    def save_desired(self, desired: Desired) -> None:
        """Raises Retryable (disk full) or Permanent."""
        self._write(self._desired, desired)

    # ------------------------------------------------------------ what it runs

    def records(self) -> dict[str, AppRecord]:
        """Where each app stands; damaged ones are set aside and missing here."""
        found: dict[str, AppRecord] = {}
        for file in sorted(self._apps.glob("*.json")):
            record = self._read(file, AppRecord)
            if record is not None and record.target.name == file.stem:
                found[file.stem] = record
        return found

    def save_record(self, record: AppRecord) -> None:
        """Raises Retryable (disk full) or Permanent."""
        self._write(self._apps / f"{check_name(record.target.name)}.json", record)

    def remove_record(self, app: str) -> None:
        """Forget an app. Its working folder stays: it may hold what a person wants."""
        with _translated(self._apps):
            (self._apps / f"{check_name(app)}.json").unlink(missing_ok=True)
            files.sync(self._apps)

    # ------------------------------------------------------------ whatever else it has to remember

    def keep(self, name: str, document: BaseModel) -> None:
        """Remember `document` in the file `name`. Raises Retryable (disk full) or Permanent."""
        self._write(self.path / name, document)

    def kept(self, name: str, kind: type[_M]) -> _M | None:
        """What was remembered in the file `name`; None where there is none (or it was damaged)."""
        return self._read(self.path / name, kind)

    def _write(self, path: Path, document: BaseModel) -> None:
        body = document.model_dump_json()
        sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
        write_atomic(path, json.dumps(sealed).encode())

    def _read(self, path: Path, kind: type[_M]) -> _M | None:
        try:
            sealed: Any = json.loads(path.read_bytes())
            body = sealed["body"]
            if hashlib.sha256(body.encode()).hexdigest() != sealed["sha256"]:
                raise ValueError("its digest does not match")
            return kind.model_validate_json(body)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning(
                "%s is damaged (%s): set aside; what the cloud decides, it sends again", path, type(error).__name__
            )
            with contextlib.suppress(OSError):
                path.replace(path.with_suffix(".damaged"))
            return None


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content` (mode 0600) so that power may fail at any byte.

    Raises Retryable where the disk is full, Permanent on other faults; the old content is then untouched.
    """
    with _translated(path):
        files.write(path, content)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_fault(error, path) from error
