"""The seam of placement: what a policy is asked, what it decides, what it learns from. Pure data, no clock, no I/O.

`T = min(T_trans + T_proc_cloud, T_proc_edge)`: one `decide` for each inference, one `learn` for each outcome.
Time is always an argument (`now_s`, any monotonic clock), so a policy runs the same live and on a virtual clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from marram.schema.app import Objective
from marram.schema.load import Load
from marram.schema.result import Place


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which an inference may be answered. What is not allowed (privacy, memory, no such model) is no way.

    - `edge`: `key` runs here.
    - `cloud`: `payload_bytes` are sent (an estimate where they are not encoded yet) and `key` runs there.
    - `split`: `front` runs here first; what it gives is sent, and `key` runs there.
    - `peer`: as `cloud`, but another device answers, with the edge's model and for no money.

    `key` and `front` name model, variant and input shape (and cut), so that delays are learnt for each apart; several
    ways may share a key. `codec` says how the input is sent (`jpeg-85`, `raw-zstd`, `cut:embedding`), `encode_s` how
    long encoding takes here. `accuracy`: the share of right answers expected (0–1), None where nobody measured it.
    """

    place: Place
    key: str
    payload_bytes: int = 0
    front: str | None = None
    codec: str = ""
    encode_s: float = 0.0
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """What an inference costs, for `cheapest` and for budgets.

    `edge_w`: watts drawn while the edge computes; `send_w`: while the radio sends; `cloud_money`: of one answer of the
    cloud, in whatever currency the budget is in.
    """

    edge_w: float = 0.0
    send_w: float = 0.0
    cloud_money: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One inference to place.

    `ways`: what is possible, in any order. `edge_waiting` counts inferences queued or running at the edge,
    `edge_parallel` the engine instances serving them. `every_s`: when the next one is expected (None: as soon as this
    is answered). `may_drop`: a frame of a live source, which a newer one replaces; others are never dropped.
    `deadline_s` counts from now: what remains of it.
    """

    now_s: float
    ways: tuple[Way, ...]
    edge_waiting: int = 0
    edge_parallel: int = 1
    deadline_s: float | None = None
    objective: Objective = "soonest"
    every_s: float | None = None
    may_drop: bool = False
    costs: Costs = Costs()


@dataclass(frozen=True, slots=True)
class Considered:
    """One way as it was predicted, seconds: what explains a decision.

    `low_s`, `high_s`: 10th and 90th percentile of `total_s`. The parts add up to `total_s`: `wait_s` (the edge's queue,
    or our own earlier messages on the link), `front_s` (split: the part that runs here; else encoding), `transfer_s`
    (the bytes on the link), `rtt_s`, `queue_s` and `service_s` (at the replica, or the edge's own inference).
    `on_time`: the chance that the deadline is met. `price_s`: energy and money at the present prices.
    `excluded`: why it is no choice now ("the cloud is away"), "" where it is one.
    """

    way: Way
    total_s: float
    low_s: float
    high_s: float
    wait_s: float = 0.0
    front_s: float = 0.0
    transfer_s: float = 0.0
    rtt_s: float = 0.0
    queue_s: float = 0.0
    service_s: float = 0.0
    on_time: float | None = None
    price_s: float = 0.0
    replica: str | None = None
    excluded: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where it runs, and why.

    `way`: the chosen one of the ask's (None for `drop`). `timeout_s`: for `cloud` and `split`, how long to wait for the
    reply before the edge answers. `hedge_s`: start the edge's copy too, so long from now, if no reply came by then
    (None: do not). `replica`: which one to ask (None: whichever takes it). `predicted_s` with `low_s`, `high_s`: of the
    chosen way. `idle_s`: what the place that suits the objective would take were nothing of our own in its way. Where
    `predicted_s` is much more, whoever can choose when to take a frame had better wait a little and take a newer one.
    `renew`: the edge is idle and was not heard of for long; it is to run this one as well, for its time alone.
    `considered`: all ways, at the ask's `costs`.
    """

    place: Place
    way: Way | None
    predicted_s: float
    reason: str
    timeout_s: float | None = None
    hedge_s: float | None = None
    replica: str | None = None
    low_s: float = 0.0
    high_s: float = 0.0
    idle_s: float | None = None
    renew: bool = False
    considered: tuple[Considered, ...] = ()
    costs: Costs = Costs()


@dataclass(frozen=True, slots=True)
class EdgeOutcome:
    """One inference (or front of a split) that ran at the edge: its service time (without queueing), seconds."""

    now_s: float
    key: str
    service_s: float


@dataclass(frozen=True, slots=True)
class CloudSent:
    """A request (or probe, `key` None) left for the cloud: `bytes` are in flight from `now_s` on.

    `replica`: the one it was addressed to, None where whichever takes it answers.
    """

    now_s: float
    id: int
    key: str | None
    bytes: int
    replica: str | None = None


@dataclass(frozen=True, slots=True)
class CloudOutcome:
    """How the request `id` ended.

    `ok`: the reply came, with the replica's own `queue_s` and `service_s`. Not ok and `timed_out`: a censored sample,
    the true delay is at least the time waited. Not ok and `busy`: the replica refused, its `queue_s` says how long it
    would have taken. Not ok otherwise: refused at once (no replica, link down). `replica`: who answered; `waiting`: how
    many wait there now; both None where nobody said. `loads`: what was announced of replicas along with it. `gone`: the
    replica that was asked by name was not there, and another took it.
    """

    now_s: float
    id: int
    ok: bool
    queue_s: float = 0.0
    service_s: float = 0.0
    timed_out: bool = False
    busy: bool = False
    replica: str | None = None
    waiting: int | None = None
    loads: tuple[Load, ...] = ()
    gone: bool = False


class Policy(Protocol):
    """Decides for one app on one device. Called from several threads only under the caller's lock."""

    def decide(self, ask: Ask) -> Decision:
        """Where this inference runs; must take well under 100 µs and never raise."""
        ...

    def learn(self, outcome: EdgeOutcome | CloudSent | CloudOutcome) -> None:
        """Take one measurement in."""
        ...

    def hedged(self) -> None:
        """An edge copy was started for a request under way: counts against the hedging budget."""
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
