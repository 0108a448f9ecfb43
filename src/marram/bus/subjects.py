"""Every subject on the bus, in one place. A subject proves its sender: the broker lets a device speak only as itself.

| subject | who asks → who answers | what |
|---|---|---|
| `d.<id>.events` | device → ingest (queue group) | a batch of events; the answer acknowledges it, after the commit |
| `d.<id>.report` | device → fleet (queue group) | Reported; the answer carries Desired where the device's is old |
| `d.<id>.desired` | fleet → device | a nudge: report now (or, `BenchNudge`, measure variants and report) |
| `d.<id>.blob` | device → fleet (queue group) | one range of a file by digest |
| `d.<id>.metadata` | device → fleet (queue group) | one range of a signed metadata file by name |
| `d.<id>.renew` | device → fleet (queue group) | a new certificate for a new key |
| `d.<id>.secrets` | device → fleet (queue group) | the secrets that its apps declare, sealed to its key |
| `d.<id>.peer.<app>.<model>.<version>[.<peer>]` | device → fleet (queue group) | one inference for another device |
| `d.<id>.peer.probe` | device → fleet (queue group) | bytes to time the link with, where no replica runs |
| `d.<id>.asked.<app>.<model>.<version>` | fleet → device | the same, for the model that the app runs there |
| `infer.<model>.<version>` | device → replicas (queue group) | one inference, for whichever takes it |
| `infer.<model>.<version>.<replica>` | device → that replica | one inference |
| `probe` | device → replicas (queue group) | bytes to time the link with |
| `probe.<model>.<version>` | device → replicas (queue group) | the same; the answer tells the load of all of them |
| `load.<model>.<version>` | replica → replicas | its load |
| `hand.<hop>.<model>.<version>.<replica>` | replica → that replica | one inference, handed on (for the `hop`th time) |
| `served` | api → replicas | which models each of them serves, and what those take |
| `fleet.cut` | any role → fleet (queue group) | a device's name: its connections are ended now |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from marram.schema.errors import Invalid

INGEST = "d.*.events"
REPORTS = "d.*.report"
BLOBS = "d.*.blob"
METADATA = "d.*.metadata"
RENEWALS = "d.*.renew"
SECRETS = "d.*.secrets"
PEERS = "d.*.peer.>"
PROBE = "probe"
# Names of replicas are part of a subject, and come from outside.
_REPLICA = re.compile(r"[A-Za-z0-9_-]{1,64}")
CUT = "fleet.cut"
SERVED = "served"


@dataclass(frozen=True, slots=True)
class PeerQuestion:
    """Which model is asked, of devices that run it for that app; `peer`: which of them first."""

    app: str
    model: str
    version: int
    peer: str | None = None


def events(device: str) -> str:
    return f"d.{device}.events"


def report(device: str) -> str:
    return f"d.{device}.report"


def desired(device: str) -> str:
    return f"d.{device}.desired"


def blob(device: str) -> str:
    return f"d.{device}.blob"


def metadata(device: str) -> str:
    return f"d.{device}.metadata"


def renew(device: str) -> str:
    return f"d.{device}.renew"


def secrets(device: str) -> str:
    return f"d.{device}.secrets"


def peer(device: str, question: PeerQuestion) -> str:
    named = f".{question.peer}" if question.peer else ""
    return f"d.{device}.peer.{question.app}.{question.model}.{question.version}{named}"


def asked(device: str, question: PeerQuestion) -> str:
    return f"d.{device}.asked.{question.app}.{question.model}.{question.version}"


def peer_probe(device: str) -> str:
    return f"d.{device}.peer.{PROBE}"


def all_asked(device: str) -> str:
    return f"d.{device}.asked.>"


def peer_question(subject: str) -> PeerQuestion:
    """What is asked on a subject that `peer` or `asked` made. Raises Invalid for another."""
    _, _, _, *said = subject.split(".")
    if not 3 <= len(said) <= 4 or not said[2].isdecimal():
        raise Invalid(f"{subject[:200]} asks nothing of another device")
    return PeerQuestion(said[0], said[1], int(said[2][:9]), said[3] if len(said) == 4 else None)


def infer(model: str, version: int, replica: str | None = None) -> str:
    return f"infer.{model}.{version}" + (f".{replica}" if replica else "")


def is_replica(name: object) -> bool:
    """Whether it can be the name of a replica."""
    return isinstance(name, str) and _REPLICA.fullmatch(name) is not None


def probe(model: str, version: int) -> str:
    return f"{PROBE}.{model}.{version}"


def hand(hop: int | str, model: str, version: int, replica: str) -> str:
    return f"hand.{hop}.{model}.{version}.{replica}"


def hop_of(subject: str) -> int:
    """How often an inference was handed on that came on this subject."""
    return int(subject.split(".", 2)[1]) if subject.startswith("hand.") else 0


def load(model: str, version: int) -> str:
    return f"load.{model}.{version}"


def device_of(subject: str) -> str:
    """The device that sent on a `d.<id>.…` subject."""
    return subject.split(".", 2)[1]


def device_permissions(device: str) -> dict[str, list[str]]:
    """What the broker allows a device: speak as itself, ask replicas, hear only what is addressed to it.

    (And answer what it is asked, once: `callout`.)
    """
    return {
        "publish": [
            *(f"d.{device}.{what}" for what in ("events", "report", "blob", "metadata", "renew", "secrets", "peer.>")),
            "infer.>",
            PROBE,
            f"{PROBE}.>",
        ],
        "subscribe": [f"d.{device}.desired", all_asked(device), f"_INBOX_{device}.>"],
    }
