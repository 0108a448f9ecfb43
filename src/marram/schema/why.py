"""Why a device runs what it runs: one sentence, the evidence line by line, and what to type next."""

from __future__ import annotations

from marram.schema.api import Reply
from marram.schema.ids import Name


class WhyLine(Reply):
    """One thing that happened. `time_s`: Unix time on the cloud's clock, when it was decided or heard of."""

    time_s: float
    text: str


class WhyApp(Reply):
    """The answer for one app. `runs`: the version that runs there (None: none); `wanted`: that which should.

    `cause` names the case for programs; `next` is a command, or "" where there is nothing to do.
    """

    app: Name
    runs: int | None = None
    wanted: int | None = None
    cause: str
    sentence: str
    lines: list[WhyLine] = []
    after: str = ""
    next: str = ""


class Why(Reply):
    """The answer for a device: about itself (`sentence`, "" where it is well), and about each app."""

    device: Name
    sentence: str = ""
    next: str = ""
    apps: list[WhyApp] = []
