"""Whether a device's cloud has signed what the device is told to run, and whether that is current: TUF's client.

The rules are python-tuf's (specification 1.0, section 5); here are what surrounds them on a device: a clock that may be
wrong, files that outlive a power cut, limits on what is fetched, and a name for each attack that a rule held off.
What was fetched touches nothing before python-tuf has verified it: it works on a scratch copy, and what it found good
is then brought to the disk, roots first, since the other documents count only under the newest of them. Each document
on the disk is thus the old one or the new one, and nothing older than the newest of them is ever taken again. It never
writes into the folder what was not verified, and never asks for more bytes than a document may have.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from marram.schema.errors import NotReady, Retryable, Threat, Untrusted
from marram.schema.signed import ISSUED, PROJECT, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from marram.schema.words import file_fault, format_duration
from marram.system import files
from marram.trust.clock import DAY_S, Clock
from marram.trust.library import FetcherInterface, Updater, UpdaterConfig

# Asks for signed metadata by its name: at most so many bytes. None: there is no such file. Raises MarramError.
Fetch = Callable[[str, int], bytes | None]

# What no clock is off by in ordinary use: then the words say that it may be the clock.
_ODD_CLOCK_S = 2 * DAY_S
_BASE = "marram:/"

T = TypeVar("T", Root, Timestamp, Targets)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is fetched at most. A root that is not there ends the list of roots, so most refreshes ask for none."""

    root_bytes: int = 512_000
    timestamp_bytes: int = 16_384
    snapshot_bytes: int = 500_000
    targets_bytes: int = 4_000_000
    roots: int = 256
    total_bytes: int = 8_000_000


class Verifier:
    """One device's trust in its cloud. `folder` is its own; `root`: the root document it was given when it joined.

    One at a time uses a folder. Blocking.
    """

    def __init__(self, folder: Path, root: bytes, clock: Clock, limits: Limits | None = None) -> None:
        self._folder, self._root, self._clock = folder, root, clock
        self._limits = limits or Limits()

    def verify(self, targets: Mapping[str, bytes], fetch: Fetch) -> None:
        """That each of `targets` (document by path) is what the cloud has signed under that path, and signs today.

        Raises Untrusted with the threat's name; what `fetch` raises; NotReady where the cloud has signed nothing yet;
        Retryable where the disk does not take what was learnt.
        """
        try:
            files.make_folder(self._folder)
            # Where the system keeps what need not last: in memory, on most devices.
            with tempfile.TemporaryDirectory(prefix="marram-") as name:
                scratch = Path(name)
                for path in self._kept(self._folder):
                    (scratch / path).parent.mkdir(exist_ok=True)
                    shutil.copyfile(self._folder / path, scratch / path)
                self._verify(scratch, targets, fetch)
        except OSError as error:
            raise Retryable(
                f"what is signed cannot be kept: {file_fault(error)}",
                where=str(self._folder),
                hint="It goes on by itself once the disk does.",
            ) from error

    def _verify(self, scratch: Path, targets: Mapping[str, bytes], fetch: Fetch) -> None:
        self._learn(scratch)
        fetching = _Fetching(fetch, self._limits)
        try:
            updater = _Updater(scratch, fetching, self._limits, self._root, self._clock)
            try:
                updater.refresh()
                for path, content in targets.items():
                    self._check(scratch, updater.get_targetinfo(path), path, content)
            finally:
                # Also where it failed on the way: what is in the scratch folder by now was verified, and the next
                # answer must not be older than that.
                self._learn(scratch)
                self._keep(scratch)
        except exceptions.DownloadHTTPError as error:
            raise NotReady(
                f"the cloud has no {fetching.name}", hint="It goes on by itself once the cloud has signed it."
            ) from error
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise self._refusal(error, scratch, fetching) from error
        except (ValueError, KeyError, TypeError, RuntimeError) as error:  # documents that contradict themselves
            raise Untrusted(f"{fetching.name} makes no sense: {error}", threat=Threat.TAMPERED) from error

    def _check(self, scratch: Path, info: TargetFile | None, path: str, content: bytes) -> None:
        if info is None:
            raise Untrusted(
                f"{path} is signed by nobody this device trusts",
                threat=Threat.UNSIGNED,
                hint="If it was deployed just now, it is signed within a minute.",
            )
        try:
            info.verify_length_and_hashes(content)
        except exceptions.LengthOrHashMismatchError as error:
            other = self._signed_as(scratch, content)
            if other is not None:
                raise Untrusted(f"{path} has the content of {other}", threat=Threat.MIX_AND_MATCH) from error
            raise Untrusted(f"{path} is not what was signed under that name", threat=Threat.TAMPERED) from error

    def _signed_as(self, scratch: Path, content: bytes) -> str | None:
        """Under which other name `content` is signed."""
        digest = hashlib.sha256(content).hexdigest()
        document = _parsed(Targets, scratch / f"{PROJECT}.json")
        listed = {} if document is None else document.signed.targets
        return next((name for name, info in listed.items() if info.hashes.get("sha256") == digest), None)

    # ------------------------------------------------------------ what is kept

    @staticmethod
    def _kept(folder: Path) -> Iterator[Path]:
        """The documents in a folder, relative to it, in the order in which they go to the disk."""
        yield from (p.relative_to(folder) for p in sorted((folder / "root_history").glob("*.root.json"), key=_number))
        for role in (TIMESTAMP, SNAPSHOT, TARGETS, PROJECT):
            if (folder / f"{role}.json").is_file():
                yield Path(f"{role}.json")

    def _keep(self, scratch: Path) -> None:
        """Bring what is new in the scratch folder to the disk, then the clock's floor. Raises OSError."""
        for path in self._kept(scratch):
            content = (scratch / path).read_bytes()
            place = self._folder / path
            if not place.is_file() or place.read_bytes() != content:
                files.make_folder(place.parent)
                files.write(place, content)
        self._clock.keep()

    def _learn(self, scratch: Path) -> None:
        """Raise the clock's floor by what the verified timestamp says of when it was signed."""
        root, timestamp = _newest_root(scratch, self._root), _parsed(Timestamp, scratch / f"{TIMESTAMP}.json")
        if root is None:
            return
        documents: list[Metadata[Any]] = [root]
        if timestamp is not None and _valid(root.signed, TIMESTAMP, timestamp):
            documents.append(timestamp)
        for document in documents:
            issued = document.signed.unrecognized_fields.get(ISSUED)
            if isinstance(issued, int) and 0 < issued < document.signed.expires.timestamp():
                self._clock.saw(float(issued))

    # ------------------------------------------------------------ which attack it was

    def _refusal(self, error: Exception, scratch: Path, fetching: _Fetching) -> Untrusted:
        name, content = fetching.name, fetching.content
        if not name:
            # The very first document, from the device's own disk.
            return Untrusted(
                f"the root document this device joined with is damaged: {error}",
                threat=Threat.TAMPERED,
                hint="Join it again: marram edge join",
            )
        role = _role(name)
        if isinstance(error, exceptions.ExpiredMetadataError):
            return self._expired(str(error), scratch, fetching)
        if isinstance(error, exceptions.DownloadLengthMismatchError):
            return Untrusted(f"{name} is longer than it may be", threat=Threat.ENDLESS)
        if isinstance(error, exceptions.BadVersionNumberError):
            return self._wrong_version(error, role, scratch, fetching)
        if isinstance(error, DeserializationError | SerializationError):
            return Untrusted(f"{name} cannot be read", threat=Threat.TAMPERED)
        if isinstance(error, exceptions.UnsignedMetadataError):
            return self._wrong_signature(role, scratch, fetching)
        if isinstance(error, exceptions.LengthOrHashMismatchError):
            found = _parse(content)
            if found is not None and _judged(found, role, scratch, self._root) is None:
                return Untrusted(
                    f"{name} is signed, but not the one that belongs to the others", threat=Threat.MIX_AND_MATCH
                )
            return Untrusted(f"{name} is not the one that was signed with the others", threat=Threat.TAMPERED)
        if "missing info" in str(error):
            return Untrusted(f"{name} leaves out what was signed before", threat=Threat.ROLLBACK)
        return Untrusted(f"{name}: {error}", threat=Threat.MIX_AND_MATCH)

    def _expired(self, words: str, scratch: Path, fetching: _Fetching) -> Untrusted:
        found = re.search(r"([a-z0-9_-]+?)(?:\.json)? is expired", words)
        role = found[1] if found else ROOT
        document = _newest_root(scratch, self._root) if role == ROOT else _parse(fetching.of(role))
        if document is None and role != ROOT:
            document = _read(scratch / f"{role}.json")
        now_s, wall_s, floor_s = self._clock.now_s(), self._clock.wall_s(), self._clock.floor_s()
        what = f"what the cloud signed as {role} has expired"
        if document is not None:
            expires_s = document.signed.expires.timestamp()
            what = f"what the cloud signed as {role} expired {_long(now_s - expires_s)} ago ({_day(expires_s)})"
        hint = "The cloud signs it anew by itself while it runs: somebody may be holding the newer one back."
        if role in (ROOT, TARGETS):
            hint = "On the cloud: marram cloud root renew"
        if floor_s and wall_s - floor_s > _ODD_CLOCK_S:
            what += (
                f"; this device's clock says {_day(wall_s)}, {_long(wall_s - floor_s)} after the newest"
                " moment that a signature has shown it"
            )
            hint = f"Is its clock right? {hint}"
        return Untrusted(what, threat=Threat.FREEZE, hint=hint)

    def _wrong_version(self, error: Exception, role: str, scratch: Path, fetching: _Fetching) -> Untrusted:
        name, found = fetching.name, _parse(fetching.content)
        version = found.signed.version if found is not None else 0
        if role in (ROOT, TIMESTAMP):
            return Untrusted(f"{name}: {error}", threat=Threat.ROLLBACK)
        if role == SNAPSHOT:
            timestamp = _parsed(Timestamp, scratch / f"{TIMESTAMP}.json")
            if timestamp is not None and timestamp.signed.snapshot_meta.version == version:
                return Untrusted(f"{name} goes back: {error}", threat=Threat.ROLLBACK)
        return Untrusted(
            f"{name} is version {version}, not the one that belongs to the others", threat=Threat.MIX_AND_MATCH
        )

    def _wrong_signature(self, role: str, scratch: Path, fetching: _Fetching) -> Untrusted:
        found = _parse(fetching.content)
        threat = Threat.TAMPERED if found is None else _judged(found, role, scratch, self._root) or Threat.WRONG_KEY
        words = {
            Threat.UNSIGNED: "carries no signature",
            Threat.TAMPERED: "is not what its signature is for",
            Threat.WRONG_KEY: "is not signed by (enough of) the keys this device trusts",
        }
        return Untrusted(f"{fetching.name} {words[threat]}", threat=threat)


@dataclass(slots=True)
class _Seen:
    name: str
    content: bytes | None


class _Fetching(FetcherInterface):
    """python-tuf's way to the cloud: names instead of addresses, our errors as they are, a limit on all of it."""

    def __init__(self, fetch: Fetch, limits: Limits) -> None:
        self._ask, self._left = fetch, limits.total_bytes
        self._seen: list[_Seen] = []

    @property
    def name(self) -> str:
        """What was asked for last; "" before that."""
        return self._seen[-1].name if self._seen else ""

    @property
    def content(self) -> bytes | None:
        """What came for it."""
        return self._seen[-1].content if self._seen else None

    def of(self, role: str) -> bytes | None:
        """What came last for `role`."""
        found = [s.content for s in self._seen if s.content is not None and _role(s.name) == role]
        return found[-1] if found else None

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = unquote(url.removeprefix(_BASE))
        self._seen.append(_Seen(name, None))
        most = min(max_length, self._left)
        content = self._ask(name, most)
        if content is None:
            raise exceptions.DownloadHTTPError(f"there is no {name}", 404)
        self._left -= len(content)
        if len(content) > most:
            raise exceptions.DownloadLengthMismatchError(f"{name} has more than {most} bytes")
        self._seen[-1].content = content
        return content

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, self._left)


class _Updater(Updater):
    """python-tuf's client, by the device's own clock."""

    def __init__(self, folder: Path, fetching: _Fetching, limits: Limits, root: bytes, clock: Clock) -> None:
        config = UpdaterConfig(
            max_root_rotations=limits.roots,
            max_delegations=4,
            root_max_length=limits.root_bytes,
            timestamp_max_length=limits.timestamp_bytes,
            snapshot_max_length=limits.snapshot_bytes,
            targets_max_length=limits.targets_bytes,
        )
        super().__init__(str(folder), _BASE, fetcher=fetching, config=config, bootstrap=root)
        # It has no argument for the time; its own tests patch the module's clock instead.
        self._trusted_set.reference_time = datetime.fromtimestamp(clock.now_s(), UTC)


def _judged(found: Metadata[Any], role: str, scratch: Path, first_root: bytes) -> Threat | None:
    """Why the signatures of a document of `role` do not count; None where they do."""
    if not found.signatures:
        return Threat.UNSIGNED
    root = _newest_root(scratch, first_root)
    targets = _parsed(Targets, scratch / f"{TARGETS}.json")
    if root is None or (role == PROJECT and targets is None):
        return Threat.WRONG_KEY
    delegator = targets.signed if role == PROJECT and targets is not None else root.signed
    try:
        result = delegator.get_verification_result(role, found.signed_bytes, found.signatures)
        known = set(delegator.get_delegated_role(role).keyids)
    except (ValueError, exceptions.RepositoryError):
        return Threat.WRONG_KEY
    if result.verified:
        return None  # where a root is not signed by its own keys, `_wrong_signature` knows a name
    spoilt = {keyid for keyid in found.signatures if keyid in known} - set(result.signed)
    return Threat.TAMPERED if spoilt else Threat.WRONG_KEY


def _newest_root(folder: Path, first: bytes) -> Metadata[Root] | None:
    """The newest root: the one python-tuf's link points to; where it has not begun, the newest that it left here."""
    kept = sorted((folder / "root_history").glob("*.root.json"), key=_number)
    for path in (folder / "root.json", *reversed(kept)):
        document = _parsed(Root, path)
        if document is not None:
            return document
    return _typed(Root, first)


def _valid(delegator: Root | Targets, role: str, document: Metadata[Any]) -> bool:
    """Whether `document` is signed as `delegator` demands of `role`."""
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
    except (ValueError, exceptions.RepositoryError):
        return False
    return True


def _parse(content: bytes | None) -> Metadata[Any] | None:
    """A document that nobody has verified; None where it is none."""
    try:
        return None if content is None else Metadata.from_bytes(content)
    except exceptions.RepositoryError:
        return None


def _typed(kind: type[T], content: bytes | None) -> Metadata[T] | None:
    document = _parse(content)
    return document if document is not None and isinstance(document.signed, kind) else None


def _parsed(kind: type[T], path: Path) -> Metadata[T] | None:
    document = _read(path)
    return document if document is not None and isinstance(document.signed, kind) else None


def _read(path: Path) -> Metadata[Any] | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _number(path: Path) -> int:
    """3 of `3.root.json`; 0 of anything else."""
    number = path.name.split(".")[0]
    return int(number) if number.isdecimal() and len(number) < 12 else 0


def _role(name: str) -> str:
    """`root` of `3.root.json`."""
    return name.removesuffix(".json").split(".")[-1]


def _long(seconds: float) -> str:
    """A duration that may be years."""
    return f"{seconds / DAY_S:.0f} days" if seconds > 2 * DAY_S else format_duration(seconds)


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
