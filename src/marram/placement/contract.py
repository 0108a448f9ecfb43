"""The seam of placement: what a policy is asked, what it decides, what it learns from. Pure data, no clock, no I/O.

`T = min(T_trans + T_proc_cloud, T_proc_edge)`: one `decide` for each inference, one `learn` for each outcome.
Time is always an argument (`now_s`, any monotonic clock), so a policy runs the same live and on a virtual clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from marram.schema.app import Objective
from marram.schema.result import Place


@dataclass(frozen=True, slots=True)
class Ask:
    """One inference to place.

    `edge_key`/`cloud_key` name model, variant and input shape, so that delays are learnt for each apart.
    `edge_waiting` counts inferences queued or running at the edge, `edge_parallel` the engine instances serving them.
    `payload_bytes` is what the cloud would be sent (an estimate where it is not encoded yet).
    """

    now_s: float
    edge_key: str
    cloud_key: str | None
    payload_bytes: int
    edge_waiting: int = 0
    edge_parallel: int = 1
    deadline_s: float | None = None
    objective: Objective = "soonest"
    # False where privacy or the model's absence forbids it: not a choice the policy can make.
    edge_allowed: bool = True
    cloud_allowed: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """Where it runs, and why.

    `timeout_s`: for `cloud`, how long to wait for the reply before the edge answers. `edge_s`, `cloud_s`: predicted
    delay of each (None where not allowed or unknown); `transfer_s`, `cloud_queue_s`, `cloud_service_s`: the parts.
    `idle_s`: what the place that suits the objective would take were nothing of our own in its way. Where `predicted_s`
    is much more, whoever can choose when to take a frame had better wait a little and take a newer one.
    """

    place: Place
    predicted_s: float
    timeout_s: float | None
    reason: str
    edge_s: float | None = None
    cloud_s: float | None = None
    transfer_s: float | None = None
    cloud_queue_s: float | None = None
    cloud_service_s: float | None = None
    idle_s: float | None = None


@dataclass(frozen=True, slots=True)
class EdgeOutcome:
    """One inference that ran at the edge: its service time (without queueing), seconds."""

    now_s: float
    key: str
    service_s: float


@dataclass(frozen=True, slots=True)
class CloudSent:
    """A request (or probe, `key` None) left for the cloud: `bytes` are in flight from `now_s` on."""

    now_s: float
    id: int
    key: str | None
    bytes: int


@dataclass(frozen=True, slots=True)
class CloudOutcome:
    """How the request `id` ended.

    `ok`: the reply came, with the replica's own `queue_s` and `service_s`. Not ok and `timed_out`: a censored sample,
    the true delay is at least the time waited. Not ok otherwise: refused at once (no replica, link down).
    """

    now_s: float
    id: int
    ok: bool
    queue_s: float = 0.0
    service_s: float = 0.0
    timed_out: bool = False


class Policy(Protocol):
    """Decides for one app on one device. Called from several threads only under the caller's lock."""

    def decide(self, ask: Ask) -> Decision:
        """Where this inference runs; must take well under 100 µs and never raise."""
        ...

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        """Take one measurement in."""
        ...

    def probe_due(self, now_s: float) -> int | None:
        """Bytes of a probe to send now, or None: probes keep an idle link's estimate true and close an open circuit."""
        ...

    def link(self) -> LinkEstimate:
        """The link as measured, for people to read."""
        ...


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """The link as the policy sees it: rate in bit/s up, round-trip seconds, None before the first measurement."""

    rate_bit_s: float | None
    rtt_s: float | None
    up: bool
