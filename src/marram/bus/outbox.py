"""The device's outbox: events wait here, durable, until the cloud's database has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from marram.schema.event import Event, Recorded


class Outbox:
    """One SQLite file; several processes may append, one (the agent) drains. Safe from any thread."""

    stream: str

    def __init__(self, path: Path, limit_bytes: int = 500_000_000) -> None: ...

    def append(self, events: list[Event]) -> int:
        """Durable when it returns; the last sequence. Raises Retryable (disk full), Invalid (an event too big or not plain)."""
        raise NotImplementedError

    def read(self, limit: int = 500, max_bytes: int = 256_000) -> list[Recorded]:
        """The oldest, in sequence order; at least one where there is one."""
        raise NotImplementedError

    def acknowledge(self, sequences: Iterable[int]) -> None:
        """Delete exactly those."""
        raise NotImplementedError

    def refuse(self, sequence: int, reason: str) -> None:
        """Set one record aside (table `refused`), counted."""
        raise NotImplementedError

    def depth(self) -> int:
        raise NotImplementedError

    def size_bytes(self) -> int:
        raise NotImplementedError

    def given_up(self) -> dict[str, int]:
        """By kind, since the file was made."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class OutboxWriter:
    """An Outlet (`emit`) that group-commits from one thread. One per worker process."""

    error: str | None  # why the last commit failed (disk full …), else None

    def __init__(self, outbox: Outbox, *, capacity: int = 10_000) -> None: ...

    def emit(self, event: Event) -> None:
        """Any thread. Blocks only while the queue is full and the disk keeps up; never raises."""
        raise NotImplementedError

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything emitted so far is durable; False on timeout."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush (10 s at most) and end the thread."""
        raise NotImplementedError
