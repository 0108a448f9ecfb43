"""Objects: bytes known by their SHA-256, in a folder or in S3 (anything obstore speaks).

Content-addressed, so a put is idempotent and nothing is ever changed in place. Nobody sees an object before it is
complete and its digest proven; in a folder it has reached the disk when `put` returns, since what SQL says about it
is committed right after.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import obstore
from obstore import exceptions as faults
from obstore.store import LocalStore, ObjectStore, from_url

from marram.schema.errors import Invalid, MarramError, Missing, Refused, Retryable
from marram.schema.words import first_line
from marram.system.files import make_folder, sync

# A bucket that takes connections and says nothing: by default it would hold a thread for minutes. Devices send again.
_PATIENCE: Any = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=20)}
_AGAIN: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Body:
    """An object by content."""

    sha256: str
    size_bytes: int


class Objects:
    """An object store.

    `url`: a folder's path, or `s3://bucket/prefix` (credentials and endpoint from the environment: AWS_ENDPOINT_URL,
    AWS_ACCESS_KEY_ID …). Raises Invalid where the URL is not one, Refused where the folder cannot be written.
    """

    def __init__(self, url: str | Path) -> None:
        self.name = str(url)
        self.folder = None if "://" in self.name else Path(self.name).absolute()
        self._store: ObjectStore
        if self.folder is not None:
            try:
                make_folder(self.folder)  # pictures of places and people
                shutil.rmtree(self.folder / "staging", ignore_errors=True)  # what a crash left half-written
                (self.folder / "staging").mkdir(exist_ok=True)
            except OSError as error:
                raise Refused(f"cannot write to the folder {self.folder}: {error.strerror}") from error
            self._store = LocalStore(self.folder)
        else:
            try:
                # An endpoint written as http:// (an S3 on one's own network) is meant so.
                plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
                options: Any = {"allow_http": plain, **_PATIENCE}
                self._store = from_url(self.name, client_options=options, retry_config=_AGAIN)
            except (faults.BaseError, ValueError) as error:
                raise Invalid(
                    f'"{self.name}" is not an object store: {first_line(error)}',
                    hint="Use a folder or s3://BUCKET/PREFIX.",
                ) from error

    def put(self, data: bytes) -> Body:
        """Keep `data`; returns its digest and size. Raises Retryable (disk full, bucket away), Refused."""
        return self.put_many([data])[0]

    def put_many(self, bodies: Sequence[bytes]) -> list[Body]:
        """Keep each of `bodies`; all of them are on disk when this returns. Raises as `put`; some may then be kept."""
        kept = [Body(hashlib.sha256(data).hexdigest(), len(data)) for data in bodies]
        fresh = {}
        for body, data in zip(kept, bodies, strict=True):
            if body.sha256 not in fresh and not self._has(body):
                with self._translated(body.sha256):
                    obstore.put(self._store, _path(body.sha256), data)
                fresh[body.sha256] = body
        self._settle(fresh)
        return kept

    def adopt(self, file: Path, sha256: str) -> Body:
        """Take over `file`, whose content is proven to be `sha256`; it is gone from its place afterwards.

        On the same file system as a folder store this is a rename. Raises Retryable, Refused.
        """
        body = Body(sha256, file.stat().st_size)
        if self._has(body):
            file.unlink()
        elif self.folder is not None:
            target = self.folder / _path(sha256)
            with self._translated(sha256):
                make_folder(target.parent)
                shutil.move(file, target)
            self._settle([sha256])
        else:
            with self._translated(sha256):
                obstore.put(self._store, _path(sha256), file)
            file.unlink()
        return body

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None, limit_bytes: int | None = None) -> Body:
        """Keep what `chunks` yield, never holding more than one of them; it appears only once it is complete.

        Raises Invalid where it is not the content `sha256` names or exceeds `limit_bytes`; Retryable, Refused.
        """
        staged = f"staging/{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            with self._translated(self.name):
                writer = obstore.open_writer(self._store, staged)
            for chunk in chunks:  # what goes wrong here is the sender's fault, not the store's
                size += len(chunk)
                if limit_bytes is not None and size > limit_bytes:
                    raise Invalid(f"it is larger than the {limit_bytes} bytes allowed", where=sha256)
                digest.update(chunk)
                with self._translated(self.name):
                    writer.write(chunk)
            with self._translated(self.name):
                writer.close()
            body = Body(digest.hexdigest(), size)
            if sha256 is not None and body.sha256 != sha256:
                raise Invalid(
                    f"what came has the SHA-256 {body.sha256}, not the one named", where=sha256, hint="Send it again."
                )
            with self._translated(body.sha256):
                obstore.rename(self._store, staged, _path(body.sha256))
            self._settle([body.sha256])
            return body
        except BaseException:
            self._discard(staged)
            raise

    def put_file(self, file: Path | IO[bytes], *, sha256: str | None = None, limit_bytes: int | None = None) -> Body:
        """`put_stream` of a file."""
        if isinstance(file, Path):
            with file.open("rb") as opened:
                return self.put_stream(_chunks(opened), sha256=sha256, limit_bytes=limit_bytes)
        return self.put_stream(_chunks(file), sha256=sha256, limit_bytes=limit_bytes)

    def get(self, sha256: str) -> bytes:
        """All of an object. Raises Missing, Retryable, Invalid (not a digest)."""
        with self._translated(sha256):
            return bytes(obstore.get(self._store, _path(sha256)).bytes())

    def read(self, sha256: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; shorter (or empty) where the object ends. Raises as `get`."""
        if offset < 0 or length < 0:
            raise Invalid(f"bytes {offset} to {offset + length} are no range", where=sha256)
        size = self.size(sha256)
        end = min(size, offset + length)
        if end <= offset:
            return b""
        with self._translated(sha256):
            return bytes(obstore.get_range(self._store, _path(sha256), start=offset, end=end))

    def stream(self, sha256: str, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[bytes]:
        """An object in chunks. Raises as `get`, before the first chunk where it is missing."""
        with self._translated(sha256):
            for chunk in obstore.get(self._store, _path(sha256)).stream(min_chunk_size=chunk_bytes):
                yield bytes(chunk)

    def size(self, sha256: str) -> int:
        """Raises Missing, Retryable, Invalid."""
        with self._translated(sha256):
            return int(obstore.head(self._store, _path(sha256))["size"])

    def has(self, sha256: str) -> bool:
        """Whether it is here. Raises Retryable, Invalid."""
        try:
            self.size(sha256)
        except Missing:
            return False
        return True

    def check(self) -> str:
        """Write, read and delete something real. Raises Retryable, Refused."""
        probe = f"staging/check-{secrets.token_hex(4)}"
        with self._translated(self.name):
            obstore.put(self._store, probe, b"marram")
            back = bytes(obstore.get(self._store, probe).bytes())
            obstore.delete(self._store, probe)
        if back != b"marram":
            raise Retryable("what was written came back different", where=self.name)
        return self.name

    def _has(self, body: Body) -> bool:
        # The size too: what a power cut left of an earlier put (in a folder) may be a file with nothing in it.
        try:
            return self.size(body.sha256) == body.size_bytes
        except Missing:
            return False

    def _settle(self, digests: Iterable[str]) -> None:
        """In a folder: the files, their names and their folders' names reach the disk; each folder once."""
        if self.folder is None:
            return
        files = [self.folder / _path(sha256) for sha256 in digests]
        folders = sorted({f.parent for f in files} | {f.parent.parent for f in files}, reverse=True)
        for path in (*files, *folders):
            try:
                sync(path)
            except OSError as error:
                raise Retryable(f"cannot write to the disk: {error.strerror}", where=str(path)) from error

    def _discard(self, staged: str) -> None:
        try:
            obstore.delete(self._store, staged)
        except (faults.BaseError, OSError):
            return  # it was never made, or the store is away: the next start clears what is left

    def _translated(self, what: str) -> _Translated:
        return _Translated(what, self.name)


class _Translated:
    """obstore's errors, named by what the caller should do next."""

    def __init__(self, what: str, store: str) -> None:
        self._what = what
        self._store = store

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, MarramError) or not isinstance(error, (faults.BaseError, OSError)):
            return
        line = first_line(error)[:300]
        low = line.lower()
        if isinstance(error, (faults.NotFoundError, FileNotFoundError)):
            raise Missing(f"no object {self._what}", where=self._store) from error
        if "no space" in low or "quota" in low or "file too large" in low:
            raise Retryable("the disk is full; nothing was stored", where=self._store, hint="Make room.") from error
        if isinstance(error, (faults.PermissionDeniedError, faults.UnauthenticatedError, PermissionError)):
            raise Refused(f"no right to the object store: {line}", where=self._store) from error
        raise Retryable(f"the object store does not answer: {line}", where=self._store) from error


def _path(sha256: str) -> str:
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise Invalid(f'"{sha256[:80]}" is not a SHA-256')
    return f"sha256/{sha256[:2]}/{sha256}"


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
