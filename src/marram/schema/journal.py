"""The journal of a device: what became of each version there and why, as durable events for whoever asks later.

An entry is written ahead in the record of what it tells (an app's, a hold's) and reaches the cloud as the `data` of an
event of kind `deployment`, whose `app` is the app's name ("" for the whole device) and whose time is the entry's. `id`
is unique for ever: an entry that comes twice (an outbox that was damaged) is known again by it.

| `what` | when | beside it |
|---|---|---|
| `moved` | a version went from one state to another | `from` (null: first told of it), `to`; the figures of its trial |
| `gate` | the verdict on a version on trial | evidence: `passed`, the figures and limits that decided |
| `refused` | a version is given up here, or wanted again after it was | it is not tried again by itself |
| `retry` | a person asked to try a refused version again | |
| `untrusted` | what the cloud wants or sent is not believed: it waits | |
| `ailing` | not the version but its device ended it, or keeps it from starting (a full disk): it waits | |
| `crash` | a proven version ended by itself | evidence: `in_a_row`, `lasted_s`, `cause` |
| `restart` | it was started again | evidence: `in_a_row` |
| `hold`, `release` | a person at the device told it to change nothing, or to go on | |
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError

from marram.schema.device import AppState
from marram.schema.errors import Invalid
from marram.schema.event import Event, EventKind
from marram.schema.model import Strict


class What(StrEnum):
    """What an entry tells of; see the module's table."""

    MOVED = "moved"
    GATE = "gate"
    REFUSED = "refused"
    RETRY = "retry"
    UNTRUSTED = "untrusted"
    AILING = "ailing"
    CRASH = "crash"
    RESTART = "restart"
    HOLD = "hold"
    RELEASE = "release"


class Entry(Strict):
    """One line of the journal. `id` is set where it becomes an event; `time_s`: Unix time on the device's clock."""

    serial: int
    what: What
    version: int | None = None
    origin: AppState | None = Field(default=None, alias="from")
    to: AppState | None = None
    reason: str = ""
    attempt: int = 0
    evidence: dict[str, Any] = {}
    time_s: float = 0.0
    id: str = ""

    model_config = Strict.model_config | {"populate_by_name": True}

    def event(self, app: str, key: str) -> Event:
        """The event that carries it; `key` names the record that it was written ahead in."""
        told = self.model_copy(update={"id": f"{key}-{self.serial}"})
        data = told.model_dump(mode="json", by_alias=True, exclude={"time_s"})
        return Event(EventKind.DEPLOYMENT, app, self.time_s, data)

    @classmethod
    def of(cls, event: Event) -> Entry:
        """The inverse of `event`. Raises Invalid."""
        try:
            return cls.model_validate({**event.data, "time_s": event.time_s})
        except ValidationError as error:
            raise Invalid(f"not an entry of a device's journal: {error.errors()[0]['loc']}", where=event.app) from error
